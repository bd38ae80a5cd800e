"""What all services share. It imports neither services nor deploy."""

import os

__version__ = "0.2.0"
# otherwise each start of a process searches every installed package for plugins of pydantic
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
