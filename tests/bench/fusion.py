"""How many frames a second fusion counts: `python -m tests.bench.fusion --cameras 28 --people 82 --fusions 1 2`.

Real fusion processes get the results of simulated decoders and infer processes, as fast as they settle them: of each
frame its confirmation, the boxes of the whole, and two parts with tiles. People walk through a 4K picture; a person is
seen in two or three views, and cut by the edges of some. Each number of fusions is a run.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from peoplecounter.common import views
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, Confirmed, Detections, FrameHeader, Hello, Part, Status
from peoplecounter.common.ipc.results import ResultSenders
from peoplecounter.common.topology import GLOBAL, TILES
from peoplecounter.deploy.group.subscribe import Follower
from tests.bench import cpu_s, spread
from tests.bench.cpu import machine
from tests.support.cli import DEFAULTS, without_settings

WIDTH, HEIGHT, IMAGE = 3840, 2160, 640
LOOP = 100  # different pictures of a camera
CROWDS = 4  # different ones; cameras share them
AHEAD = 4  # frames of a camera that are on their way
DEADLINE_NS = 5_000_000_000
WARM_UP_S = 3
ASPECT = 0.36  # width of a person over the height
CUT_PX, SMALLEST_PX = 4, 24  # of a view: a box reaches its edge; a person who is not seen


def crowd(people: int, table: tuple[views.View, ...], seed: int) -> list[list[bytes]]:
    """LOOP pictures, each the rows of its three parts, see messages.Detections."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(100, 380, people)
    feet = np.clip(rng.uniform(0.4, 1, people) * HEIGHT, height, HEIGHT)
    middle, speed = rng.uniform(0, WIDTH, people), rng.normal(0, 2, people)
    pictures = []
    for step in range(LOOP):
        x = np.clip(middle + speed * min(step, LOOP - step), 0, WIDTH)
        boxes = np.stack([x - height * ASPECT / 2, feet - height, x + height * ASPECT / 2, feet], axis=1)
        parts: list[list[np.ndarray]] = [[], [], []]
        for index, view in enumerate(table):
            scale = view.width / WIDTH
            edges = np.array([view.x, view.y, view.x + IMAGE, view.y + IMAGE]) / scale
            shown = np.clip(boxes + rng.normal(0, 1.5, boxes.shape), [*edges[:2]] * 2, [*edges[2:]] * 2)
            seen = ((shown[:, 2:] - shown[:, :2]) * scale).min(axis=1) > SMALLEST_PX * ASPECT
            seen &= (height * scale > SMALLEST_PX) & (height * scale < IMAGE)
            cut = (np.abs(shown - boxes)[seen] * scale > 2 * CUT_PX).any(axis=1) & (index > 0)
            score = np.clip(0.55 + 0.003 * height[seen] * scale + rng.normal(0, 0.1, seen.sum()), 0.2, 0.95)
            rest = np.broadcast_to([index, scale], (seen.sum(), 2))
            part = parts[0 if index == 0 else 1 + (index > len(table) // 2)]
            part.append(np.column_stack([shown[seen], score, cut, rest]))
        pictures.append([np.concatenate(part).astype("<f4").tobytes() for part in parts])
    return pictures


class Senders:
    """The decoders of all cameras, and the infer processes."""

    def __init__(self, run_dir: Path, cameras: list[str], people: int, fusions: int):
        self.loop, timing = Loop(), Timing.of_ms(250, 2000)
        table = views.table(WIDTH, HEIGHT, (IMAGE, IMAGE), 0.16, None, (1.0,))
        half = len(table) // 2 + 1
        self.parts = (
            Part(GLOBAL, 0, 3, 0, table[:1]),
            Part(TILES, 0, 3, 1, table[1:half]),
            Part(TILES, 1, 3, half, table[half:]),
        )
        self.crowds = [crowd(people, table, seed) for seed in range(CROWDS)]

        def senders(process: str) -> ResultSenders:
            return ResultSenders(self.loop, run_dir, Hello(SCHEMA, process, os.getpid()), timing, fusions)

        self.decoders = {name: senders(f"decoder.{name}") for name in cameras}
        self.infer = [senders(name) for name in ("infer_global.0", "infer_tiles.0", "infer_tiles.1")]
        self.seq = dict.fromkeys(cameras, 0)
        for name, decoder in self.decoders.items():
            decoder.send(Status(name, "online", live=True))

    def close(self) -> None:
        for sender in (*self.decoders.values(), *self.infer):
            sender.close()
        self.loop.close()

    def run(self, settled: dict[str, int], seconds: float) -> None:
        """Sends what is settled soon: AHEAD frames of each camera."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            for number, name in enumerate(self.decoders):
                if self.seq[name] < settled[name] + AHEAD:
                    self.send(name, self.crowds[number % CROWDS])
            self.loop.tick(1)

    def send(self, name: str, pictures: list[list[bytes]]) -> None:
        seq, now_ns = self.seq[name], self.loop.now_ns()
        self.seq[name] = seq + 1
        header = FrameHeader(
            source=name, seq=seq, pts_s=seq / 30, captured_ns=now_ns, deadline_ns=now_ns + DEADLINE_NS, width=WIDTH,
            height=HEIGHT, early=True, marks=dict.fromkeys(("decode", "copy", "preprocess"), (now_ns, now_ns)),
        )  # fmt: skip
        self.decoders[name].send(Confirmed(header))
        for infer, part, boxes in zip(self.infer, self.parts, pictures[seq % LOOP]):
            infer.send(Detections(header, part, boxes, now_ns, now_ns, 1))


@contextlib.contextmanager
def started(run_dir: Path, cameras: list[str], fusions: int) -> Iterator[list[int]]:
    """Fusion processes; gives their pids."""
    sources = {name: {"url": f"rtsp://127.0.0.1/{name}"} for name in cameras}
    settings = {"RUN_DIR": run_dir, "SOURCES": json.dumps(sources), "WORKERS__FUSION": fusions}
    environment = (
        without_settings() | DEFAULTS | {f"PEOPLECOUNTER_{key}": str(value) for key, value in settings.items()}
    )
    command = [sys.executable, "-m", "peoplecounter.services.fusion"]
    processes = [subprocess.Popen([*command, str(number)], env=environment) for number in range(fusions)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def measured(fusions: int, cameras: int, people: int, seconds: float) -> dict:
    """A run with so many fusions."""
    names = [f"cam{i}" for i in range(cameras)]
    settled, counts = dict.fromkeys(names, 0), []

    def on_message(kind: str, name: str, content: dict) -> None:
        settled[name] = content["totals"]["frames"]
        if kind == "counts":
            counts.append((content["stages_ms"]["fusion"], content["count"]))

    with tempfile.TemporaryDirectory(prefix="pc-fusion-", dir="/dev/shm") as folder:
        run_dir = Path(folder) / "run"
        run_dir.mkdir(mode=0o700)
        with started(run_dir, names, fusions) as pids:
            follower = Follower(f"ipc://{run_dir}/counts.sock", ("counts", "dropped"), on_message)
            senders = Senders(run_dir, names, people, fusions)
            senders.run(settled, WARM_UP_S)
            before, first, began_s, used_s = sum(settled.values()), len(counts), time.monotonic(), [*map(cpu_s, pids)]
            senders.run(settled, seconds)
            frames, lasted_s = sum(settled.values()) - before, time.monotonic() - began_s
            busy = [round((cpu_s(pid) - before_s) / lasted_s, 2) for pid, before_s in zip(pids, used_s)]
            senders.close()
            follower.close()
    stage_ms, found = zip(*counts[first:])
    return {
        "fusions": fusions, "cameras": cameras, "people": round(float(np.mean(found)), 1),
        "frames_per_s": round(frames / lasted_s, 1), "counted": len(found), "cores_of_each": busy,
        "ms_of_a_core_per_frame": round(1000 * sum(busy) * lasted_s / frames, 3), "stage_ms": spread(stage_ms),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fusions", type=int, nargs="*", default=[1], help="processes, each number a run")
    parser.add_argument("--cameras", type=int, default=28)
    parser.add_argument("--people", type=int, default=82)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path(".bench") / "fusion.json")
    args = parser.parse_args()
    rows = []
    for fusions in args.fusions:
        rows.append(measured(fusions, args.cameras, args.people, args.seconds))
        print(json.dumps(rows[-1]), flush=True)
    result = {**machine(), "command": "python -m tests.bench.fusion " + " ".join(sys.argv[1:]), "fusion": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
