"""Ten thousand hostile requests and messages to the dashboard of a real group: nothing dies, memory stays level."""

import json
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.dashboard import Dashboard, acknowledge, parts
from tests.support.group import SERVICES
from tests.support.rtsp import free_port

OF_SCHEMA, WORDS, FRAMES = 100, 4000, 4000  # examples of each operation, raw requests, WebSocket frames
GROWS_MB = 25.0  # caches and pools; ten thousand leaks of a kilobyte would be 10 MB for each kind
PIECES = [
    b"GET ", b"PUT ", b"POST ", b"/", b"/api/v1/sources", b"/api/v1/live", b"/../../etc/passwd",
    b"/static/%2e%2e/api.py", b" HTTP/1.1\r\n", b" HTTP/9.9\r\n", b"Host: 127.0.0.1\r\n", b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: websocket\r\n",
    b"Connection: upgrade\r\n", b"Cookie: peoplecounter=", b"Authorization: Bearer ", b"\r\n", b"\r\n\r\n", b"\0",
    b"\xff" * 50, b"A" * 5000, b'{"watch":', b"%00%ff",
]  # fmt: skip


def memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def attack_by_schema(dashboard: Dashboard, examples: int, folder: Path) -> None:
    """What Schemathesis makes of the OpenAPI document; every answer must be one that the document knows."""
    arguments = [
        "run", f"{dashboard.url}/api/v1/openapi.json", "--max-examples", str(examples), "--phases", "fuzzing",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance", "--no-color",
        "--exclude-path-regex", "events|restart|scale|picture", "--generation-database", "none",
    ]  # fmt: skip
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300, cwd=folder
    )
    assert done.returncode == 0, done.stdout[:9000] + done.stderr[-2000:]


def attack_by_words(dashboard: Dashboard, dice: random.Random, requests: int) -> None:
    for _ in range(requests // 8):
        with socket.create_connection(("127.0.0.1", dashboard.port), timeout=5) as raw:
            begin = b"GET / HTTP/1.1\r\nHost: " + dashboard.host.encode() + b"\r\n" if dice.random() < 0.3 else b""
            try:
                for _ in range(8):
                    raw.sendall(begin + b"".join(dice.choices(PIECES, k=dice.randint(1, 12))))
            except OSError:
                continue  # it has hung up


def attack_by_frames(dashboard: Dashboard, dice: random.Random, frames: int) -> None:
    sent = 0
    while sent < frames:
        try:
            with dashboard.live({"source": "cam", "width": 64, "fps": 60}, close_timeout=0.2) as connection:
                for _ in range(20):
                    sent += 1
                    watch, ack = '{"watch":[{"source":"cam"}]}', {"ack": "cam", "seq": dice.randint(-9, 99)}
                    text = dice.choice([watch, json.dumps(ack)])
                    if dice.random() < 0.3:
                        text = "".join(chr(dice.randint(1, 0xD7FF)) for _ in range(dice.choice([1, 30, 3000])))
                    connection.send(text.encode() if dice.random() < 0.1 else text)
                    if dice.random() < 0.05:
                        connection.socket.sendall(dice.randbytes(20))  # no frame at all
        except (ConnectionClosed, InvalidHandshake, OSError):
            continue


@pytest.mark.parametrize("seed", [1])
def test_ten_thousand_hostile_requests(group, clip, tmp_path, seed):
    port, dice = free_port(), random.Random(seed)
    source = {"url": str(clip), "loop": True, "realtime": True}
    g = group({"cam": source}, dashboard__listen=f"127.0.0.1:{port}", areas='{"hall": {"lines": ["cam.door"]}}')
    g.start(*SERVICES, "dashboard.0")
    dashboard = Dashboard(port)
    dashboard.wait()
    process = g.processes["dashboard.0"]
    attack_by_schema(dashboard, 3, tmp_path)
    attack_by_words(dashboard, dice, 200)
    attack_by_frames(dashboard, dice, 200)
    before_mb = memory_mb(process.pid)
    attack_by_schema(dashboard, OF_SCHEMA, tmp_path)
    attack_by_words(dashboard, dice, WORDS)
    attack_by_frames(dashboard, dice, FRAMES)
    assert process.poll() is None and memory_mb(process.pid) < before_mb + GROWS_MB
    assert dashboard.json("/healthz") == {"status": "ok"}
    with dashboard.live({"source": "cam", "width": 64}) as connection:
        for _ in range(3):
            about, jpeg = parts(connection.recv(10))
            assert jpeg and about["count"] == len(about["boxes"])
            acknowledge(connection, about)
    g.wait_counts(30)
    assert {s["state"] for s in g.of("service")} == {"up"}  # no process was silent or ended
    g.check_books()
