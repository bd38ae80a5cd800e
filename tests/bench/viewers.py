"""What viewers cost the counting: packet to count and drops of a camera, without anybody and with each kind of viewer.

`python -m tests.bench.viewers --turns 5 --out FILE.json`: the demo's plaza as a camera of 8 frames/s, so that the
machine is not busy; with `--gpu`, the 4K clip as a camera of 30 frames/s on a GPU (see tests/bench/gpu.py). In turns:
nobody looks; the dashboard is frozen while it holds a slot; ten browsers read 1 kB/s; one never acknowledges; and two
browsers that really look, which costs the work of scaling and encoding.
"""

import argparse
import contextlib
import json
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from peoplecounter.deploy.demo.plaza import render_clip
from tests.bench.cpu import machine
from tests.support.dashboard import Dashboard, acknowledge, parts
from tests.support.group import SERVICES, Group
from tests.support.rtsp import free_port

FPS, SECONDS, WARM_UP_FRAMES = 8, 12, 40
LOOKING = {"source": "cam", "width": 960, "fps": 30}


def nobody(dashboard: Dashboard, group: Group) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


@contextlib.contextmanager
def frozen(dashboard: Dashboard, group: Group) -> Iterator[None]:
    with dashboard.live(LOOKING) as connection:
        connection.recv(20)
        group.signal("dashboard.0", signal.SIGSTOP)
        yield
        group.signal("dashboard.0", signal.SIGCONT)
        time.sleep(0.5)


@contextlib.contextmanager
def ten_at_a_kilobyte(dashboard: Dashboard, group: Group) -> Iterator[None]:
    stop = threading.Event()
    sockets = [_slow(dashboard, stop) for _ in range(10)]
    yield
    stop.set()
    for one in sockets:
        one.close()


@contextlib.contextmanager
def never_acknowledging(dashboard: Dashboard, group: Group) -> Iterator[None]:
    with dashboard.live(LOOKING) as connection:
        connection.recv(20)
        yield


@contextlib.contextmanager
def two_looking(dashboard: Dashboard, group: Group) -> Iterator[None]:
    stop = threading.Event()
    looked = [threading.Thread(target=_look, args=(dashboard, stop)) for _ in range(2)]
    for thread in looked:
        thread.start()
    yield
    stop.set()
    for thread in looked:
        thread.join()


VIEWERS: dict[str, Callable[[Dashboard, Group], contextlib.AbstractContextManager[None]]] = {
    "nobody": nobody,
    "frozen dashboard": frozen,
    "ten browsers at 1 kB/s": ten_at_a_kilobyte,
    "one that never acknowledges": never_acknowledging,
    "two that look, 960 px": two_looking,
}


def _look(dashboard: Dashboard, stop: threading.Event) -> None:
    with dashboard.live(LOOKING) as connection:
        while not stop.is_set():
            about, _ = parts(connection.recv(20))
            acknowledge(connection, about)


def _slow(dashboard: Dashboard, stop: threading.Event) -> socket.socket:
    """A WebSocket client that reads 1 kB in a second."""
    protocol = ClientProtocol(parse_uri(f"ws://{dashboard.host}/api/v1/live"))
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", dashboard.port))
    protocol.send_request(protocol.connect())
    raw.sendall(b"".join(protocol.data_to_send()))
    while protocol.state.name == "CONNECTING":
        protocol.receive_data(raw.recv(256))
    protocol.send_text(json.dumps({"watch": [LOOKING]}).encode())
    raw.sendall(b"".join(protocol.data_to_send()))

    def read() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(1):
                raw.recv(1024)

    threading.Thread(target=read, daemon=True).start()
    return raw


def measured(group: Group, seconds: float) -> dict:
    """{"p50_ms", "p99_ms", "frames", "dropped"} of the time from now on."""
    begin, before = len(group.of("counts")), sum(group.totals()["dropped"].values())
    time.sleep(seconds)
    times_ms = [count["end_to_end_ms"] for count in group.of("counts")[begin:]]
    p50, p99 = np.percentile(times_ms, [50, 99]).round(2).tolist()
    dropped = sum(group.totals()["dropped"].values()) - before
    return {"p50_ms": p50, "p99_ms": p99, "frames": len(times_ms), "dropped": dropped}


@contextlib.contextmanager
def plaza(listen: str) -> Iterator[Group]:
    """The demo's own camera, counted on the CPU."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    clip = folder / "plaza.mp4"
    render_clip(clip, folder / "truth.csv", 1920, 1080, 96, seed=1)
    source = {"url": str(clip), "loop": True, "realtime": True, "fps": FPS}
    (folder / "group").mkdir(mode=0o700)
    group = Group(folder / "group", Path(), {"cam": source}, dashboard__listen=listen, engine__model="")
    group.start(*SERVICES, "dashboard.0")
    try:
        yield group
    finally:
        group.close()


@contextlib.contextmanager
def street(listen: str) -> Iterator[Group]:
    """The 4K clip, counted on the GPU."""
    from tests.bench import gpu

    source = {"url": str(gpu.CLIP), "loop": True, "realtime": True, "fps": 30}
    with gpu.group({"cam": source}, infer_tiles=2, dashboard__listen=listen) as group:
        group.start("dashboard.0")
        yield group


def gpu_machine() -> dict:
    from tests.bench import gpu

    return gpu.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="a 4K camera on the GPU instead of the demo's on the CPU")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each kind in each turn")
    parser.add_argument("--out", type=Path, default=Path(".bench") / "viewers.json")
    args = parser.parse_args()
    about, camera = (gpu_machine(), street) if args.gpu else (machine() | {"fps": FPS}, plaza)
    port = free_port()
    runs: dict[str, list[dict]] = {name: [] for name in VIEWERS}
    with camera(f"127.0.0.1:{port}") as group:
        dashboard = Dashboard(port)
        dashboard.wait(60)
        group.wait_counts(WARM_UP_FRAMES, 120)
        for turn in range(args.turns):
            for name in list(VIEWERS)[turn % len(VIEWERS) :] + list(VIEWERS)[: turn % len(VIEWERS)]:
                with VIEWERS[name](dashboard, group):
                    time.sleep(1)
                    runs[name].append(measured(group, args.seconds))
                time.sleep(1)
                print(name, runs[name][-1], flush=True)
    medians = {
        name: {key: statistics.median(run[key] for run in done) for key in ("p50_ms", "p99_ms", "dropped")}
        for name, done in runs.items()
    }
    result = {**about, "command": " ".join(["python -m tests.bench.viewers", *sys.argv[1:]])}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**result, "medians": medians, "runs": runs}, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
