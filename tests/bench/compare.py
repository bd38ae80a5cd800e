"""Packet to count of two checkouts on one GPU, in turns: `python -m tests.bench.compare OLD_TREE --turns 3`.

Each turn runs one 4K camera of 30 frames/s, with MPS and two infer_tiles, in this checkout and in OLD_TREE. A looping
clip is rewound every 96 frames, which delays about 1 % of the frames: p95 says more about the pipeline than p99.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.bench import of_checkout
from tests.bench.gpu import VIEWS
from tests.support.cli import ROOT

RUN = (
    "import json, sys; from tests.bench.gpu import paced; "
    "print(json.dumps(paced(int(sys.argv[1]), True, 2, **json.loads(sys.argv[2]))))"
)
MACHINE = "import json; from tests.bench.gpu import machine; print(json.dumps(machine()))"
PERCENTILES = (50, 90, 95, 98, 99, 100)


def python(tree: Path, code: str, *arguments: object) -> dict:
    """The JSON that a program prints as its last line, run in a checkout."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        environment = of_checkout(tree, Path(folder))
        done = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="another checkout")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15, help="of each run")
    parser.add_argument("--views", choices=VIEWS, default=next(iter(VIEWS)))
    parser.add_argument("--out", type=Path, default=Path(".bench") / "compare.json")
    args = parser.parse_args()
    trees = {"old": args.old.absolute(), "new": ROOT}
    runs: dict[str, list[dict]] = {name: [] for name in trees}
    result = {
        **python(ROOT, MACHINE),
        "views": args.views,
        "command": "python -m tests.bench.compare " + " ".join(sys.argv[1:]),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for turn in range(args.turns):
        for name in sorted(trees, reverse=turn % 2 == 0):
            run = python(trees[name], RUN, args.seconds, json.dumps(VIEWS[args.views]))
            times_ms = run.pop("end_to_end_ms")
            run["percentiles_ms"] = {f"p{p}": round(float(np.percentile(times_ms, p)), 3) for p in PERCENTILES}
            runs[name].append(run)
            print(name, run["frames"], run["dropped"], run["percentiles_ms"], flush=True)
        medians = {
            name: {p: statistics.median(run["percentiles_ms"][p] for run in done) for p in done[0]["percentiles_ms"]}
            for name, done in runs.items()
        }
        args.out.write_text(json.dumps({**result, "packet_to_count_ms": medians, "runs": runs}, indent=1) + "\n")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
