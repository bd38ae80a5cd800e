"""What all services share. It imports neither services nor deploy."""

__version__ = "0.2.0"
