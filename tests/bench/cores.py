"""Groups on this machine's cores, in turns: `python -m tests.bench.cores CLIP MODEL NAME=TREE[,SETTING=VALUE …] …`.

Each turn runs `peoplecounter run` of every checkout TREE, with settings as environment variables name them:

    flat      frames/s of the file, flat out
    alone     one frame a second: milliseconds from packet to count, which is the work of one frame
    live      the file in real time: counted frames/s, and milliseconds from packet to count
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.bench import of_checkout
from tests.bench.cpu import machine

MODES = {"flat": {}, "alone": {"realtime": True, "loop": True, "fps": 1}, "live": {"realtime": True, "loop": True}}
COMMAND = "from peoplecounter.deploy.cli import main; main()"
WARM_UP = 4  # counts


def measure(mode: str, clip: Path, model: Path, tree: Path, settings: dict[str, str], seconds: float) -> dict:
    """One group: counted frames/s and percentiles of its packet to count, ms."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        variables = {
            "SOURCES": json.dumps({"cam": {"url": str(clip), **MODES[mode]}}),
            "ENGINE__MODEL": str(model),
            "RUN_DIR": f"{folder}/run",
            **settings,
        }
        environment = of_checkout(tree, Path(folder) / "tree")
        environment |= {f"PEOPLECOUNTER_{key}": value for key, value in variables.items()}
        group = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "run", "--json"], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert group.stdout is not None
        counts: list[tuple[float, dict]] = []
        for line in group.stdout:
            message = json.loads(line)
            if "end_to_end_ms" in message:
                counts.append((time.monotonic(), message))
            if len(counts) > WARM_UP and counts[-1][0] - counts[WARM_UP][0] > seconds:
                break
        group.send_signal(signal.SIGINT)
        group.stdout.read()
        group.wait()
    times_s, messages = zip(*counts[WARM_UP:])
    p50, p95 = np.percentile([m["end_to_end_ms"] for m in messages], [50, 95])
    return {
        "frames_per_s": round((len(times_s) - 1) / (times_s[-1] - times_s[0]), 2),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "people": round(statistics.mean(m["count"] for m in messages), 2),
        "incomplete": sum(not m["complete"] for m in messages),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("variants", nargs="+", help="NAME=TREE[,SETTING=VALUE …]; MODEL=FILE is another model")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="at most, of each run")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--out", type=Path, default=Path(".bench") / "cores.json")
    args = parser.parse_args()
    runs: dict[str, dict[str, list[dict]]] = {}
    for turn in range(args.turns):
        for text in args.variants[:: 1 if turn % 2 else -1]:
            name, _, rest = text.partition("=")
            tree, *pairs = rest.split(",")
            settings = dict(pair.split("=", 1) for pair in pairs)
            model = Path(settings.pop("MODEL", args.model)).absolute()
            for mode in args.modes:
                run = measure(mode, args.clip.absolute(), model, Path(tree).absolute(), settings, args.seconds)
                runs.setdefault(name, {}).setdefault(mode, []).append(run)
                print(f"{name:<14}{mode:<7}{run}", flush=True)
    keys = ("frames_per_s", "p50_ms", "p95_ms")
    medians = {
        name: {
            mode: {key: statistics.median(run[key] for run in of_mode) for key in keys} for mode, of_mode in m.items()
        }
        for name, m in runs.items()
    }
    command = "python -m tests.bench.cores " + " ".join(sys.argv[1:])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({**machine(), "command": command, "medians": medians, "runs": runs}, indent=1) + "\n"
    )
    for name, of_mode in medians.items():
        for mode, m in of_mode.items():
            print(f"{name:<14}{mode:<7}" + "  ".join(f"{key} {value}" for key, value in m.items()))


if __name__ == "__main__":
    main()
