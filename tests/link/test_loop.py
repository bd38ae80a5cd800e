"""How long a loop sleeps."""

import os

from peoplecounter.common.ipc.loop import Loop


def test_a_tick_sleeps_no_longer_than_everybody_allows():
    asked = []
    loop = Loop(lambda: 7)
    loop._poller.poll = lambda timeout_ms: asked.append(timeout_ms) or []  # type: ignore[method-assign]
    loop.tick()
    allowed = [1000, 3]
    for i in range(2):
        loop.sleep_at_most(lambda now_ns, i=i: allowed[i] if now_ns == 7 else -1)
    loop.tick()
    allowed[0] = 0
    loop.tick(20)
    assert asked == [50, 3, 0]
    loop.close()


def test_a_tick_that_polls_still_hears():
    loop, heard = Loop(), []
    fd = os.eventfd(1)
    loop.sleep_at_most(lambda now_ns: 0)
    loop.watch(fd, lambda: heard.append(os.eventfd_read(fd)))
    loop.tick()
    loop.tick()
    assert heard == [1]
    loop.close()
    os.close(fd)
