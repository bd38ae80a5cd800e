"""Nothing grows: descriptors, sockets, mappings and shared memory are what they were after fifty restarts."""

import gc
from pathlib import Path

from peoplecounter.common.ipc.messages import SurfaceLayout
from tests.link.test_link import LAYOUT, World, show, waiting

RESTARTS = 50


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings():
    return sum(".shm" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_fifty_consumers_come_and_go(run_dir):
    world = World(run_dir)
    owner = world.owner(world.loop())
    level = None
    for restart in range(RESTARTS):
        consumer = world.consumer()
        show(owner, restart, restart)
        world.until(lambda c=consumer: waiting(c), "the offer")
        with consumer.lease(*consumer.take()) as pixels:
            assert pixels[0] == restart
        del pixels
        world.until(lambda: owner.idle, "the release")
        consumer.close()
        world.loops.pop().close()
        world.until(lambda: not owner.consumers, "its leaving")
        gc.collect()
        level = level or descriptors()  # after the first
    assert descriptors() <= level + 1
    assert mappings() == 1  # the owner's
    world.loops[0].close()


def test_fifty_epochs_leave_one_ring(run_dir):
    world = World(run_dir)
    owner, consumer = world.owner(), world.consumer()
    level = None
    for epoch in range(RESTARTS):
        owner.open(SurfaceLayout(32 + 2 * epoch, 32, 256, "bt709", False))
        show(owner, epoch, 1)
        world.until(lambda: waiting(consumer), "the offer")
        with consumer.lease(*consumer.take()):
            pass
        world.until(lambda: owner.idle, "the release")
        gc.collect()
        level = level or descriptors()
    assert descriptors() == level
    assert len(list(run_dir.glob("*.shm"))) == 1
    assert mappings() == 2  # the owner's and the consumer's
    for loop in world.loops:
        loop.close()


def test_the_counters_here_can_see_a_leak(run_dir):
    world = World(run_dir)
    before = descriptors(), mappings()
    owner = world.owner()
    assert descriptors() > before[0]
    assert mappings() == before[1] + 1
    assert owner.layout == LAYOUT
    for loop in world.loops:
        loop.close()
