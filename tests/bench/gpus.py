"""A group on several GPUs: `python -m tests.bench.gpus --number 1 2 4 --seconds 10` on a GPU host.

Each number of GPUs is a run of `peoplecounter run` with seven 4K cameras of 30 frames/s for each, two infer_tiles on
each, and a fusion for each: how many frames/s are counted, and what is dropped. With `--lose 2`, on two GPUs: three
cameras for each, then a kernel that writes to a wrong address makes the last one fail, under the MPS daemon that all
share. How long is it from the last complete count of each of its cameras to the tenth that comes from another GPU?
`--levels "[1.0]"`: 33 views instead of all 43. PLAN and FOOTAGE as for tests/bench/gpu.py.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from peoplecounter.common.process.gpus import Gpus
from peoplecounter.deploy.group.client import owners
from peoplecounter.deploy.group.subscribe import Follower
from tests.bench import cpu_s, spread
from tests.bench.gpu import CLIP, PLAN, dropped_between, machine
from tests.support.cli import DEFAULTS, argv, without_settings

CAMERAS = 7  # of 30 frames/s, that one GPU holds
SETTLED_S = 30  # see SETTLED of common/process/runtime.py
WARM_UP = 60  # counts of each camera
FAULT = """
from peoplecounter.common import cuda
from peoplecounter.common.cubins import Launch, Pointer
from peoplecounter.deploy.dashboard.shrink import AVERAGE_PLANE
cuda.start()
constants = {"SHIFT": 0, "FACTOR": 2, "CHANNELS": 1, "BLOCK_Y": 4, "BLOCK_X": 64}
arguments = [Pointer(256, "u8"), Pointer(4096, "u8"), 1024, 1024, 256, 512, 512, 128]
Launch(AVERAGE_PLANE, (64, 8), arguments, constants)(0, 256, 4096)
print(cuda.cudart.cudaDeviceSynchronize(), flush=True)
"""


class Run:
    """`peoplecounter run` with cameras on the first `number` GPUs, and what it publishes of each."""

    def __init__(self, folder: Path, number: int, cameras: int, levels: str):
        self.run_dir, self.log = folder / "run", (folder / "log").open("w+")
        self.sources = [f"cam{i}" for i in range(cameras)]
        self.latest: dict[str, dict] = {}  # source -> its last count
        self.complete_s: dict[str, list[float]] = {name: [] for name in self.sources}  # when its complete counts came
        self.times_ms: list[tuple[float, float]] = []  # packet to count, fusion
        camera = {"url": str(CLIP), "loop": True, "realtime": True, "fps": 30}
        settings = {
            "run_dir": self.run_dir, "backend": "cuda", "gpus": ",".join(map(str, range(number))),
            "engine__model": PLAN, "sources": json.dumps(dict.fromkeys(self.sources, camera)),
            "workers__infer_tiles": 2, "workers__fusion": number, "views__levels": levels,
        }  # fmt: skip
        environment = without_settings() | DEFAULTS
        environment |= {f"PEOPLECOUNTER_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = subprocess.Popen(
            argv("run", "--json"), env=environment, stdout=subprocess.DEVNULL, stderr=self.log
        )
        self.follower = Follower(f"ipc://{self.run_dir}/counts.sock", ("counts",), self.on_count)

    def on_count(self, kind: str, name: str, content: dict) -> None:
        self.latest[name] = content
        self.times_ms.append((content["end_to_end_ms"], content["stages_ms"]["fusion"]))
        if content["complete"]:
            self.complete_s[name].append(time.monotonic())

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> float:
        """Until it holds; returns the seconds that it took."""
        began_s = time.monotonic()
        while not condition():
            if time.monotonic() - began_s > timeout_s or self.process.poll() is not None:
                raise SystemExit(f"no {what}:\n{self.tail()}")
            time.sleep(0.05)
        return time.monotonic() - began_s

    def warm_up(self) -> float:
        return self.wait(lambda: min(map(len, self.complete_s.values())) >= WARM_UP, "counts of all cameras")

    def totals(self) -> dict[str, dict]:
        return {name: self.latest[name]["totals"] for name in self.sources}

    def tail(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.follower.close()


@contextlib.contextmanager
def running(number: int, cameras: int, levels: str = "auto") -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="pc-gpus-", dir="/dev/shm") as folder:
        run = Run(Path(folder), number, cameras, levels)
        try:
            yield run
        finally:
            run.close()


def hold(number: int, seconds: float, levels: str) -> dict:
    """What the group counts with the most cameras that its GPUs should hold."""
    with running(number, number * CAMERAS, levels) as run:
        started_s = run.warm_up()
        before, first, began_s = run.totals(), len(run.times_ms), time.monotonic()
        cores = process_times(run.run_dir, seconds)
        after, lasted_s = run.totals(), time.monotonic() - began_s
        times_ms = run.times_ms[first:]
        loads = Counter(Gpus(run.run_dir).placement.sources.values())
    frames = sum(after[name]["counted"] - before[name]["counted"] for name in run.sources)
    return {
        "gpus": number, "cameras": len(run.sources), "cameras_of_each": dict(sorted(loads.items())),
        "frames_per_s": round(frames / lasted_s, 1), "dropped": dict(dropped_between(before, after)),
        "all_counted_after_s": round(started_s, 1), "cores": cores,
        "packet_to_count_ms": spread([end_to_end for end_to_end, _ in times_ms]),
        "fusion_ms": spread([fusion for _, fusion in times_ms]),
    }  # fmt: skip


def process_times(run_dir: Path, seconds: float) -> dict[str, float]:
    """Service -> how many cores its processes use together, over this time."""

    def used() -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for name, pid in owners(run_dir).items():
            with contextlib.suppress(OSError):
                found[name.partition(".")[0]] += cpu_s(pid)
        return found

    before = used()
    time.sleep(seconds)
    return {name: round((n - before[name]) / seconds, 2) for name, n in used().items()}


def lose(number: int) -> dict:
    """Seconds from the failure of the last GPU to ten complete counts of each of its cameras, on the others."""
    with running(number, number * (CAMERAS // 2)) as run:
        run.warm_up()
        time.sleep(SETTLED_S)
        gpus, last = Gpus(run.run_dir), number - 1
        moved = sorted(name for name, of in gpus.placement.sources.items() if of == last)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus.placement.uuids[last]}
        if (run.run_dir / "mps").exists():
            environment["CUDA_MPS_PIPE_DIRECTORY"] = str(run.run_dir / "mps")
        fault = subprocess.Popen(
            [sys.executable, "-c", FAULT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        began_s = time.monotonic()
        run.wait(lambda: all(gpus.placement.sources[name] != last for name in moved), "move to other GPUs", 40)
        moved_s = time.monotonic()
        run.wait(lambda: all(run.complete_s[name][-1] > moved_s + 1 for name in moved), "counts of moved cameras", 40)
        time.sleep(1)
        said = fault.communicate(timeout=60)[0].strip()
        again = {}
        for name, times in run.complete_s.items():
            gap_s, at = max((b - a, i) for i, (a, b) in enumerate(pairwise(times)))
            again[name] = {"longest_gap_s": round(gap_s, 2), "ten_counts_after_s": round(times[at + 10] - times[at], 2)}
        loads, lost = Counter(gpus.placement.sources.values()), sorted(gpus.placement.lost_ns)
        print(run.tail(), flush=True)
    return {
        "gpus": number, "fault": said[-300:], "all_moved_after_s": round(moved_s - began_s, 2),
        "under_mps": "CUDA_MPS_PIPE_DIRECTORY" in environment, "lost": lost,
        "cameras_of_each_after": dict(sorted(loads.items())),
        "moved": {name: again[name] for name in moved},
        "longest_gap_of_the_others_s": max(again[name]["longest_gap_s"] for name in set(run.sources) - set(moved)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, nargs="*", default=[1, 2], help="of GPUs, each a run")
    parser.add_argument("--seconds", type=float, default=10, help="of each run")
    parser.add_argument("--levels", default="auto", help="setting views.levels")
    parser.add_argument("--lose", type=int, default=0, help="of this many GPUs the last fails, in a run of its own")
    parser.add_argument("--out", type=Path, default=Path(".bench") / "gpus.json")
    args = parser.parse_args()
    result = {**machine(), "command": "python -m tests.bench.gpus " + " ".join(sys.argv[1:])}
    result["at"] = datetime.now(UTC).isoformat(timespec="seconds")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in args.number:
        rows.append(hold(number, args.seconds, args.levels))
        print(json.dumps(rows[-1]), flush=True)
        result["held"] = rows
        result["times_one"] = {row["gpus"]: round(row["frames_per_s"] / rows[0]["frames_per_s"], 2) for row in rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.lose:
        result["lost"] = lose(args.lose)
        print(json.dumps(result["lost"]), flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("times_one")))


if __name__ == "__main__":
    main()
