"""Runs another program: returns its output, or raises one error message."""

import subprocess

from peoplecounter.common.errors import SOFTWARE, AppError

COMMAND_S = 60.0


def call(*command: str, cwd: str | None = None) -> str:
    """Standard output of a command. Raises AppError, with its last line, when it fails or takes over COMMAND_S."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_S)
    except FileNotFoundError:
        raise AppError(f"{command[0]} is not installed.", SOFTWARE) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AppError(f"'{' '.join(command)}' failed: {error}.", SOFTWARE) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise AppError(f"'{' '.join(command)}' failed: {lines[-1]}", SOFTWARE)
    return done.stdout
