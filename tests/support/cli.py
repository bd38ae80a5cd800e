"""The command line as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(run_dir, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PEOPLECOUNTER_")}
    environment |= {"PEOPLECOUNTER_RUN_DIR": str(run_dir), **variables}
    return [sys.executable, "-m", "deploy.cli", *map(str, arguments)], environment


def peoplecounter(run_dir, *arguments, **variables):
    argv, environment = command(run_dir, *arguments, **variables)
    return subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
