"""Counts through a real broker: another program's subscriber gets them, after the broker was away as well."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.cli import ROOT, command
from tests.support.rtsp import free_port

NO_HOST = "Invalid broker URL: use {0}://HOST or {0}://HOST:PORT."
BROKERS = {"mqtt": "mosquitto", "nats": "nats-server"}


def start_broker(kind: str, port: int, folder) -> subprocess.Popen:
    arguments = {"mqtt": ["-p", port], "nats": ["-a", "127.0.0.1", "-p", port]}[kind]
    with (folder / "broker.log").open("a") as log:
        process = subprocess.Popen([BROKERS[kind], *map(str, arguments)], stdout=log, stderr=log)
    for _ in range(100):
        with socket.socket() as one:
            if not one.connect_ex(("127.0.0.1", port)):
                return process
        time.sleep(0.05)
    raise RuntimeError((folder / "broker.log").read_text())


SUBSCRIBERS = {
    "mqtt": """
import sys, paho.mqtt.client as m
c = m.Client(m.CallbackAPIVersion.VERSION2)
c.on_connect = lambda c, *a: c.subscribe("peoplecounter/#", qos=1)
c.on_message = lambda c, d, x: print(x.topic.replace("/", "."), x.payload.decode(), flush=True)
c.connect("127.0.0.1", int(sys.argv[1])); c.loop_forever()
""",
    "nats": """
import asyncio, sys, nats
async def main():
    async def got(x): print(x.subject, x.data.decode(), flush=True)
    c = await nats.connect(f"nats://127.0.0.1:{sys.argv[1]}", max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    await c.subscribe("peoplecounter.>", cb=got)
    await asyncio.sleep(600)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("kind", BROKERS)
def test_counts_arrive_whenever_the_broker_is_there(kind, group, run_dir, clip, tmp_path):
    """It starts after the bridge, dies, and comes back."""
    if not shutil.which(BROKERS[kind]):
        pytest.skip(f"this machine lacks {BROKERS[kind]}")
    port, heard, message = free_port(), tmp_path / "heard", tmp_path / "message"
    lines = {"door": {"points": [[0.1, 0.5], [0.9, 0.5]], "inside": [0.5, 0.9]}}
    source = {"url": str(clip), "realtime": True, "loop": True, "lines": lines}
    running = group({"cam": source}, areas=json.dumps({"shop": {"lines": ["cam.door"]}}))
    argv, environment = command(run_dir, "bridge", kind, f"{kind}://user:secret@127.0.0.1:{port}")
    processes = []

    def lines() -> list[list[str]]:
        *whole, _ = heard.read_text().split("\n")  # the last one may still be being written
        return [line.split(" ", 1) for line in whole]

    def counts() -> list[dict]:
        return [json.loads(body) for topic, body in lines() if topic == "peoplecounter.counts.cam"]

    try:
        running.start()
        running.wait_counts(1)
        with heard.open("w") as out, message.open("w") as err:
            processes.append(bridge := subprocess.Popen(argv, env=environment, cwd=ROOT, stderr=err))
            running.wait_counts(40)
            processes.append(broker := start_broker(kind, port, tmp_path))
            processes.append(subprocess.Popen([sys.executable, "-c", SUBSCRIBERS[kind], str(port)], stdout=out))
        running.wait_for(lambda: len(counts()) >= 20, f"counts through the broker: {message.read_text()}")
        published = {c["seq"]: c["count"] for c in running.of("counts")}
        assert all(published[c["seq"]] == c["count"] for c in counts()[:10])
        others = {"peoplecounter.status.cam", "peoplecounter.service.preprocess.0", "peoplecounter.areas.shop"}
        running.wait_for(lambda: {topic for topic, _ in lines()} >= others, "what else is published")
        broker.kill()
        broker.wait()
        before = len(counts())
        running.wait_counts(5)
        processes.append(start_broker(kind, port, tmp_path))
        running.wait_for(lambda: len(counts()) >= before + 20, f"counts after its return: {message.read_text()}")
        bridge.send_signal(signal.SIGTERM)
        assert bridge.wait(10) == 0
        assert "secret" not in message.read_text()
        assert "disconnected" in message.read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("kafka", "kafka://x"), "Unknown broker 'kafka': use mqtt or nats."),
        (("mqtt", "http://x"), "Invalid broker URL: the URL of mqtt starts with mqtt:// or mqtts://."),
        (("nats", "nats://user:secret@host:port"), NO_HOST.format("nats")),
        (("mqtt", "mqtt://"), NO_HOST.format("mqtt")),
    ],
)
def test_another_broker_is_refused(run_dir, arguments, message):
    argv, environment = command(run_dir, "bridge", *arguments)
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (78, f"peoplecounter: {message}\n")
