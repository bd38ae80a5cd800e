"""Counts beyond this machine: only for those whose key the group knows, and only from the group whose key they know."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peoplecounter.common.errors import CONFIG, NO_INPUT, AppError
from peoplecounter.common.keys import key_pair, public_keys
from peoplecounter.deploy.group.subscribe import messages
from tests.support.cli import argv
from tests.support.rtsp import free_port

ROOT = Path(__file__).parents[2]


def heard(endpoint, keys, seconds):
    """How many counts come within some seconds; returns at the third."""
    stop, end, found = threading.Event(), time.monotonic() + seconds, 0
    for message in messages(endpoint, ("counts",), stop, keys):
        found += message is not None
        if found == 3 or time.monotonic() > end:
            break
    return found


@pytest.fixture
def published(group, clip, tmp_path):
    """(group, its TCP endpoint, its public key, an allowed subscriber's keys, the file of those allowed)."""
    public, _ = key_pair(tmp_path / "group.key", make=True)
    mine = key_pair(tmp_path / "mine.key", make=True)
    allowed = tmp_path / "subscribers"
    allowed.write_text(f"# who may subscribe\n\n{mine[0].decode()} the office\n")
    port = free_port()
    g = group(
        {"cam": {"url": str(clip), "realtime": True, "loop": True}},
        fusion__publish=f"tcp://0.0.0.0:{port}",
        fusion__key=str(tmp_path / "group.key"),
        fusion__subscribers=str(allowed),
    )
    g.start()
    g.wait_counts(5)  # on the private socket, which asks for no key
    return g, f"tcp://127.0.0.1:{port}", public, mine, allowed


def test_only_known_keys_receive_anything(published, tmp_path):
    g, endpoint, public, mine, allowed = published
    assert heard(endpoint, (public, *mine), 10) == 3
    stranger, fake = (key_pair(tmp_path / f"{name}.key", make=True) for name in ("stranger", "fake"))
    assert heard(endpoint, None, 2) == 0
    assert heard(endpoint, (public, *stranger), 2) == 0
    assert heard(endpoint, (fake[0], *mine), 2) == 0
    assert f"rejected a subscriber with the key {stranger[0].decode()}" in g.tail()
    with allowed.open("a") as file:
        file.write(f"{stranger[0].decode()} the gate\n")
    assert heard(endpoint, (public, *stranger), 10) == 3
    allowed.write_text("no keys at all\n")
    assert heard(endpoint, (public, *mine), 2) == 0
    assert "new subscribers are rejected" in g.tail()
    g.wait_counts(10)
    g.check_books()


def test_watch_shows_a_group_on_another_machine(published, tmp_path):
    _, endpoint, public, _, _ = published
    command = argv("watch", endpoint, "--json", "--key", tmp_path / "mine.key", "--server-key", public.decode())
    watch = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert '"count":' in watch.stdout.readline()
    finally:
        watch.kill()
        watch.communicate()


@pytest.mark.parametrize(
    "settings, code, output",
    [
        ({"publish": "tcp://0.0.0.0:5570"}, CONFIG, "beyond loopback: set fusion.key"),
        ({"publish": "tcp://10.0.0.1:5570", "key": "KEY"}, CONFIG, "set both key and subscribers"),
        ({"publish": "tcp://127.0.0.1"}, CONFIG, "tcp://HOST:PORT"),
        ({"publish": "tcp://0.0.0.0:1", "key": "/none", "subscribers": "KEY"}, NO_INPUT, "/none does not exist"),
        ({"publish": "tcp://0.0.0.0:1", "key": "KEY", "subscribers": "/none"}, NO_INPUT, "/none cannot be read"),
        ({"publish": "tcp://192.0.2.1:5570", "key": "KEY", "subscribers": "LIST"}, CONFIG, "cannot be published on"),
    ],
)
def test_what_cannot_be_published_gives_a_clear_error(run_dir, tmp_path, settings, code, output):
    public, _ = key_pair(tmp_path / "KEY", make=True)
    (tmp_path / "LIST").write_text(public.decode())
    environment = {f"PEOPLECOUNTER_FUSION__{name.upper()}": value for name, value in settings.items()}
    environment |= {
        name: str(tmp_path / value) for name, value in environment.items() if value in ("KEY", "LIST")
    }  # fmt: skip
    environment = {**os.environ, "PEOPLECOUNTER_RUN_DIR": str(run_dir), **environment}
    command = [sys.executable, "-m", "peoplecounter.services.fusion"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == code and output in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path):
    command = argv("keys", tmp_path / "key")
    first, second = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2))
    assert first.stdout == second.stdout and len(first.stdout.strip()) == 40
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "key").chmod(0o644)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == CONFIG and "chmod 600" in done.stderr
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(AppError, match="does not contain a secret CURVE key"):
        key_pair(tmp_path / "empty")
    with pytest.raises(AppError, match="does not exist"):
        key_pair(tmp_path / "none")


def test_lists_of_public_keys(tmp_path):
    path, (public, _) = tmp_path / "list", key_pair(tmp_path / "key", make=True)
    path.write_text(f"# people\n#\n\n{public.decode()}  the  office \n")
    assert public_keys(path) == {public: "the  office"}
    path.write_text(f"{public.decode()}\nshort key\n")
    with pytest.raises(AppError, match=r"Line 2 of .* does not start with a public key"):
        public_keys(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(AppError, match="it is not a text file"):
        public_keys(path)
