"""`make soak`: minutes of more frames than the machine can count, one process killed every five seconds.

Every service but fusion has two processes, of which one is killed again and again, the other never; fusion is killed in
the first half. In the end every frame that a decoder gave a number must be counted or dropped with a reason, every
count right, and memory, descriptors, threads and shared memory where they were. Exit code 1: they are not. On a GPU:
`python -m tests.bench.soak --gpu --minutes 5`, with PLAN and FOOTAGE as in gpu.py.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from peoplecounter.common.ipc.messages import Stop
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.process.runtime import usage
from peoplecounter.common.settings import Settings
from peoplecounter.deploy.group import client, mps
from peoplecounter.services.decoder.service import ResumePoint
from tests.support import squares
from tests.support.cli import gpu_used_mb
from tests.support.group import Group

KILLED = ["decoder.a", "preprocess.0", "infer_global.0", "infer_tiles.0", "fusion.0"]
SPARED = ["decoder.b", "preprocess.1", "infer_global.1", "infer_tiles.1"]
KILL_EVERY_S, GONE_S = 5.0, 0.2
OLD_S = 5.0  # a process younger than this is not measured
EARLY, LATE = (0.15, 0.45), (0.7, 1.0)  # shares of the time that are compared
GROWTH = {"rss_mb": (8, 0.05), "fds": (3, 0), "threads": (1, 0)}  # what is still flat: so many more, or such a share
OVERALL = {"files": (6, 0), "shared_mb": (1, 0.05), "gpu_mb": (64, 0.02)}
CPU_FPS, GPU_FPS = 400, 150  # of each of two sources


class Soaked(Group):
    """A group whose boxes are not kept."""

    kinds = tuple(kind for kind in Group.kinds if kind != "detections")


def measure(pid: int) -> dict[str, float]:
    used = usage(pid)
    return {"rss_mb": used["memory_bytes"] / 2**20, "fds": used["descriptors"], "threads": used["threads"]}


def measure_all(run_dir: Path, gpu: bool) -> dict[str, float]:
    """What the processes share: files of the run directory, what lies in them, GPU memory."""
    files = [path for path in run_dir.iterdir() if path.is_file() or path.is_socket()]
    row = {"files": len(files), "shared_mb": sum(path.stat().st_size for path in files) / 1e6}
    if gpu:
        row["gpu_mb"] = gpu_used_mb()
    return row


def soak(g: Group, seconds: float, gpu: bool) -> tuple[dict[str, list[tuple[float, dict]]], Counter]:
    """(process -> its measurements by share of the time, how often each was killed); "all": what they share."""
    begin = time.monotonic()
    born = dict.fromkeys(g.processes, begin)
    rows: dict[str, list[tuple[float, dict]]] = {name: [] for name in (*g.processes, "all")}
    killed, kill_s, say_s = Counter(), begin + KILL_EVERY_S, begin
    while (now := time.monotonic()) < begin + seconds:
        share = (now - begin) / seconds
        if now >= kill_s:
            kill_s += KILL_EVERY_S
            name = random.choice(KILLED if share < 0.5 else KILLED[:-1])
            g.signal(name, signal.SIGKILL)
            killed[name] += 1
            time.sleep(GONE_S)
            g.start(name)
            born[name] = time.monotonic()
        for name, process in g.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended by itself with {process.returncode}\n{g.tail()}")
            if now - born[name] > OLD_S:
                rows[name].append((share, measure(process.pid)))
        with contextlib.suppress(FileNotFoundError):  # a socket that went while we looked
            rows["all"].append((share, measure_all(g.run_dir, gpu)))
        if now >= say_s:
            say_s += 60
            print(f"{now - begin:5.0f} s: {g.counted()} counted, {sum(killed.values())} killed", flush=True)
        time.sleep(1)
    return rows, killed


def levels(rows: list[tuple[float, dict]], limits: dict[str, tuple[float, float]]) -> dict[str, dict]:
    """Medians of the early and the late part, and whether that is flat."""
    table = {}
    for key, (more, part) in limits.items():
        early, late = ([r[key] for share, r in rows if a <= share <= b and key in r] for a, b in (EARLY, LATE))
        if early and late:
            e, l = statistics.median(early), statistics.median(late)  # noqa: E741
            table[key] = {"early": round(e, 1), "late": round(l, 1), "flat": l <= e + max(more, part * e)}
    return table


def end(g: Group) -> dict[str, dict]:
    """Ends the sources as `source remove` does; the books of each, beside how many frames its decoder numbered."""
    for name in (*KILLED, *SPARED):
        g.wait_for(lambda name=name: g.state(name) == "up", f"{name} to be up", 120)
    group = client.RunningGroup(Settings(run_dir=g.run_dir))
    books = {}
    for source in ("a", "b"):
        client.ask(group, [f"decoder.{source}"], Stop())
        g.wait_for(lambda source=source: g.of("status", source)[-1]["state"] == "ended", "the last frames", 60)
        g.processes[f"decoder.{source}"].wait(20)
        with contextlib.closing(Journal(g.run_dir / f"decoder.{source}.journal", ResumePoint)) as journal:
            numbered = journal.read().seq
        totals = g.totals(source)
        unheard = g.check_books(source, unheard=numbered)  # published by a fusion that was killed, so never received
        balanced = numbered == totals["counted"] + sum(totals["dropped"].values())
        books[source] = {"frames": numbered, **totals, "unheard": unheard, "balanced": balanced}
    return books


def wrong(g: Group) -> int:
    """Complete counts of the squares that are not what their frame shows."""
    return sum(c["complete"] and c["count"] != squares.expected(c["seq"]) for c in g.of("counts"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed")
    parser.add_argument("--out", type=Path, default=Path(".bench") / "soak.json")
    args = parser.parse_args()
    random.seed(args.seed)
    if args.gpu:
        from tests.bench.gpu import CLIP, PLAN, machine

        clip, model, backend = CLIP, PLAN, "cuda"
    else:
        from tests.bench.cpu import machine

        folder = Path(tempfile.mkdtemp(prefix="pc-soak-clip-"))
        clip, model, backend = squares.make_clip(folder / "a.mp4"), squares.make_model(folder / "m.onnx"), "cpu"
    source = {"url": str(clip), "loop": True, "realtime": True, "fps": GPU_FPS if args.gpu else CPU_FPS}
    run_dir = Path(tempfile.mkdtemp(prefix="pc-soak-", dir="/dev/shm"))
    wanted = Settings(run_dir=run_dir, backend=backend, engine={"model": str(model)})
    with mps.daemon(wanted) as found:
        g = Soaked(run_dir, model, {"a": source, "b": source}, backend=backend, log_level="error")
        g.environment |= found
        try:
            g.start(*KILLED, *SPARED)
            g.wait_for(lambda: all(g.of("counts", name) for name in ("a", "b")), "both sources to be counted", 120)
            rows, killed = soak(g, args.minutes * 60, args.gpu)
            books = end(g)
        finally:
            g.close()
    result = {**machine(), "command": " ".join(["python -m tests.bench.soak", *sys.argv[1:]]), "minutes": args.minutes}
    result |= {"killed": dict(killed), "books": books, "wrong_counts": None if args.gpu else wrong(g)}
    result["levels"] = {name: levels(r, OVERALL if name == "all" else GROWTH) for name, r in rows.items()}
    shutil.rmtree(run_dir)
    Path(g.log.name).unlink()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(show(result))


def show(result: dict) -> int:
    """Prints it; 1 if something is not as it should be."""
    print(f"\n{sum(result['killed'].values())} processes killed: {result['killed']}")
    for source, b in result["books"].items():
        counted = f"{b['counted']} counted ({b['incomplete']} incomplete, {b['unheard']} unheard)"
        print(f"{source}: {b['frames']} frames = {counted} + {b['dropped']}")
    print(f"complete but wrong: {result['wrong_counts']}\n\nearly > late")
    for name, table in result["levels"].items():
        cells = [f"{key} {t['early']:g} > {t['late']:g}{'' if t['flat'] else ' !'}" for key, t in table.items()]
        print(f"{name:<16}" + "".join(f"{cell:<24}" for cell in cells))
    flat = all(t["flat"] for table in result["levels"].values() for t in table.values())
    fine = flat and not result["wrong_counts"] and all(b["balanced"] for b in result["books"].values())
    print("everything is flat, the books balance" if fine else "NOT flat, or the books do not balance")
    return int(not fine)


if __name__ == "__main__":
    main()
