"""Benchmarks on the CPU backend: `make bench`. Prints a table and writes .bench/cpu.json.

    group       frames/s, and milliseconds of every stage, of the demo's clip through all five processes, flat out
    path        what a frame costs beside its work, from offer to published count, through the real processes
    link        offer -> lease -> release between two processes, no work done
    tracing     what the five services spend on a frame's spans, by sampling ratio, and as a share of `path`
    gains       optimizations off and on, in turns: zero copy, the fused kernel, two infer_tiles, what tracing costs
    recovery    seconds from a killed service's new start to ten complete counts, and after SIGSTOP for 5 s, SIGCONT

Times of one run on one machine: these machines are shared, so quote ratios and medians.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zmq

from peoplecounter.common.ipc.consumer import RingConsumer
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, FrameHeader, Hello, Input, Part, SurfaceLayout
from peoplecounter.common.ipc.producer import RingProducer
from peoplecounter.common.process.tracer import Tracer
from peoplecounter.common.settings import Settings
from peoplecounter.common.views import table
from peoplecounter.deploy.demo.plaza import render_clip
from peoplecounter.deploy.group.subscribe import Tally
from peoplecounter.services.preprocess import kernels, reference
from tests.bench import TRACED, TRACING, distribution, gain, spread
from tests.support import squares
from tests.support.group import SERVICES, Group

ROOT = Path(__file__).parents[2]
VIEWS = table(1920, 1080, (640, 640))
DEMO_MODEL = ROOT / "common" / "engine" / "plaza.onnx"


def new_group(model: Path, source: dict, **settings: str) -> Group:
    folder = Path(tempfile.mkdtemp(prefix="pc-bench-", dir="/dev/shm"))
    return Group(folder, model, {"cam": source}, log_level="warning", **settings)


def end(g: Group) -> None:
    g.close()
    shutil.rmtree(g.run_dir)
    Path(g.log.name).unlink()


def plaza(folder: Path) -> Path:
    """The demo's clip."""
    clip = folder / "plaza.mp4"
    if not clip.exists():
        render_clip(clip, folder / "plaza.csv", frames=120)
    return clip


def group(folder: Path) -> dict:
    """The demo's clip, flat out."""
    clip = plaza(folder)
    g = new_group(DEMO_MODEL, {"url": str(clip), "loop": True})
    g.start()
    g.wait_counts(30, 60)
    first = g.counted()
    begin = time.monotonic()
    g.wait_counts(200, 120)
    fps = (g.counted() - first) / (time.monotonic() - begin)
    tally = Tally()
    for message in g.messages:
        tally.add(*message)
    end(g)
    return {"frames_per_s": round(fps, 2), "stages_ms": tally.summary()["stages_ms"]}


def path(folder: Path, rounds: int = 600) -> dict:
    """Milliseconds of a frame that are no stage's work, from offer to published count, and where they are.

    This process is the decoder: it offers one 80 x 80 px frame and waits for its count, so no frame ever queues.
    `idle`: the same with 33 ms between frames, when a core has to wake up for every hop.
    """
    g = new_group(squares.make_model(folder / "squares.onnx"), {"url": "none"})
    g.start(*(name for name in SERVICES if not name.startswith("decoder")))
    loop = Loop()
    owner = RingProducer(loop, g.run_dir, "surfaces", "cam", 3, Timing(), on_lost=print)
    owner.open(SurfaceLayout(80, 80, 128, "bt709", False))
    for seq in range(2 * rounds):
        while (index := owner.acquire()) is None:
            loop.tick(1)
        now = loop.now_ns()
        marks = {"decode": (now, now), "copy": (now, now)}
        header = FrameHeader(
            source="cam", seq=seq, pts_s=0, captured_ns=now, deadline_ns=0, width=80, height=80, marks=marks
        )
        owner.offer(index, header, [Part("frame")])
        while len(g.of("counts")) <= seq:
            loop.tick(1)
        time.sleep(1 / 30 if seq >= rounds else 0)
    counts = g.of("counts")
    owner.close()
    loop.close()
    end(g)
    return {"busy": _beside(counts[100:rounds]), "idle": _beside(counts[rounds + 10 :])}


def _beside(counts: list[dict]) -> dict:
    hops: dict[str, list[float]] = {}
    beside = []
    for c in counts:
        last = "infer_tiles" if "infer_tiles>fusion" in c["hops_ms"] else "infer_global"
        beside.append(c["end_to_end_ms"] - sum(c["stages_ms"][s] for s in ("preprocess", last, "fusion")))
        for hop, ms in c["hops_ms"].items():
            hops.setdefault(hop, []).append(ms)
    kept = {hop: spread(ms) for hop, ms in hops.items() if "decode" not in hop}
    return {"beside_the_work_ms": spread(beside), "hops_ms": kept}


OWNER = """
import sys, time, json
from pathlib import Path
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import FrameHeader, Part, SurfaceLayout
from peoplecounter.common.ipc.producer import RingProducer
loop = Loop()
owner = RingProducer(loop, Path(sys.argv[1]), "surfaces", "cam", 3, Timing(), on_lost=print)
owner.open(SurfaceLayout(64, 64, 64, "bt709", False))
times = []
for seq in range(int(sys.argv[2])):
    index = owner.acquire()
    header = FrameHeader(source="cam", seq=seq, pts_s=0, captured_ns=0, deadline_ns=0, width=64, height=64)
    begin = time.perf_counter_ns()
    owner.offer(index, header, [Part("frame")])
    while not owner.idle:
        loop.tick(100)
    times.append((time.perf_counter_ns() - begin) / 1e6)
print(json.dumps(times))
"""


COPIER = """
import sys, time, json
import zmq
socket = zmq.Context().socket(zmq.REQ)
socket.connect(sys.argv[1])
pixels, times = bytearray(int(sys.argv[2])), []
for _ in range(int(sys.argv[3])):
    begin = time.perf_counter_ns()
    socket.send(pixels)
    socket.recv()
    times.append((time.perf_counter_ns() - begin) / 1e6)
print(json.dumps(times))
"""


def copied(nbytes: int, rounds: int) -> list[float]:
    """Milliseconds to hand a frame to another process as a message, and to hear that it is there."""
    with tempfile.TemporaryDirectory(prefix="pc-bench-", dir="/dev/shm") as folder:
        endpoint = f"ipc://{folder}/copies.sock"
        socket = zmq.Context.instance().socket(zmq.REP)
        socket.bind(endpoint)
        command = [sys.executable, "-c", COPIER, endpoint, str(nbytes), str(rounds)]
        sender = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(rounds):
            socket.recv()
            socket.send(b"")
        times = json.loads(sender.communicate()[0])
        socket.close(0)
    return times


def end_to_end(folder: Path, frames: int, **settings: str) -> list[float]:
    """Milliseconds of frames of the demo's clip, five a second, from packet to count."""
    g = new_group(DEMO_MODEL, {"url": str(plaza(folder)), "loop": True, "realtime": True, "fps": 5}, **settings)
    g.start()
    g.wait_counts(5, 60)
    first = g.counted()
    g.wait_counts(frames, 120)
    times = [c["end_to_end_ms"] for c in g.of("counts")[first:]]
    end(g)
    return times


def flat_out(folder: Path, infer_tiles: int, frames: int) -> list[float]:
    """Milliseconds between the counts of the demo's clip, as fast as it goes."""
    workers = {"preprocess__group": "4"} if infer_tiles > 1 else {}
    g = new_group(DEMO_MODEL, {"url": str(plaza(folder)), "loop": True}, **workers)
    g.start(*SERVICES, *(f"infer_tiles.{i}" for i in range(1, infer_tiles)))
    g.wait_counts(15, 60)
    first, begin = g.counted(), time.monotonic()
    g.wait_counts(frames, 120)
    ms = (time.monotonic() - begin) * 1000 / (g.counted() - first)
    end(g)
    return [ms]


def preprocessed(work: Callable[..., object], rounds: int) -> list[float]:
    """Milliseconds for the views of a frame of 1080p."""
    layout, read = SurfaceLayout(1920, 1080, 1920, "bt709", False), Input(640, 640)
    surface, times = np.random.default_rng(0).integers(0, 256, layout.nbytes, np.uint8), []
    for _ in range(rounds):
        begin = time.perf_counter()
        work(surface, layout, read, VIEWS)
        times.append((time.perf_counter() - begin) * 1000)
    return times


def gains(folder: Path, turns: int = 3) -> dict:
    """Each off and on, one after the other, several times."""
    nbytes = SurfaceLayout(1920, 1080, 1920, "bt709", False).nbytes
    out = np.empty((len(VIEWS), 3, 640, 640), np.float32)
    rows: dict[tuple[str, str], tuple[list[list[float]], list[list[float]]]] = {
        ("Zero copy", f"handing a 1080p frame of {nbytes / 1e6:.1f} MB on, and hearing that it was read"): ([], []),
        ("Fused kernel", "NV12 to the 11 views of 1080p; before: the plain way, in float64"): ([], []),
        ("Two infer_tiles", "a frame of 1080p, flat out, two cores"): ([], []),
        (TRACING, "1080p, 5 frames/s, packet to count, p50"): ([], []),
    }
    for _ in range(turns):
        measured = [
            (copied(nbytes, 300)[50:], handed(300)[50:]),
            (preprocessed(reference.reference, 2), preprocessed(lambda *given: kernels.fused(*given, out), 10)),
            (flat_out(folder, 1, 80), flat_out(folder, 2, 80)),
            (end_to_end(folder, 40), end_to_end(folder, 40, **TRACED)),
        ]
        for (off, on), times in zip(rows.values(), measured):
            off.append(times[0])
            on.append(times[1])
    *_, traced = rows.values()
    return {
        "rows": [gain(*key, "ms", off, on) for key, (off, on) in rows.items()],
        "distributions_ms": {
            name: distribution(np.concatenate(of)) for name, of in zip(("without", "with 1 % traced, metrics"), traced)
        },
    }


def link(rounds: int = 3000) -> dict:
    """One owner process, this process as consumer."""
    return {"offer_lease_release_ms": spread(handed(rounds)[100:])}


def handed(rounds: int) -> list[float]:
    """Milliseconds from an offer to its release, this process being the consumer."""
    with tempfile.TemporaryDirectory(prefix="pc-bench-", dir="/dev/shm") as folder:
        run_dir = Path(folder)
        command = [sys.executable, "-c", OWNER, folder, str(rounds)]
        owner = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        loop = Loop()
        consumer = RingConsumer(loop, run_dir, "surfaces", Hello(SCHEMA, "bench", os.getpid(), "frame", 2), Timing())
        while owner.poll() is None:
            loop.tick(20)
            for taken in consumer.offers():
                with consumer.lease(*taken):
                    pass
        times = json.loads(owner.stdout.read())
        consumer.close()
        loop.close()
    return times


def tracing(folder: Path, path_ms: float, frames: int = 20_000) -> dict:
    """Microseconds a frame of the calls that the five services make, exported to a file by their own thread."""
    result = {}
    for ratio in (0.0, 0.01, 1.0):
        telemetry = {"exporter": "file", "ratio": ratio, "file": str(folder / "traces.jsonl")}
        tracer = Tracer("bench.0", Settings(telemetry=telemetry), Counter())
        rounds = frames if ratio < 1 else frames // 10
        samples = []
        for _ in range(5):
            begin = time.perf_counter_ns()
            for seq in range(rounds // 5):
                header = FrameHeader(source="cam", seq=seq, pts_s=0, captured_ns=1, deadline_ns=0, width=1, height=1)
                if tracer.begin():
                    header = FrameHeader(
                        source="cam", seq=seq, pts_s=0, captured_ns=1, deadline_ns=0, width=1, height=1,
                        traceparent=root(tracer, header),
                    )  # fmt: skip
                for stage in ("preprocess", "infer_global", "infer_tiles", "fusion"):
                    tracer.record(stage, header, 1, 2, part=0)
            samples.append((time.perf_counter_ns() - begin) / 1000 / (rounds // 5))
        tracer.close()
        result[str(ratio)] = {"us_per_frame": round(statistics.median(samples), 3)}
    for entry in result.values():
        extra_us = entry["us_per_frame"] - result["0.0"]["us_per_frame"]
        entry["share_of_path"] = round(max(0.0, extra_us) / 1000 / path_ms, 5)
    return result


def root(tracer: Tracer, header: FrameHeader) -> str:
    span = tracer.open("decode", header, 1)
    span.end(2)
    return span.traceparent


def recovery(folder: Path) -> dict:
    """Seconds to ten complete counts, for each service."""
    clip = squares.make_clip(folder / "clip.mp4")
    model = squares.make_model(folder / "squares.onnx")
    result: dict[str, dict[str, float]] = {}
    for name in SERVICES:
        g = new_group(model, {"url": str(clip), "loop": True, "realtime": True})
        g.start()
        g.wait_counts(20)
        g.signal(name, signal.SIGKILL)
        time.sleep(0.3)
        g.start(name)
        killed_s = g.wait_counts(10)
        g.signal(name, signal.SIGSTOP)
        time.sleep(5)
        g.signal(name, signal.SIGCONT)
        frozen_s = g.wait_counts(10)
        end(g)
        result[name.partition(".")[0]] = {"after_kill_s": round(killed_s, 2), "after_freeze_s": round(frozen_s, 2)}
    return result


def machine() -> dict:
    model = next(
        (line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    packages = ("pyzmq", "msgspec", "numpy", "av", "onnxruntime", "opentelemetry-sdk")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": model.strip(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "cpu.json")
    out = parser.parse_args().out
    folder = ROOT / ".bench"
    folder.mkdir(exist_ok=True)
    result = {**machine(), "command": "make bench"}
    result["group"] = group(folder)
    result["path"] = path(folder)
    result["link"] = link()
    result["tracing"] = tracing(folder, result["path"]["busy"]["beside_the_work_ms"]["p50"])
    result["gains"] = [gains(folder)]
    result["recovery"] = recovery(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def show(result: dict) -> None:
    print(f"{result['cores']} cores, {result['cpu']}, Python {result['python']}\n")
    print(f"group     {result['group']['frames_per_s']} frames/s of 1080p, 9 images each")
    for stage, ms in result["group"]["stages_ms"].items():
        print(f"          {stage:<22}{ms['p50']:>9.2f} ms p50 {ms['p99']:>9.2f} p99")
    for state, part in result["path"].items():
        ms = part["beside_the_work_ms"]
        print(f"path      {f'a frame, {state} cores':<22}{ms['p50']:>9.3f} ms p50 {ms['p99']:>9.3f} p99")
        for hop, h in part["hops_ms"].items():
            print(f"          {hop:<22}{h['p50']:>9.3f} ms p50 {h['p99']:>9.3f} p99")
    ms = result["link"]["offer_lease_release_ms"]
    print(f"link      {'offer, lease, release':<22}{ms['p50']:>9.3f} ms p50 {ms['p99']:>9.3f} p99")
    for ratio, cost in result["tracing"].items():
        print(
            f"tracing   ratio {ratio:<16}{cost['us_per_frame']:>9.2f} us a frame, {cost['share_of_path']:.2%} of path"
        )
    for row in result["gains"][0]["rows"]:
        print(f"gain      {row['before']:>9.3f} > {row['after']:<9.3f} ms  {row['optimization']}: {row['what']}")
    for service, s in result["recovery"].items():
        print(
            f"recovery  {service:<22}{s['after_kill_s']:>9.2f} s after kill {s['after_freeze_s']:>6.2f} s after freeze"
        )


if __name__ == "__main__":
    main()
