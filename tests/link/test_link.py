"""Two ends of a link in one process, over real sockets, with a clock that the test owns."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import zmq

from peoplecounter.common.errors import CONFIG, AppError
from peoplecounter.common.ipc.consumer import RingConsumer
from peoplecounter.common.ipc.link import Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import (
    MAX_BYTES,
    SCHEMA,
    Beat,
    Detections,
    FrameHeader,
    Hello,
    Offer,
    Part,
    Release,
    SlotRef,
    Status,
    SurfaceLayout,
    encode,
)
from peoplecounter.common.ipc.producer import RingProducer
from peoplecounter.common.ipc.results import WINDOW, ResultReceiver, ResultSender

SECOND = 1_000_000_000
LAYOUT = SurfaceLayout(32, 32, 64, "bt709", False)
TIMING = Timing(beat_ns=SECOND // 10, silent_ns=2 * SECOND)


class World:
    """Owners and consumers on one fake clock, ticked in turn until something holds."""

    def __init__(self, run_dir):
        self.run_dir, self.now_ns, self.loops, self.lost = run_dir, SECOND, [], []

    def loop(self):
        self.loops.append(Loop(lambda: self.now_ns))
        return self.loops[-1]

    def owner(self, loop=None, slots=3, instance="cam"):
        owner = RingProducer(
            loop or self.loop(), self.run_dir, "surfaces", instance, slots, TIMING,
            on_lost=lambda header, reason, part: self.lost.append((header.seq, reason)), lent="picture",
        )  # fmt: skip
        owner.open(LAYOUT)
        return owner

    def real_loop(self):
        """A loop on the real clock, for a world of one in a child process."""
        self.loops.append(Loop())
        return self.loops[-1]

    def consumer(self, credits=2, schema=SCHEMA, name="preprocess.0", pid=None, loop=None, part="frame", **options):
        hello = Hello(schema, name, pid or os.getpid(), part, credits)
        return RingConsumer(loop or self.loop(), self.run_dir, "surfaces", hello, TIMING, **options)

    def viewer(self, **options):
        return self.consumer(credits=1, name="dashboard.0", part="picture", **options)

    def turn(self, rounds=1, step_ns=SECOND // 100):
        for _ in range(rounds):
            self.now_ns += step_ns
            for loop in self.loops:
                loop.tick(1)

    def until(self, condition, what):
        for _ in range(400):
            if condition():
                return
            self.turn()
        raise AssertionError(f"never: {what}")


@pytest.fixture
def world(run_dir):
    world = World(run_dir)
    yield world
    for loop in world.loops:
        loop.close()


def show(owner, seq, fill, deadline_ns=0):
    """Offers a frame whose pixels are all `fill`."""
    index = owner.acquire()
    owner.slot(index)[:] = fill
    header = FrameHeader(source="cam", seq=seq, pts_s=0, captured_ns=0, deadline_ns=deadline_ns, width=32, height=32)
    owner.offer(index, header, [Part("frame")])


def waiting(consumer):
    return sum(len(owner.offers) for owner in consumer._connections.values())


def test_a_viewer_is_shown_frames_and_never_waited_for(world):
    owner, consumer, viewer = world.owner(slots=4), world.consumer(credits=3), world.viewer()
    show(owner, 0, 0)
    world.until(lambda: len(owner.consumers) == 2 and waiting(consumer), "both connected")
    consumer.lease(*consumer.take()).release()
    world.turn(20)
    assert not waiting(viewer)  # it had no credit when the frame was offered, and a picture does not wait
    for seq in (1, 2, 3):
        show(owner, seq, seq)
    world.until(lambda: waiting(viewer) and waiting(consumer) == 3, "offers to both")
    assert waiting(viewer) == 1  # one slot at most is lent
    _, offer = seen = viewer.take()
    assert offer.header.seq == 1
    lease = viewer.lease(*seen)
    while (taken := consumer.take()) is not None:
        consumer.lease(*taken).release()
    world.until(lambda: owner.slots_by_state()["free"] == 3, "all slots but the one that is looked at")
    assert owner.drained and not owner.holding() and not owner.idle
    assert (lease.slot == 1).all()
    world.turn(300)  # a viewer that takes its time loses nothing for anybody
    lease.release()
    world.until(lambda: owner.idle, "the last slot")
    show(owner, 4, 4)
    world.until(lambda: waiting(viewer), "the next picture")
    assert world.lost == []


def test_a_viewer_that_freezes_or_ends_is_no_lost_work(world):
    owner, consumer = world.owner(slots=3), world.consumer()
    alive, frozen = world.loop(), world.loop()
    keeps, freezes = world.viewer(loop=alive), world.viewer(loop=frozen)
    world.until(lambda: len(owner.consumers) == 3, "all connected")
    show(owner, 0, 0, deadline_ns=world.now_ns + 900 * SECOND)
    world.until(lambda: waiting(keeps) + waiting(freezes) == 1, "the picture")
    holder, other = (keeps, freezes) if waiting(keeps) else (freezes, keeps)
    world.loops.remove(alive if holder is keeps else frozen)
    consumer.lease(*consumer.take()).release()
    world.turn(400)
    assert owner.slots_by_state()["leased"] == 1 and not owner.backlog and not owner.holding()
    show(owner, 1, 1, deadline_ns=world.now_ns + 900 * SECOND)
    world.until(lambda: waiting(consumer), "counting goes on")
    assert not waiting(other)
    owner.retire()  # the source has another layout: nobody waits for the frozen viewer
    assert [seq for seq, _ in world.lost] == [1]  # what the consumer held, and not what the viewer did
    world.loops.append(alive if holder is keeps else frozen)


def test_a_live_source_drops_its_oldest_frame_though_a_viewer_looks_at_it(world):
    owner, viewer = world.owner(slots=3), world.viewer()
    world.until(lambda: owner.consumers, "the viewer")
    for seq in range(3):
        show(owner, seq, seq, deadline_ns=world.now_ns + 900 * SECOND)
    world.until(lambda: waiting(viewer), "the picture of frame 0")
    index = owner.acquire(evict=lambda older: True)
    assert index is not None and world.lost == [(1, "no_credit")]  # dropping frame 0 would give no room
    owner.abandon(index)


def test_a_viewer_connects_only_to_what_somebody_looks_at(world):
    looked_at = set()
    owner, viewer = world.owner(), world.viewer(wanted=looked_at.__contains__)
    world.turn(100)
    assert owner.consumers == [] and viewer.attached == []
    looked_at.add("cam")
    world.until(lambda: owner.consumers, "the hello")
    show(owner, 0, 0)
    world.until(lambda: waiting(viewer), "the picture")
    lease = viewer.lease(*viewer.take())
    looked_at.clear()
    world.turn(100)
    assert owner.consumers  # it still reads
    lease.release()
    show(owner, 1, 1)  # is offered, and will not be taken
    world.until(lambda: not owner.consumers, "the bye")
    assert viewer.attached == [] and world.lost == [] and owner.slots_by_state()["leased"] == 0


def test_offer_lease_release(world):
    owner, consumer = world.owner(), world.consumer()
    show(owner, 0, 42)
    world.until(lambda: waiting(consumer), "the offer")
    link, offer = consumer.take()
    with consumer.lease(link, offer) as pixels:
        assert (pixels == 42).all()
        assert len(pixels) == LAYOUT.nbytes
        with pytest.raises(ValueError, match="read-only"):
            pixels[0] = 1
        world.turn(5)
        assert not owner.idle
    world.until(lambda: owner.idle, "the release")


def test_credits_bound_what_a_consumer_holds(world):
    owner, consumer = world.owner(slots=4), world.consumer(credits=2)
    for seq in range(4):
        show(owner, seq, seq)
    world.until(lambda: waiting(consumer) == 2, "two offers")
    world.turn(20)
    assert waiting(consumer) == 2
    with consumer.lease(*consumer.take()):
        pass
    world.until(lambda: waiting(consumer) == 2, "the next one, for the one released")


def test_a_live_frame_behind_which_a_newer_one_waits_is_overtaken(world):
    owner, consumer = world.owner(slots=4), world.consumer(credits=3)
    for seq in range(3):
        show(owner, seq, seq, deadline_ns=world.now_ns + 100 * SECOND)
    world.until(lambda: waiting(consumer) == 3, "all offers")
    assert [offer.header.seq for _, offer in consumer.overtaken()] == [0, 1]
    assert consumer.take(lambda offer: False) is None
    assert consumer.take()[1].header.seq == 2


def test_a_frame_of_a_file_is_never_overtaken(world):
    owner, consumer = world.owner(slots=4), world.consumer(credits=3)
    for seq in range(3):
        show(owner, seq, seq)
    world.until(lambda: waiting(consumer) == 3, "all offers")
    assert not list(consumer.overtaken())


def test_live_parts_that_wait_for_a_living_consumer_are_a_backlog(world):
    owner, live = world.owner(slots=4), world.now_ns + 100 * SECOND
    show(owner, 0, 0, deadline_ns=live)
    assert not owner.backlog  # nobody is there who could be behind
    consumer = world.consumer(credits=1)
    world.until(lambda: waiting(consumer) == 1, "the first offer")
    show(owner, 1, 0)
    assert not owner.backlog  # a file waits, and holds up no camera
    show(owner, 2, 0, deadline_ns=live)
    assert owner.backlog
    for _ in range(2):
        world.until(lambda: waiting(consumer) == 1, "the next offer")
        with consumer.lease(*consumer.take()):
            pass
    world.until(lambda: waiting(consumer) == 1, "the last offer")
    assert not owner.backlog


def test_the_least_recently_used_consumer_is_next(world):
    owner = world.owner(slots=8)
    consumers = [world.consumer(name=f"preprocess.{i}") for i in range(2)]
    world.until(lambda: len(owner.consumers) == 2, "both")
    seqs = [[], []]
    for seq in range(8):
        show(owner, seq, seq)
        world.until(lambda: any(waiting(c) for c in consumers), "an offer")
        for i, consumer in enumerate(consumers):
            while (taken := consumer.take()) is not None:
                seqs[i].append(taken[1].header.seq)
                with consumer.lease(*taken):
                    pass
        world.turn(3)
    assert sorted(map(len, seqs)) == [4, 4]
    assert all(b - a == 2 for s in seqs for a, b in pairwise(s))


def test_another_schema_is_refused_once_in_words(world):
    world.owner()
    world.consumer(schema=SCHEMA + 1)
    with pytest.raises(AppError, match="same version") as refusal:
        world.turn(200)
    assert refusal.value.code == CONFIG


def test_a_second_owner_is_refused_and_the_first_goes_on(world):
    owner = world.owner()
    with pytest.raises(AppError, match=f"already owned by process {os.getpid()}"):
        world.owner()
    consumer = world.consumer()
    show(owner, 0, 1)
    world.until(lambda: waiting(consumer), "the first owner's offer")


def test_a_pid_that_cannot_be_seen_is_refused(world):
    world.owner()
    world.consumer(pid=2**22 + 1)
    with pytest.raises(AppError, match="PID namespace"):
        world.turn(200)


@pytest.mark.parametrize("live", [True, False])
def test_a_silent_consumer_loses_a_live_frame_but_not_the_slot(world, live):
    """Frozen: told once as stale, no more offers; its late release is still good, and then it is served again.

    A lossless frame waits for it.
    """
    owner, consumer = world.owner(), world.consumer()
    frozen = world.loops.pop()
    show(owner, 0, 7, deadline_ns=world.now_ns + 3600 * SECOND if live else 0)
    lost = [(0, "stale")] if live else []
    for _ in range(100):
        frozen.tick(1)
        world.turn()
        if waiting(consumer):
            break
    taken = consumer.take()
    show(owner, 1, 8)
    world.turn(200)
    assert world.lost == lost
    assert not owner.idle  # it may still be reading
    with consumer.lease(*taken) as pixels:
        assert (pixels == 7).all()  # not overwritten
    world.loops.append(frozen)
    world.until(lambda: waiting(consumer) == 1, "the next offer")
    assert world.lost == lost


def test_a_process_that_slept_does_not_blame_the_others(world):
    owner, consumer = world.owner(), world.consumer()
    show(owner, 0, 1)
    world.until(lambda: waiting(consumer), "the offer")
    world.now_ns += 60 * SECOND  # the whole machine was suspended
    world.turn(50)
    assert world.lost == []


def test_parts_wait_until_their_deadline_and_are_then_lost_with_the_reason(world):
    owner = world.owner()
    show(owner, 5, 1, deadline_ns=world.now_ns + SECOND)
    world.until(lambda: world.lost, "the deadline")
    assert world.lost == [(5, "deadline")]
    assert owner.idle


def test_a_newer_live_frame_takes_the_slot_of_the_oldest_untouched_one(world):
    owner = world.owner(slots=3)
    for seq in range(3):
        show(owner, seq, seq)
    assert owner.acquire(evict=lambda header: False) is None
    assert owner.acquire(evict=lambda header: True) is not None
    assert world.lost == [(0, "no_credit")]


def test_a_new_epoch_reaches_consumers_and_the_old_one_is_never_read_again(world):
    owner, consumer = world.owner(), world.consumer()
    show(owner, 0, 1)
    world.until(lambda: waiting(consumer), "the offer")
    taken = consumer.take()
    owner.open(SurfaceLayout(64, 64, 64, "bt709", True))
    world.until(lambda: next(iter(consumer._connections.values())).layout.width == 64, "the new ring")
    assert consumer.lease(*taken) is None
    show(owner, 1, 9)
    world.until(lambda: waiting(consumer), "an offer of the new epoch")
    with consumer.lease(*consumer.take()) as pixels:
        assert len(pixels) == 64 * 96
        assert (pixels == 9).all()


def test_what_waits_for_an_owner_that_is_gone_is_told_so_before_it_goes_on(world):
    owner, consumer = world.owner(), world.consumer()
    show(owner, 0, 1)
    world.until(lambda: waiting(consumer), "the offer")
    message = []
    lease = consumer.lease(*consumer.take(), on_abort=lambda: message.append("void"))
    assert not lease.aborted
    owner.open(SurfaceLayout(64, 64, 64, "bt709", True))
    world.until(lambda: lease.stale, "the end of the epoch")
    assert lease.aborted and message == ["void"]
    lease.release()
    world.turn(5)
    assert owner.idle and not world.lost[1:]


def test_a_restarted_owner_is_found_again_and_its_leftovers_are_swept(world, run_dir):
    """The owner is a process that is SIGKILLed while it owns memory; the next one of that name starts clean."""
    code = (
        "import sys, time; sys.path.insert(0, '.')\n"
        "from pathlib import Path\nfrom tests.link.test_link import World, show\n"
        f"w = World(Path({str(run_dir)!r})); o = w.owner(w.real_loop()); show(o, 0, 1)\n"
        "print('up', flush=True)\n"
        "while True: w.loops[0].tick(10)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"up\n"
    consumer = world.consumer()
    world.until(lambda: waiting(consumer) or time.sleep(0.005), "the first owner's offer")
    left = set(run_dir.glob("*.shm"))
    assert len(left) == 1
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    world.until(lambda: not waiting(consumer), "its death to be noticed")
    owner = world.owner()
    assert not left & set(run_dir.glob("*.shm"))
    show(owner, 1, 2)
    world.until(lambda: waiting(consumer), "the successor's offer")
    with consumer.lease(*consumer.take()) as pixels:
        assert (pixels == 2).all()


def test_a_killed_consumer_gives_its_slot_back(world, run_dir):
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\nfrom tests.link.test_link import World, waiting\n"
        f"w = World(Path({str(run_dir)!r})); c = w.consumer(loop=w.real_loop())\n"
        "while not waiting(c): w.loops[0].tick(10)\n"
        "print('got it', flush=True)\n"
        "while True: w.loops[0].tick(10)\n"
    )
    owner = world.owner()
    show(owner, 3, 1)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    os.set_blocking(process.stdout.fileno(), False)
    world.until(lambda: process.stdout.readline() or time.sleep(0.02), "the lease")
    assert not owner.idle
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    world.until(lambda: owner.idle, "the slot")
    assert world.lost == [(3, "stale")]


class Attacker:
    """A socket that says what it likes to an owner."""

    def __init__(self, world, name):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(f"ipc://{world.run_dir}/{name}.sock")

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def attacker(world):
    attackers = []

    def make(name):
        attackers.append(Attacker(world, name))
        return attackers[-1].socket

    yield make
    for one in attackers:
        one.close()


def test_hostile_messages_are_counted_and_nothing_dies(world, attacker):
    owner = world.owner(loop := world.loop())
    consumer = world.consumer()
    hostile = attacker("surfaces.cam")
    hello = encode(Hello(SCHEMA, "evil", os.getpid(), "frame", 0))
    garbage = [b"", b"\xc1", os.urandom(500), hello[:-3], hello + b"x", b"\x81\xa4type\xa5bogus", b"[" * 5000]
    garbage += [encode(Beat()).replace(b"beat", b"eval"), b"\x80\x04\x95cposix\nsystem\n"]
    for data in garbage:
        hostile.send(data)
    hostile.send_multipart([b"two", b"parts"])
    world.until(lambda: loop.counters["messages_malformed"] >= len(garbage) + 1, "all of it to be counted")
    show(owner, 0, 3)
    world.until(lambda: waiting(consumer), "work as usual")


def test_oversized_messages_never_arrive(world, attacker):
    owner = world.owner(loop := world.loop())
    hostile = attacker("surfaces.cam")
    hostile.send(b"x" * (MAX_BYTES + 1))  # libzmq drops the connection
    world.turn(30)
    assert not loop.counters
    consumer = world.consumer()
    show(owner, 0, 3)
    world.until(lambda: waiting(consumer), "work as usual")


def test_forged_releases_free_nothing(world, attacker):
    owner, consumer = world.owner(loop := world.loop()), world.consumer()
    show(owner, 0, 3)
    world.until(lambda: waiting(consumer), "the lease")
    offer: Offer = consumer.take()[1]
    hostile = attacker("surfaces.cam")
    hostile.send(encode(Hello(SCHEMA, "evil", os.getpid(), "frame", 0)))
    ref = offer.ref
    forged = [
        ref,
        SlotRef("0" * 16, ref.slot, ref.generation),
        SlotRef(ref.epoch, 99, 1),
        SlotRef(ref.epoch, ref.slot, 7),
    ]
    for one in forged:
        hostile.send(encode(Release(one, "frame", 0)))
    hostile.send(encode(Release(ref, "tiles", 3)))
    world.until(lambda: loop.counters["releases_refused"] == len(forged) + 1, "all to be counted")
    assert not owner.idle


def test_what_was_said_before_hello_does_not_count(world, attacker):
    world.owner(loop := world.loop())
    hostile = attacker("surfaces.cam")
    hostile.send(encode(Release(SlotRef("x", 0, 1), "frame", 0)))
    world.until(lambda: hostile.poll(1), "an answer")
    assert b"say hello first" in hostile.recv()
    assert not loop.counters["releases_refused"]


def test_a_ring_handle_is_a_name_and_never_a_path(world):
    from peoplecounter.common.ipc.memory import memory_kind
    from peoplecounter.common.ipc.messages import RingSpec

    for handle in (b"../../etc/passwd", b"/etc/passwd", b"surfaces.cam.zz.shm", b"a.b.00.shm\0"):
        with pytest.raises(AppError, match="not a shared memory name"):
            memory_kind("shm").map(None, world.run_dir, RingSpec("shm", handle, 1, 1, LAYOUT))
    with pytest.raises(AppError, match="is unknown"):
        memory_kind("pickle")


def test_a_ring_that_does_not_fit_is_refused_before_anything_is_written(world):
    owner = world.owner()
    huge = SurfaceLayout(1 << 20, 1 << 22, 1 << 20, "bt709", False)
    with pytest.raises(AppError, match="No room"):
        owner.open(huge)
    assert not list(world.run_dir.glob("*.shm"))


def detections(seq):
    header = FrameHeader(source="cam", seq=seq, pts_s=0, captured_ns=0, deadline_ns=0, width=1, height=1)
    return Detections(header, Part("global"), b"", 0, 0)


def test_results_that_were_not_settled_are_sent_again_to_a_restarted_fusion(world):
    received = []
    sender = ResultSender(world.loop(), world.run_dir, Hello(SCHEMA, "infer_tiles.0", os.getpid()), TIMING)
    first = ResultReceiver(
        loop := world.loop(), world.run_dir, "a" * 16, TIMING, lambda body, r: received.append((body, r))
    )
    for seq in range(4):
        sender.send(detections(seq))
    world.until(lambda: len(received) == 4, "all four")
    first.settle([receipt for _, receipt in received[:2]])
    world.turn(5)
    first.close()
    world.loops.remove(loop)
    loop.close()
    sender.send(detections(4))
    received.clear()
    ResultReceiver(world.loop(), world.run_dir, "b" * 16, TIMING, lambda body, r: received.append((body, r)))
    world.until(lambda: len(received) == 3, "the three that were not settled")
    assert [body.header.seq for body, _ in received] == [2, 3, 4]


def test_a_sender_without_fusion_never_blocks_and_counts_what_it_gives_up(world):
    sender = ResultSender(loop := world.loop(), world.run_dir, Hello(SCHEMA, "decoder.cam", os.getpid()), TIMING)
    for seq in range(WINDOW):
        sender.send(detections(seq))
    assert sender.full
    for seq in range(2000):
        sender.send(Status("cam", "online", seq))
    sender.send(Status("cam", "ended", 2000))
    assert loop.counters["results_lost"] == WINDOW + 2001 - 1024
    assert [body.header.seq for body in sender._waiting if isinstance(body, Detections)] == list(range(WINDOW))
    for seq in range(2000):
        sender.send(Status("cam", "online", seq))
    assert sum(body.state == "ended" for body in sender._waiting if isinstance(body, Status)) == 1
