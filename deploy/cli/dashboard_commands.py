"""The commands for the dashboard."""

from pathlib import Path
from typing import Annotated

import typer

from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.deploy.cli.options import Config, RunDir
from peoplecounter.deploy.group import client

app = typer.Typer(
    invoke_without_command=True, help="Pictures, lines and charts in the browser: without a command, where they are."
)


@app.callback()
def show_url(
    context: typer.Context,
    config: Config = None,
    run_dir: RunDir = None,
) -> None:
    """Print the URL of a running group's dashboard."""
    if context.invoked_subcommand is not None:
        return
    rows = client.process_rows(client.find_group(config, run_dir))
    url = next((row.get("about") for row in rows if row["service"] == "dashboard.0"), None)
    if not url:
        raise AppError("This group has no dashboard: set dashboard.listen, e.g. to 127.0.0.1:8650.", NO_INPUT)
    print(url)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Who gets it: letters, digits, - and _.")],
    file: Annotated[Path, typer.Option(help="File of dashboard.token_file; created, mode 0600, if it does not exist.")],
    role: Annotated[str, typer.Option(help="view, or edit: lines, zones, corrections, restarts.")] = "view",
) -> None:
    """Print a new token, with which NAME logs in; the file gets its hash. It replaces an earlier token of NAME."""
    from peoplecounter.deploy.dashboard.tokens import add_user

    print(add_user(file, name, role))
