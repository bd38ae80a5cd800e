"""What every service process has: its loop, signals, rings, link to fusion, control socket, and exit code."""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from ctypes import CDLL
from functools import cached_property, partial
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from peoplecounter.common import backend, logs, shape_changes, sources
from peoplecounter.common.errors import RESTART, SOFTWARE, AppError, GpuLost, NoGpu
from peoplecounter.common.files import Lock, make_private, release_locks
from peoplecounter.common.ipc.consumer import RingConsumer
from peoplecounter.common.ipc.link import Peer, Timing
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory import KINDS, WorkQueue, memory_kind
from peoplecounter.common.ipc.messages import (
    SCHEMA,
    Describe,
    Described,
    Done,
    Dropped,
    FrameHeader,
    Hello,
    Input,
    Part,
    Refuse,
    Restart,
    SetLevel,
    Stop,
)
from peoplecounter.common.ipc.producer import RingProducer
from peoplecounter.common.ipc.results import ResultSenders
from peoplecounter.common.process import gpus
from peoplecounter.common.process.control import ControlServer, agree_on_fusions, claim_instance, sources_to_decode
from peoplecounter.common.process.liveness import Liveness, notify, write_heartbeat
from peoplecounter.common.process.tracer import Tracer
from peoplecounter.common.process.usage import usage
from peoplecounter.common.settings import Settings, load_settings, requested_log_format
from peoplecounter.common.topology import BY_NAME, LENT, SURFACES, TENSORS, ServiceRow

SUPERVISOR_PID = "SUPERVISOR_PID_OF_PEOPLECOUNTER"  # environment variable, set by `run`: services end with that process
CLAIM_S = 0.25  # how often a process without work looks for some
SETTLED = 15  # times silent_ms after its start, a process expects those that read from it to answer
REPORT_NS = 500_000_000  # also how current fusion's knowledge is of what the rings hold
LOOK_NS = 100_000_000  # how often a process of a group with several GPUs sees whether another one has lost its GPU
LINGER_NS = 2_000_000_000
PR_SET_PDEATHSIG = 1


class Closable(Protocol):
    def close(self) -> None: ...


Resource = TypeVar("Resource", bound=Closable)


class Runtime:
    """One service process. `running` turns False on SIGTERM or SIGINT; then the loop ends and everything is closed."""

    def __init__(self, service: str, instance: str, settings: Settings, lock: Lock, gpu: gpus.ProcessGpu | None = None):
        self.row, self.instance, self.name = BY_NAME[service], instance, f"{service}.{instance}"
        self.settings, self.running, self.exit_code = settings, True, 0
        self.gpu = gpu  # of this process, in a group with several
        self.loop = Loop()
        self.counters = self.loop.counters
        self.log = logging.getLogger(self.name)
        self.timing = Timing.of_ms(settings.link.beat_ms, settings.link.silent_ms)
        self.control = ControlServer(self.loop, settings.run_dir, self.name, self.timing, lock)
        self.control.on(Describe, self._describe)
        self.control.on(Restart, lambda peer, message: self._leave(peer, RESTART))
        self.control.on(Stop, lambda peer, message: self._leave(peer, 0))
        self.control.on(SetLevel, self._set_level)
        self.tracer = Tracer(self.name, settings, self.counters)
        self.results = ResultSenders(self.loop, settings.run_dir, self.hello(), self.timing, settings.workers.fusion)
        self.producer: RingProducer | None = None  # of the ring that topology.py says this service owns
        self.consumers: list[RingConsumer] = []  # of the rings that it reads
        self.about = ""  # what `ps` shows of this process
        self.ends = False  # True: its source has ended, so it does not move to another GPU any more
        self._liveness = Liveness(settings.heartbeat, self.loop.now_ns)
        self._ready = False
        self._report_due_ns = self._look_due_ns = 0
        self._exit = ExitStack()  # closes last opened first; one close() that raises does not skip the others
        self._exit.callback(self.loop.close)
        self._exit.callback(self._close_tracer)
        self._exit.callback(lambda: self.control.close(orderly=self.exit_code == 0))
        self._exit.callback(lambda: self.results.close(bye=self.exit_code == 0))

    @cached_property
    def work(self) -> WorkQueue:
        """The queue of this process' work on slots; on a GPU its first use creates the CUDA context."""
        return self.work_on(0)

    def work_on(self, device: int) -> WorkQueue:
        """A queue on one of the GPUs that this process sees."""
        kind = memory_kind(KINDS[backend.resolve(self.settings)])
        return self.closing(kind.work_queue(self.loop, device))

    def open_ring(
        self,
        slots: int,
        on_lost: Callable[[FrameHeader, str, Part], None],
        admit: Callable[[Hello], Refuse | None] = lambda hello: None,
    ) -> RingProducer:
        """The ring that this service owns, see topology.py and RingProducer."""
        assert self.row.owns, f"{self.row.name} owns no ring"
        self.producer = self.closing(
            RingProducer(
                self.loop, self.settings.run_dir, self.row.owns, self.instance, slots, self.timing,
                on_lost, admit, self.work, LENT.get(self.row.owns) or "",
            )
        )  # fmt: skip
        return self.producer

    def open_inputs(
        self,
        credits: int,
        wants: Input | None = None,
        images_max: int = 0,
        wanted: Callable[[str], bool] | None = None,
        work: WorkQueue | None = None,
    ) -> RingConsumer:
        """The rings that this service reads, see topology.py and RingConsumer; by default those on its own GPU.

        `wants`: the only input it can read; `images_max`: how many images of it suit at once, 0: any number.
        """
        assert self.row.reads and self.row.part, f"{self.row.name} reads no ring"
        hello = self.hello(self.row.part, credits, wants, images_max)
        consumer = self.closing(
            RingConsumer(
                self.loop, self.settings.run_dir, self.row.reads, hello, self.timing, work or self.work,
                wanted or self._is_here,
            )
        )  # fmt: skip
        self.consumers.append(consumer)
        return consumer

    def hello(self, part: str = "", credits: int = 0, wants: Input | None = None, images_max: int = 0) -> Hello:
        """How this process introduces itself on a link."""
        return Hello(SCHEMA, self.name, os.getpid(), part, credits, wants, images_max)

    def _is_here(self, instance: str) -> bool:
        """True for a ring of this owner that is on the same GPU."""
        if self.gpu is None:
            return True
        return self.gpu.is_of_source(instance) if self.row.reads == SURFACES else self.gpu.is_of_worker(instance)

    def closing(self, resource: Resource) -> Resource:
        """Registers a resource to be closed when the service ends, last first; returns it."""
        self._exit.callback(self._close, resource)
        return resource

    def ready(self) -> None:
        """Everything is loaded: tells the service manager."""
        self._ready = True
        if self.gpu and self.row.owns == TENSORS:
            self.gpu.find()
        gc.collect()
        gc.freeze()  # to walk through what is loaded takes the collector 20 ms, in the middle of frames
        notify("READY=1")
        self.log.info("ready")

    def tick(self, timeout_ms: int = 50) -> None:
        """Waits (bounded), handles what came, feeds the watchdog. Call it from the loop that makes progress."""
        self.loop.tick(timeout_ms)
        self._liveness.beat()
        now_ns = self.loop.now_ns()
        if self.gpu and now_ns >= self._look_due_ns and self.running and not self.ends:
            self._look_due_ns = now_ns + LOOK_NS
            self._look_at_gpu(self.gpu)
        if now_ns >= self._report_due_ns:
            self._report_due_ns = now_ns + REPORT_NS
            self.tracer.count_lost()
            gauges = self._gauges() if self.settings.telemetry.metrics else {}
            self.results.report(self.producer.holding() if self.producer else [], gauges)

    def _look_at_gpu(self, gpu: gpus.ProcessGpu) -> None:
        """In a group with several GPUs: raises GpuLost when nobody answers on this one; a decoder may move away.

        While a group starts, the driver lets processes wait for seconds: that is no sign of a lost GPU.
        """
        settled = time.monotonic() - self.control.began_s > SETTLED * self.timing.silent_ns / 1e9
        if settled and self.producer and self.producer.deserted and gpu.others_are_healthy():
            raise GpuLost(f"No process that reads {self.producer.name} answers on GPU {gpu.number}: it may be lost.")
        if self.row.each == "source" and gpu.should_move(self.instance):
            self.log.info("moves to another GPU")
            self.running, self.exit_code = False, RESTART

    def linger(self, done: Callable[[], bool]) -> None:
        """Before the end: keeps ticking until what was offered has been read, for LINGER_NS at most."""
        end_ns = self.loop.now_ns() + LINGER_NS
        while not done() and self.loop.now_ns() < end_ns:
            self.tick()

    def late(self, header: FrameHeader) -> bool:
        """True when the frame's deadline has passed."""
        return 0 < header.deadline_ns < self.loop.now_ns()

    def drop(self, header: FrameHeader, reason: str, part: Part | None = None) -> None:
        """Tells fusion that a frame, or one part of it, will not be answered, and why."""
        self.counters[f"dropped_{reason}"] += 1
        self.results.send(Dropped(header, reason, part))

    def close(self) -> None:
        """Closes everything, last opened first."""
        notify("STOPPING=1")
        self._exit.close()

    @property
    def leases(self) -> int:
        """How many parts of other processes' slots this process holds."""
        return sum(consumer.leases for consumer in self.consumers)

    def _gauges(self) -> dict[str, int]:
        """This process' values for metrics; services/fusion/metrics.py names them."""
        gauges = {"restarts": self.control.starts - 1, **usage(os.getpid())}
        if self.producer:
            gauges |= {f"slots_{state}": slots for state, slots in self.producer.slots_by_state().items()}
        if self.consumers:
            gauges |= {"leases": self.leases, "credits": sum(consumer.credits for consumer in self.consumers)}
        if "work" in self.__dict__:  # asking for it would create a CUDA context
            gauges |= self.work.gauges()
        if self.gpu:
            gauges["gpu"] = self.gpu.number
        return gauges

    def _close(self, resource: Closable) -> None:
        try:
            resource.close()
        except GpuLost as lost:  # closing the others would call into the GPU and might never return
            _end_at_once(self.exit_code or _report(self.name, lost, self.gpu))
        except Exception:
            self.exit_code = self.exit_code or SOFTWARE  # now: links that close later must not say bye
            raise

    def _close_tracer(self) -> None:
        lost = self.tracer.close()
        if lost:
            self.log.warning("%d spans were not exported", lost)

    def _describe(self, peer: Peer, message: Describe) -> None:
        described = Described(
            service=self.name,
            pid=os.getpid(),
            supervisor=self.control.supervisor,
            starts=self.control.starts,
            age_s=time.monotonic() - self.control.began_s,
            ready=self._ready,
            log_level=logging.getLevelName(logging.getLogger().level).lower(),
            epoch=self.producer.epoch if self.producer else "",
            slots=self.producer.slots_by_state() if self.producer else {},
            leases=self.leases,
            about=self.about,
            gpu=self.gpu.number if self.gpu else None,
            counters=dict(self.counters),
        )
        self.control.send(peer, described)

    def _leave(self, peer: Peer, exit_code: int) -> None:
        self.running, self.exit_code = False, exit_code
        self.control.send(peer, Done())

    def _set_level(self, peer: Peer, message: SetLevel) -> None:
        logging.getLogger().setLevel(message.level.upper())
        self.control.send(peer, Done())


def serve(service: str, run: Callable[[Runtime], None]) -> None:
    """Runs a service to its end: `python -m peoplecounter.services.<service> [INSTANCE]`.

    Exits with 0 or a code of errors.py. Without an instance it claims a free one, see claim_instance(); a decoder waits
    until a source needs one.
    """
    instance = sys.argv[1] if len(sys.argv) > 1 else None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until a loop can shut down cleanly
    try:
        settings = load_settings()
        logs.configure(settings.log_format, settings.log_level)
        make_private(settings.run_dir)
        for folder, stored in (
            (sources.FOLDER, sources.folder(settings)),
            (shape_changes.FOLDER, shape_changes.folder(settings)),
        ):
            sources.link_folder(settings.run_dir, folder, stored)
        agree_on_fusions(settings)
        gpus.establish(settings)
        _end_with_supervisor()
        claimed, waited = claim_instance(settings, service, instance), False
        while claimed is None:
            _wait(settings, BY_NAME[service])
            claimed, waited = claim_instance(settings, service, instance), True
        if waited:
            settings = load_settings()  # they may have changed since
        name, lock = claimed
        gpu = gpus.choose(settings, BY_NAME[service], name, lambda: list(sources_to_decode(settings)))
        if gpu:
            settings = settings.model_copy(update={"gpu": gpu.uuid, "gpus": ()})
        elif settings.gpus:
            settings = settings.model_copy(update={"gpus": gpus.healthy_uuids(gpus.gpus_of(settings))})
        runtime = Runtime(service, name, settings, lock, gpu)
    except AppError as error:
        sys.exit(_report(f"{service}.{instance}" if instance else service, error))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_stop, runtime))
    try:
        run(runtime)
    except GpuLost as lost:  # closing would call into the GPU and might never return
        _end_at_once(_report(runtime.name, lost, gpu))
    except AppError as error:
        runtime.exit_code = _report(runtime.name, error, gpu)
        if isinstance(error, NoGpu) and settings.gpus:  # one of several: the next start uses the others
            runtime.exit_code = SOFTWARE
    except Exception:
        runtime.log.exception("failed")
        runtime.exit_code = SOFTWARE
    try:
        runtime.close()
    except Exception:
        runtime.log.exception("failed to close")
        runtime.exit_code = runtime.exit_code or SOFTWARE
    sys.exit(runtime.exit_code)


def _stop(runtime: Runtime, *_: object) -> None:
    runtime.running = False


def _wait(settings: Settings, row: ServiceRow) -> None:
    """A process without work is alive and says so to its supervisor; a worker that will load an engine is not ready."""
    if row.each == "source":
        notify("READY=1\nWATCHDOG=1\nSTATUS=waits for a source without a decoder")
    else:
        notify("STATUS=waits before it tries a lost GPU again")
    if settings.heartbeat:
        write_heartbeat(Path(settings.heartbeat))
    time.sleep(CLAIM_S)


def _report(name: str, error: AppError, gpu: gpus.ProcessGpu | None = None) -> int:
    """Prints why a process ends; returns its exit code."""
    line = logs.final_error_line(requested_log_format(), name, str(error))
    print(line + "\n", end="", file=sys.stderr, flush=True)  # in one write: other processes write there, too
    notify(f"STATUS={error}")
    return gpus.exit_code(error, gpu)


def _end_at_once(exit_code: int) -> NoReturn:
    """Ends without cleaning up, when the GPU is lost. The driver may hold the process for ten seconds: its successor
    does not wait for that."""
    release_locks()
    os._exit(exit_code)


def _end_with_supervisor() -> None:
    """Asks the kernel to end this process when `run` ends, even if `run` is killed."""
    supervisor = int(os.environ.get(SUPERVISOR_PID, 0))
    if supervisor:
        CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != supervisor:
            raise SystemExit(0)  # it has ended before we could ask
