"""The command line: `peoplecounter`, or `python -m peoplecounter.deploy.cli`."""


def main() -> None:
    """Runs one command and exits with its code."""
    from peoplecounter.deploy.cli.commands import run_command  # here: other users of this package do not need typer

    run_command()
