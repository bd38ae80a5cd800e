"""What every service process has: its loop, its signals, its link to fusion, readiness, watchdog and exit code."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from ctypes import CDLL
from functools import cached_property
from pathlib import Path

from peoplecounter.common import backend, logs, sources
from peoplecounter.common.errors import RESTART, SOFTWARE, GpuLost, Refused
from peoplecounter.common.files import Lock, make_private
from peoplecounter.common.ipc import memory
from peoplecounter.common.ipc.link import Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import (
    SCHEMA,
    Describe,
    Described,
    Done,
    Dropped,
    Header,
    Hello,
    Input,
    Part,
    Restart,
    SetLevel,
    Stop,
)
from peoplecounter.common.ipc.results import NAME as FUSION
from peoplecounter.common.ipc.results import Sender
from peoplecounter.common.process.control import Control, claim
from peoplecounter.common.process.telemetry import Tracer
from peoplecounter.common.settings import Settings, load_settings, log_format

SUPERVISOR_VARIABLE = "SUPERVISOR_PID_OF_PEOPLECOUNTER"  # set by `run`: the group ends with it, even if it is killed
HEARTBEAT_NS = 1_000_000_000
CLAIM_S = 0.25  # how often a decoder without a source looks for one
REPORT_NS = 500_000_000  # also how fresh fusion's knowledge is of what the rings hold
LINGER_NS = 2_000_000_000
PR_SET_PDEATHSIG = 1


class Runtime:
    """One service process. `running` turns False on SIGTERM or SIGINT; the loop then ends and everything is closed."""

    def __init__(self, service: str, instance: str, settings: Settings, lock: Lock):
        self.name, self.settings, self.running = f"{service}.{instance}", settings, True
        self.service, self.instance = service, instance
        self.loop = Loop()
        self.count = self.loop.counters
        self.log = logging.getLogger(self.name)
        self.timing = Timing.of_ms(settings.link.beat_ms, settings.link.silent_ms)
        self.control = Control(self, lock)
        self.control.on(Describe, self._describe)
        self.control.on(Restart, lambda peer, message: self._leave(peer, RESTART))
        self.control.on(Stop, lambda peer, message: self._leave(peer, 0))
        self.control.on(SetLevel, self._set_level)
        self.tracer = Tracer(self.name, settings, self.count)
        self.results = (
            None if f"results.{service}" == FUSION else Sender(self.loop, settings.run_dir, self.hello(), self.timing)
        )
        self.ring = None  # Downstream: the ring this process owns
        self.rings = None  # Upstream: those it reads
        self.about = ""  # what `ps` is to say of this process
        self.exit_code = 0
        self._ready = False
        self._exit = ExitStack()  # everything that is closed, last opened first; what one close() raises skips no other
        self._exit.callback(self.loop.close)
        self._exit.callback(self._close_tracer)
        self._exit.callback(lambda: self.control.close(orderly=self.exit_code == 0))
        if self.results:
            self._exit.callback(lambda: self.results.close(bye=self.exit_code == 0))
        self._report_ns = 0
        self._watchdog_ns = int(os.environ.get("WATCHDOG_USEC", 0)) * 1000 // 3
        self._fed_ns = 0
        self._heart_ns = 0

    @cached_property
    def work(self):
        """The queue of this process' work on slots, see common.memory; on a GPU it makes the context."""
        kind = memory.kind(memory.KINDS[backend.resolve(self.settings)])
        return self.closing(kind.Work(self.loop))

    def hello(self, part: str = "", credits: int = 0, wants: Input | None = None) -> Hello:
        """How this process introduces itself on a link."""
        return Hello(SCHEMA, self.name, os.getpid(), part, credits, wants)

    def closing(self, resource):
        """Registers something with close() to be closed, last first, when the service ends; returns it."""
        self._exit.callback(self._close, resource)
        return resource

    def ready(self) -> None:
        """Everything is loaded: tells the service manager."""
        self._ready = True
        notify("READY=1")
        self.log.info("ready")

    def tick(self, timeout_ms: int = 50) -> None:
        """Waits (bounded), handles what came, feeds the watchdog: call it from the loop that makes progress."""
        self.loop.tick(timeout_ms)
        now = self.loop.now_ns()
        if self._watchdog_ns and now - self._fed_ns > self._watchdog_ns:
            self._fed_ns = now
            notify("WATCHDOG=1")
        if self.settings.heartbeat and now >= self._heart_ns:
            self._heart_ns = now + HEARTBEAT_NS
            beat(self.settings)
        if self.results and now >= self._report_ns:
            self._report_ns = now + REPORT_NS
            self.tracer.account()
            gauges = self.gauges() if self.settings.telemetry.metrics else {}
            self.results.report(self.ring.holding() if self.ring else [], gauges)

    def gauges(self) -> dict[str, int]:
        """What metrics say of this process now: see services/fusion/metrics.py for the names."""
        found = {"restarts": self.control.starts - 1, **usage(os.getpid())}
        if self.ring:
            found |= {f"slots_{state}": slots for state, slots in self.ring.slots_by_state().items()}
        if self.rings:
            found |= {"leases": self.rings.leases, "credits": self.rings.credits}
        if "work" in self.__dict__:
            found |= self.work.gauges()
        return found

    def linger(self, done: Callable[[], bool]) -> None:
        """Asked to end: keeps ticking until what was offered has been read, for LINGER_NS at most."""
        end_ns = self.loop.now_ns() + LINGER_NS
        while not done() and self.loop.now_ns() < end_ns:
            self.tick()

    def late(self, header: Header) -> bool:
        """True when the frame's deadline has passed."""
        return 0 < header.deadline_ns < self.loop.now_ns()

    def drop(self, header: Header, reason: str, part: Part | None = None) -> None:
        """Tells fusion that a frame, or one part of it, will not be answered, and why."""
        self.count[f"dropped_{reason}"] += 1
        self.results.send(Dropped(header, reason, part))

    def drop_part(self, header: Header, part: Part, reason: str) -> None:
        """The same, in the order in which a Downstream reports what it lost."""
        self.drop(header, reason, part)

    def close(self) -> None:
        notify("STOPPING=1")
        self._exit.close()

    def _close(self, resource) -> None:
        try:
            resource.close()
        except GpuLost as lost:  # closing the others would call into the GPU, and might never return
            os._exit(self.exit_code or _end(self.name, lost))

    def _close_tracer(self) -> None:
        lost = self.tracer.close()
        if lost:
            self.log.warning("%d spans were not exported", lost)

    def _describe(self, peer: Peer, message: Describe) -> None:
        control, ring = self.control, self.ring
        described = Described(
            self.name,
            os.getpid(),
            control.supervisor,
            control.starts,
            time.monotonic() - control.began_s,
            self._ready,
            logging.getLevelName(logging.getLogger().level).lower(),
            ring.epoch if ring else "",
            ring.slots_by_state() if ring else {},
            self.rings.leases if self.rings else 0,
            self.about,
            dict(self.count),
        )
        control.send(peer, described)

    def _leave(self, peer: Peer, exit_code: int) -> None:
        self.running, self.exit_code = False, exit_code
        self.control.send(peer, Done())

    def _set_level(self, peer: Peer, message: SetLevel) -> None:
        logging.getLogger().setLevel(message.level.upper())
        self.control.send(peer, Done())


def usage(pid: int) -> dict[str, int]:
    """Resident memory, open descriptors and threads of a process of this user's."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory_bytes": int(status["VmRSS"].split()[0]) << 10,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208, no objects for each
        "threads": int(status["Threads"]),
    }


def notify(state: str) -> None:
    """sd_notify: one datagram to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def beat(settings: Settings) -> None:
    """Writes this process' pid anew: the age of the file is how long nothing has gone on."""
    with os.fdopen(os.open(settings.heartbeat, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{os.getpid()}\n")


def serve(service: str, loop: Callable[[Runtime], None]) -> None:
    """Runs a service to its end: `python -m peoplecounter.services.<service> [INSTANCE]`.

    Exits with 0 or a code of errors.py. Without an instance it is the first that is free, see control.claim; a decoder
    waits for a source to be free.
    """
    instance = sys.argv[1] if len(sys.argv) > 1 else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until there is something to end in order
    try:
        settings = load_settings()
        logs.configure(settings.log_format, settings.log_level)
        make_private(settings.run_dir)
        sources.show(settings)
        while (claimed := claim(settings, service, instance)) is None:
            _idle(settings)
        runtime = Runtime(service, claimed[0], settings, claimed[1])
    except Refused as refusal:
        sys.exit(_end(f"{service}.{instance}" if instance else service, refusal))
    signal.signal(signal.SIGTERM, lambda *_: setattr(runtime, "running", False))
    signal.signal(signal.SIGINT, lambda *_: setattr(runtime, "running", False))
    _follow_supervisor()
    try:
        loop(runtime)
    except GpuLost as lost:  # cleaning up would call into it, and might never return
        os._exit(_end(runtime.name, lost))
    except Refused as refusal:
        runtime.exit_code = _end(runtime.name, refusal)
    except Exception:
        runtime.log.exception("failed")
        runtime.exit_code = SOFTWARE
    try:
        runtime.close()
    except Exception:
        runtime.log.exception("failed to close")
        runtime.exit_code = runtime.exit_code or SOFTWARE
    sys.exit(runtime.exit_code)


def _idle(settings: Settings) -> None:
    """A moment of a process that has nothing to be yet: it is alive, and says so."""
    notify("READY=1\nWATCHDOG=1\nSTATUS=waits for a source without a decoder")
    if settings.heartbeat:
        beat(settings)
    time.sleep(CLAIM_S)


def _end(name: str, refusal: Refused) -> int:
    print(logs.refusal_line(log_format(), name, str(refusal)), file=sys.stderr, flush=True)
    notify(f"STATUS={refusal}")
    return refusal.code


def _follow_supervisor() -> None:
    supervisor = int(os.environ.get(SUPERVISOR_VARIABLE, 0))
    if supervisor:
        CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != supervisor:
            raise SystemExit(0)  # it was gone before we could ask
