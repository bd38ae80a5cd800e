"""A group on several GPUs: `python -m tests.bench.gpus --number 1 2 4 --seconds 10` on a GPU host.

Each number of GPUs is a run of `peoplecounter run` with seven 4K cameras of 30 frames/s for each, two infer_tiles on
each: how many frames/s are counted, and what is dropped. With `--lose`, on the last number of GPUs: three cameras for
each, then a kernel that writes to a wrong address makes the last one fail, under the MPS daemon that all share.
How long is it until each of its cameras has ten complete counts again? PLAN and FOOTAGE as for tests/bench/gpu.py.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from peoplecounter.common.process.gpus import Gpus
from tests.bench import spread
from tests.bench.gpu import CLIP, PLAN, machine
from tests.support.cli import DEFAULTS
from tests.support.published import Published

CAMERAS = 7  # of 30 frames/s, that one GPU holds
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


class Run(Published):
    """`peoplecounter run` with cameras on the first `number` GPUs."""

    def __init__(self, folder: Path, number: int, cameras: int):
        self.run_dir, self.log = folder / "run", (folder / "log").open("w+")
        self.sources = [f"cam{i}" for i in range(cameras)]
        camera = {"url": str(CLIP), "loop": True, "realtime": True, "fps": 30}
        settings = {
            "run_dir": self.run_dir, "backend": "cuda", "gpus": ",".join(map(str, range(number))),
            "engine__model": PLAN, "sources": json.dumps(dict.fromkeys(self.sources, camera)),
            "workers__infer_tiles": 2, "dashboard__listen": "",
        }  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PEOPLECOUNTER_")} | DEFAULTS
        environment |= {f"PEOPLECOUNTER_{key.upper()}": str(value) for key, value in settings.items()}
        command = [sys.executable, "-m", "peoplecounter.deploy.cli", "run", "--json"]
        empty = folder / "peoplecounter.toml"
        empty.write_text("")
        self.process = subprocess.Popen(
            [*command, "--config", str(empty)], env=environment, stdout=subprocess.DEVNULL, stderr=self.log
        )
        super().__init__(f"ipc://{self.run_dir}/counts.sock")

    def tail(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]

    def warm_up(self) -> float:
        """Until every camera is counted; returns the seconds that it took."""
        return self.wait_for(
            lambda: all(self.totals(name).get("counted", 0) >= WARM_UP for name in self.sources), "all cameras", 120
        )

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            super().close()


@contextlib.contextmanager
def running(number: int, cameras: int) -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="pc-gpus-", dir="/dev/shm") as folder:
        run = Run(Path(folder), number, cameras)
        try:
            yield run
        finally:
            run.close()


def hold(number: int, seconds: float) -> dict:
    """What the group counts with the most cameras that its GPUs should hold."""
    with running(number, number * CAMERAS) as run:
        started_s = run.warm_up()
        before = {name: run.totals(name) for name in run.sources}
        first, began = len(run.messages), time.monotonic()
        time.sleep(seconds)
        after, lasted = {name: run.totals(name) for name in run.sources}, time.monotonic() - began
        counts = [content for kind, _, content in run.messages[first:] if kind == "counts"]
        loads = Counter(Gpus(run.run_dir).placement.sources.values())
        rows = process_times(run.run_dir)
    dropped = Counter()
    for name in run.sources:
        dropped.update(Counter(after[name]["dropped"]) - Counter(before[name]["dropped"]))
    frames = sum(after[name]["counted"] - before[name]["counted"] for name in run.sources)
    return {
        "gpus": number, "cameras": len(run.sources), "cameras_of_each": dict(sorted(loads.items())),
        "frames_per_s": round(frames / lasted, 1), "dropped": dict(dropped), "all_counted_after_s": round(started_s, 1),
        "packet_to_count_ms": spread([c["end_to_end_ms"] for c in counts]),
        "fusion_ms": spread([c["stages_ms"]["fusion"] for c in counts]), "cpu_share": rows,
    }  # fmt: skip


def process_times(run_dir: Path, over_s: float = 2) -> dict[str, float]:
    """Service -> the cores that its processes use together."""
    from peoplecounter.deploy.group.client import owners

    def used() -> dict[str, int]:
        found: Counter[str] = Counter()
        for name, pid in owners(run_dir).items():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[name.partition(".")[0]] += int(fields[11]) + int(fields[12])
        return found

    before = used()
    time.sleep(over_s)
    return {name: round((n - before[name]) / os.sysconf("SC_CLK_TCK") / over_s, 2) for name, n in used().items()}


def lose(number: int) -> dict:
    """Seconds from the failure of the last GPU to ten complete counts of each of its cameras, on the others."""
    with running(number, number * (CAMERAS // 2)) as run:
        run.warm_up()
        gpus = Gpus(run.run_dir)
        moved = sorted(name for name, of in gpus.placement.sources.items() if of == number - 1)
        others = sorted(set(run.sources) - set(moved))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus.placement.uuids[-1]}
        pipe = run.run_dir / "mps"
        if pipe.exists():
            environment["CUDA_MPS_PIPE_DIRECTORY"] = str(pipe)
        arrived: dict[str, list[float]] = {name: [] for name in run.sources}
        done, seen = threading.Event(), len(run.messages)

        def note() -> None:
            nonlocal seen
            while not done.wait(0.01):
                for kind, name, content in run.messages[seen:]:
                    seen += 1
                    if kind == "counts" and content["complete"]:
                        arrived[name].append(time.monotonic())

        threading.Thread(target=note, daemon=True).start()
        fault = subprocess.run(
            [sys.executable, "-c", FAULT], env=environment, capture_output=True, text=True, timeout=60
        )
        failed_s = time.monotonic()
        print(fault.stdout[-300:], fault.stderr[-300:], flush=True)
        run.wait_for(lambda: {gpus.placement.sources[name] for name in moved} != {number - 1}, "a move", 30)
        time.sleep(12)
        done.set()
        again = {}
        for name in run.sources:
            times = arrived[name]
            gaps = [(b - a, i) for i, (a, b) in enumerate(pairwise(times))]
            gap_s, at = max(gaps)
            again[name] = {
                "gap_s": round(gap_s, 2),
                "ten_after_fault_s": round(times[min(at + 10, len(times) - 1)] - failed_s, 2),
            }
        placement = gpus.placement
        log = run.tail()
    print(log, flush=True)
    return {
        "gpus": number, "fault": fault.stdout.strip()[-120:], "moved": {name: again[name] for name in moved},
        "others_longest_gap_s": max((again[name]["gap_s"] for name in others), default=0),
        "placement_after": dict(sorted(Counter(placement.sources.values()).items())),
        "lost": sorted(placement.lost_ns), "mps": pipe.name if "CUDA_MPS_PIPE_DIRECTORY" in environment else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, nargs="+", default=[1, 2], help="of GPUs, each a run")
    parser.add_argument("--seconds", type=float, default=10, help="of each run")
    parser.add_argument("--lose", action="store_true", help="make the last GPU fail")
    parser.add_argument("--out", type=Path, default=Path(".bench") / "gpus.json")
    args = parser.parse_args()
    result = {**machine(), "command": "python -m tests.bench.gpus " + " ".join(sys.argv[1:])}
    result["at"] = datetime.now(UTC).isoformat(timespec="seconds")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in args.number:
        rows.append(hold(number, args.seconds))
        print(json.dumps(rows[-1]), flush=True)
        result["held"] = rows
        result["times_one"] = {row["gpus"]: round(row["frames_per_s"] / rows[0]["frames_per_s"], 2) for row in rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.lose:
        result["lost"] = lose(args.number[-1])
        print(json.dumps(result["lost"]), flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result.get("times_one")))


if __name__ == "__main__":
    main()
