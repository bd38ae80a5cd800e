"""The command line: `peoplecounter`, or `python -m peoplecounter.deploy.cli`."""


def main() -> None:
    """Runs one command and exits with its code."""
    from peoplecounter.deploy.cli.commands import run_command  # late: services that share this room need no typer

    run_command()
