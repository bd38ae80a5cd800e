"""Engines that start without a model on their disk: served in pieces, summed up, bounded, from whom it should be."""

import hashlib
import subprocess
import threading
from pathlib import Path

import pytest
import zmq

from peoplecounter.common.engine import fetch as stream
from peoplecounter.common.engine.model import Model, read_model
from peoplecounter.common.engine.sidecar import Sidecar, sidecar_path
from peoplecounter.common.errors import CONFIG, SOFTWARE, AppError
from peoplecounter.common.files import sha256
from peoplecounter.common.ipc.messages import SCHEMA, Chunk, Fetch, decode, encode
from peoplecounter.common.keys import key_pair
from peoplecounter.common.settings import EngineSettings
from peoplecounter.deploy.engine.serve import PIECE_BYTES, Item, Server, items
from tests.support.cli import argv
from tests.support.squares import FRAMES, expected, make_model

ROOT = Path(__file__).parents[2]
BIG = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"


@pytest.fixture
def serve():
    servers = []

    def start(served, endpoint="tcp://127.0.0.1:*", secret=None):
        server = Server(endpoint, served, secret)
        thread = threading.Thread(target=server.run)
        servers.append((server, thread))
        where = server.endpoint
        thread.start()
        return server, where

    yield start
    for server, thread in servers:
        server.running = False
        thread.join()


@pytest.fixture
def client():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_group_counts_with_a_served_model(group, clip, model, tmp_path, runtime):
    key = tmp_path / "key"
    command = argv("engine", "serve", model, "--bind", "tcp://127.0.0.1:*")
    server = subprocess.Popen([*command, "--key", str(key)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        _, told = server.stdout.readline(), server.stdout.readline()
        endpoint, public = told.split('"')[1::2]
        assert key.stat().st_mode & 0o777 == 0o600 and public == key_pair(key)[0].decode()
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        settings = {"server_key": public, "sha256": digest, "runtime": runtime, "precision": "fp32"}
        g = group({"cam": {"url": str(clip)}}, **{f"engine__{key}": value for key, value in settings.items()})
        g.environment["PEOPLECOUNTER_ENGINE__MODEL"] = endpoint
        g.start()
        g.wait_for(g.ended, "the end", 60)
        assert [c["count"] for c in g.of("counts")] == [expected(seq) for seq in range(FRAMES)]
    finally:
        server.terminate()
    assert server.wait(10) == 0


def test_pieces_become_the_whole(serve):
    server, endpoint = serve(items(Model("m", BIG), b"weights"))
    assert stream.fetch(endpoint, "model", "", len(BIG)) == (BIG, b"")
    assert stream.fetch(endpoint, "weights", "", 99) == (b"weights", b"")
    assert server.answered == 5 and server.malformed == 0


def test_what_is_not_served_or_too_large_gives_a_clear_error(serve):
    _, endpoint = serve(items(Model("m", BIG), None))
    with pytest.raises(AppError, match="refused the weights: it serves no such item"):
        stream.fetch(endpoint, "weights", "", 1 << 30)
    with pytest.raises(
        AppError, match=r"has 1572867 bytes, more than the 1572866 that engine\.limit_mb allows"
    ) as refusal:
        stream.fetch(endpoint, "model", "", len(BIG) - 1)
    assert refusal.value.code == CONFIG


def test_content_that_is_not_what_was_announced_is_refused(serve):
    _, endpoint = serve({"model": Item(BIG, hashlib.sha256(b"another").hexdigest())})
    with pytest.raises(AppError, match="does not match the hash of its model") as refusal:
        stream.fetch(endpoint, "model", "", 1 << 30)
    assert refusal.value.code == SOFTWARE


def test_a_server_that_changes_its_mind_is_refused(serve):
    server, endpoint = serve(items(Model("m", BIG), None))
    answer = server._reply

    def reply(wanted):
        server._served = items(Model("m", BIG[::-1]), None)
        return answer(wanted)

    first = answer(Fetch(SCHEMA, "model", 0))
    server._reply = lambda wanted: first if wanted.offset == 0 else reply(wanted)
    with pytest.raises(AppError, match="changed while it was read"):
        stream.fetch(endpoint, "model", "", 1 << 30)


def test_only_the_holder_of_the_key_is_believed(serve, tmp_path, monkeypatch):
    public, secret = key_pair(tmp_path / "key", make=True)
    other, _ = key_pair(tmp_path / "other", make=True)
    _, endpoint = serve(items(Model("m", b"model"), None), secret=secret)
    assert stream.fetch(endpoint, "model", public.decode(), 99)[0] == b"model"
    monkeypatch.setattr(stream, "SILENT_S", 1.5)
    for wrong in (other.decode(), ""):
        with pytest.raises(AppError, match="No server answers"):
            stream.fetch(endpoint, "model", wrong, 99)


def test_beyond_loopback_a_key_is_needed_at_both_ends():
    with pytest.raises(AppError, match=r"set engine\.server_key"):
        stream.fetch("tcp://192.0.2.1:5580", "model", "", 99)
    with pytest.raises(AppError, match="use --key FILE"):
        Server("tcp://0.0.0.0:5580", {}, None)
    for nowhere in ("tcp://nowhere", "tcp://a b:5580", "tcp://127.0.0.1:5580\n"):
        with pytest.raises(AppError, match="Invalid model address"):
            stream.fetch(nowhere, "model", "", 99)
    with pytest.raises(AppError, match="Cannot connect to the model server"):
        stream.fetch("tcp://127.0.0.1:5580", "model", "~" * 40, 99)


def test_malformed_requests_are_counted_and_the_next_one_is_served(serve, client):
    server, endpoint = serve(items(Model("m", b"model"), None))
    socket = client.socket(zmq.DEALER)
    socket.connect(endpoint)
    for hostile in (b"", b"\x80", b"\xc1" * 100, encode(Fetch(SCHEMA, "model", 0))[:-3], [b"two", b"frames"]):
        socket.send_multipart(hostile if isinstance(hostile, list) else [hostile])
    for wanted in (Fetch(99, "model", 0), Fetch(SCHEMA, "model", 1 << 40), Fetch(SCHEMA, "model", 0)):
        socket.send(encode(wanted))
    assert "schema" in decode(socket.recv()).reason
    assert decode(socket.recv()).data == b""
    assert isinstance(last := decode(socket.recv()), Chunk) and last.data == b"model"
    assert server.malformed == 5


def test_a_client_that_does_not_read_holds_little(serve, client):
    """Pieces for it are dropped; another client is served, and so is it when it asks again."""
    _, endpoint = serve(items(Model("m", BIG), None))
    mute = client.socket(zmq.DEALER)
    mute.setsockopt(zmq.RCVHWM, 1)
    mute.connect(endpoint)
    for _ in range(100):
        mute.send(encode(Fetch(SCHEMA, "model", 0)))
    assert stream.fetch(endpoint, "model", "", len(BIG))[0] == BIG
    received = 0
    while mute.poll(500):
        mute.recv()
        received += 1
    assert 0 < received < 50


def test_ipv6_loopback(serve):
    _, endpoint = serve(items(Model("m", b"model"), None), "tcp://[::1]:*")
    assert stream.fetch(endpoint, "model", "", 99)[0] == b"model"


def test_only_the_weights_that_a_plan_was_built_from_are_served(tmp_path):
    """A sidecar from elsewhere could name any file of this machine."""
    plan, secret = tmp_path / "x.plan", tmp_path / "secret"
    plan.write_bytes(b"ftrt")
    secret.write_text("secret")
    sidecar = Sidecar(
        sha256(b"ftrt"), 4, "secret", sha256(b"another"), "10.15.1.29", "GPU", "9.0", False, False, True, "any"
    )
    sidecar_path(plan).write_bytes(sidecar.encode())
    command = argv("engine", "serve", plan, "--bind", "tcp://127.0.0.1:*")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == CONFIG and "is not the one that" in done.stderr


def test_a_missing_server_gives_a_clear_error(monkeypatch):
    monkeypatch.setattr(stream, "SILENT_S", 0.5)
    with pytest.raises(AppError, match=r"No server answers at tcp://127\.0\.0\.1:9") as refusal:
        stream.fetch("tcp://127.0.0.1:9", "model", "", 99)
    assert refusal.value.code == SOFTWARE


def test_weights_in_another_file_travel_and_are_hashed_with_the_model(serve, tmp_path):
    stored = read_model(EngineSettings(model=str(make_model(tmp_path / "m.onnx", external="weights.bin"))))
    _, endpoint = serve(items(stored, None))
    fetched = read_model(EngineSettings(model=endpoint, sha256=sha256(stored.blob)))
    assert fetched.data == stored.data and fetched.files == stored.files and stored.files
