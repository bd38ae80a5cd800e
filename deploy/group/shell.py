"""Running somebody else's program: what it printed, or one sentence about why not."""

import subprocess

from peoplecounter.common.errors import SOFTWARE, Refused

COMMAND_S = 60.0


def call(*command: str, cwd: str | None = None) -> str:
    """Standard output of a command; raises Refused with the last thing it said when it fails or takes COMMAND_S."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=COMMAND_S)
    except FileNotFoundError:
        raise Refused(f"{command[0]} is not installed here.", SOFTWARE) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"'{' '.join(command)}' failed: {error}.", SOFTWARE) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Refused(f"'{' '.join(command)}' failed: {said[-1]}", SOFTWARE)
    return done.stdout
