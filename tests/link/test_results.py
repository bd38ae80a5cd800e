"""What fusion is told of the processes that send it results."""

import pytest

from peoplecounter.common.ipc.link import Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SCHEMA, Hello
from peoplecounter.common.ipc.results import ResultReceiver


@pytest.fixture
def told(run_dir):
    """(the receiver, what it has told of its senders)."""
    loop, changes = Loop(), []
    run_dir.mkdir(mode=0o700, exist_ok=True)
    receiver = ResultReceiver(
        loop, run_dir, "epoch", Timing.of_ms(250, 2000), lambda body, receipt: None,
        lambda name, state: changes.append((name, state)),
    )  # fmt: skip
    yield receiver, changes
    receiver.close()
    loop.close()


def peer(receiver, number, name="decoder.cam"):
    one = Peer(bytes([number]), Hello(SCHEMA, name, 1), -1, 0, number=number)
    receiver._link.peers[one.identity] = one
    return one


def test_the_end_of_a_predecessor_is_not_that_of_its_successor(told):
    receiver, changes = told
    first, second, other = peer(receiver, 1), peer(receiver, 2), peer(receiver, 3, "preprocess.0")
    receiver._on_silent(first)
    del receiver._link.peers[first.identity]
    receiver._on_gone(first)
    assert changes == []
    receiver._on_silent(second)
    receiver._on_gone(other)
    assert changes == [("decoder.cam", "silent"), ("preprocess.0", "down")]
    receiver._link.peers.clear()


def test_a_successor_that_ends_before_its_predecessor_is_down(told):
    receiver, changes = told
    peer(receiver, 1)
    second = peer(receiver, 2)
    del receiver._link.peers[second.identity]
    receiver._on_gone(second)
    assert changes == [("decoder.cam", "down")]
    receiver._link.peers.clear()
