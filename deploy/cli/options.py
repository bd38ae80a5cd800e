"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

RunDir = Annotated[Path | None, typer.Option(help="Run directory of the group.")]
Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
