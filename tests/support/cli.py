"""The command line as a user types it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFAULTS = {
    "PEOPLECOUNTER_ENGINE__RUNTIME": "onnxruntime",  # what everybody has; OpenVINO has tests of its own
    "PEOPLECOUNTER_DASHBOARD__LISTEN": "",  # so has the dashboard
}


def argv(*arguments):
    """The command line of `peoplecounter`, in this Python."""
    return [sys.executable, "-m", "peoplecounter.deploy.cli", *map(str, arguments)]


def command(run_dir, *arguments, **variables):
    return argv(*arguments), {**without_settings(), "PEOPLECOUNTER_RUN_DIR": str(run_dir), **DEFAULTS, **variables}


def without_settings() -> dict[str, str]:
    """This process' environment without settings of ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PEOPLECOUNTER_")}


def missing(*tools):
    """Which of the programs that a test needs this machine does not have; empty: none."""
    return ", ".join(tool for tool in tools if not shutil.which(tool))


def missing_as_root(*tools):
    """The same for a test that needs to be root as well."""
    return "root" if os.getuid() else missing(*tools)


def checked(*words, check=True, timeout=120, **options):
    """A program that has ended, its output as text; with `check`, an error of it is one here."""
    words = [str(word) for word in words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done


def gpu_used_mb() -> int:
    """Memory of the first GPU in use by all processes, MB."""
    return gpus_used_mb()[0]


def gpus_used_mb() -> list[int]:
    """The same of each GPU."""
    query = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")
    return [int(line) for line in checked("nvidia-smi", *query).stdout.split()]


def peoplecounter(run_dir, *arguments, **variables):
    words, environment = command(run_dir, *arguments, **variables)
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
