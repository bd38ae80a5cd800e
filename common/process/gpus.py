"""Which GPU each process of a group uses, where a group has several (`gpus`).

Each GPU has preprocess and infer processes of its own, and the decoders of some of the sources: a frame never goes from
one GPU to another. Worker number i uses GPU i, modulo the number of GPUs. A source goes to the GPU with the fewest
sources, among those to the one whose hash with its name is highest. A GPU that a process has lost gets no source for
REST_NS, and not before its preprocess has started again; its sources go to the others. Later, sources come back one at
a time.

All processes read this from one file in the run directory, which is changed under a lock.
"""

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path

import msgspec

from peoplecounter.common import backend
from peoplecounter.common.errors import RESTART, SOFTWARE, AppError, GpuLost, NoGpu
from peoplecounter.common.files import write_file
from peoplecounter.common.settings import Settings
from peoplecounter.common.topology import ServiceRow

FILE, LOCK = "gpus.json", "gpus.lock"
REST_NS = 60_000_000_000  # without a failure, until a GPU that was lost gets sources again
RETRY_NS = 10_000_000_000  # until a worker tries a lost GPU again


class Placement(msgspec.Struct):
    """The content of FILE."""

    uuids: list[str]  # of the GPUs; a number of a GPU is an index of this list
    asked: list[str] = []  # the setting `gpus` that they come from
    sources: dict[str, int] = {}  # source -> number of its GPU
    lost_ns: dict[int, int] = {}  # number of a GPU -> when a process lost it last (CLOCK_MONOTONIC)
    fell_ns: dict[int, int] = {}  # number of a GPU -> when its calls failed last, or nobody answered there
    found_ns: dict[int, int] = {}  # number of a GPU that was lost -> when a preprocess started there last

    def is_healthy(self, number: int, now_ns: int) -> bool:
        """False for a GPU that was lost recently, or on which preprocess has not started since."""
        lost_ns = self.lost_ns.get(number)
        if lost_ns is None or lost_ns > now_ns:  # of the time before a reboot
            return True
        return now_ns - lost_ns >= REST_NS and self.found_ns.get(number, 0) > lost_ns

    def healthy(self, now_ns: int) -> list[int]:
        """Numbers of the GPUs that are healthy; all of them where none is."""
        numbers = range(len(self.uuids))
        return [number for number in numbers if self.is_healthy(number, now_ns)] or list(numbers)

    def rests(self, number: int, now_ns: int) -> bool:
        """True while no worker should try this GPU, because it was just lost and others are healthy."""
        lost_ns = self.lost_ns.get(number, -RETRY_NS)
        return 0 <= now_ns - lost_ns < RETRY_NS and number not in self.healthy(now_ns)

    def of_worker(self, instance: str) -> int | None:
        """The GPU of the worker with this number; None for a name that is no number."""
        return int(instance) % len(self.uuids) if instance.isdecimal() else None

    def place(self, source: str, current: Collection[str], now_ns: int) -> int:
        """The GPU of a source whose decoder starts, which is noted: the one that it has, or a better one.

        `current`: the sources that are decoded now; others do not count.
        """
        self.sources = {name: number for name, number in self.sources.items() if name in current}
        number = self.sources.get(source)
        if number is None:
            number = self._emptiest(source, self.healthy(now_ns))
        elif (other := self.better(source, now_ns)) is not None:
            number = other
        self.sources[source] = number
        return number

    def better(self, source: str, now_ns: int) -> int | None:
        """The GPU that a source should move to; None: it stays.

        It moves when its own GPU was lost, or has at least two more sources than another one and this is the source
        with the highest hash for that one: so one source moves at a time.
        """
        own, healthy = self.sources.get(source), self.healthy(now_ns)
        if own is None:
            return None
        if own not in healthy:
            return self._emptiest(source, healthy)
        loads = Counter(self.sources.values())
        other = min(healthy, key=lambda n: (loads[n], n))
        movable = [name for name, number in self.sources.items() if number == own]
        chosen = max(movable, key=lambda name: weight(other, name)) == source
        return other if chosen and loads[own] - loads[other] >= 2 else None

    def _emptiest(self, source: str, numbers: list[int]) -> int:
        loads = Counter(of for name, of in self.sources.items() if name != source)
        return max(numbers, key=lambda number: (-loads[number], weight(number, source)))


class Gpus:
    """The placement of one run directory."""

    def __init__(self, run_dir: Path):
        self._path, self._lock = run_dir / FILE, run_dir / LOCK
        self._read_at: tuple[int, int] | None = None  # the file that was read last: inode, ns
        self._placement = Placement([])

    @property
    def placement(self) -> Placement:
        """As it is now; without GPUs where the file does not exist. It must not be changed."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return Placement([])
        if (at := (status.st_ino, status.st_mtime_ns)) != self._read_at:
            try:
                self._placement = msgspec.json.decode(self._path.read_bytes(), type=Placement)
            except (OSError, msgspec.MsgspecError) as error:
                raise AppError(f"{self._path} is damaged ({error}): stop the group and remove it.") from None
            self._read_at = at
        return self._placement

    @contextlib.contextmanager
    def change(self) -> Iterator[Placement]:
        """The placement, which is written back at the end; other processes wait until then."""
        with self._lock.open("w") as lock:
            self._lock.chmod(0o600)
            flock(lock, LOCK_EX)
            self._read_at = None  # a copy of our own, which may be changed
            changed = self.placement
            before = msgspec.json.encode(changed)
            yield changed
            self._read_at = None
            if (after := msgspec.json.encode(changed)) != before:
                write_file(self._path, after, 0o600)


class ProcessGpu:
    """The GPU of one process, in a group with several."""

    def __init__(self, gpus: Gpus, number: int):
        self._gpus, self.number = gpus, number
        self.uuid = gpus.placement.uuids[number]
        self._began_ns = time.monotonic_ns()

    def is_of_worker(self, instance: str) -> bool:
        """True for the number of a worker that uses this GPU."""
        return self._gpus.placement.of_worker(instance) == self.number

    def is_of_source(self, name: str) -> bool:
        """True for a source that is decoded on this GPU."""
        return self._gpus.placement.sources.get(name) == self.number

    def others_are_healthy(self) -> bool:
        """True when there is a GPU that sources of this one could go to."""
        placement, now_ns = self._gpus.placement, time.monotonic_ns()
        others = set(range(len(placement.uuids))) - {self.number}
        return any(placement.is_healthy(number, now_ns) for number in others)

    def should_move(self, source: str) -> bool:
        """True when the decoder of this source should start again, at another GPU.

        Raises GpuLost when another process has lost this GPU since this process began.
        """
        now_ns, placement = time.monotonic_ns(), self._gpus.placement
        if self._began_ns < placement.lost_ns.get(self.number, 0) <= now_ns:
            raise GpuLost(f"Another process has lost GPU {self.number}: {source} moves to another one.", noted=True)
        return placement.better(source, now_ns) is not None

    def others_were_just_lost(self) -> bool:
        """True when processes lost another GPU a moment ago. The MPS server of all GPUs may then let no process in."""
        now_ns, fell_ns = time.monotonic_ns(), self._gpus.placement.fell_ns
        return any(0 <= now_ns - at < RETRY_NS for number, at in fell_ns.items() if number != self.number)

    def lose(self, started: bool) -> None:
        """Notes that this process could not use its GPU, or, if it had started, could not any more."""
        with self._gpus.change() as placement:
            placement.lost_ns[self.number] = time.monotonic_ns()
            if started:
                placement.fell_ns[self.number] = placement.lost_ns[self.number]

    def find(self) -> None:
        """Notes that this process has started on its GPU."""
        if self.number in self._gpus.placement.lost_ns:
            with self._gpus.change() as placement:
                placement.found_ns[self.number] = time.monotonic_ns()


def weight(number: int, name: str) -> bytes:
    """Rendezvous hashing: of several numbers, a name goes to the one with the highest weight."""
    return hashlib.sha256(f"{number}/{name}".encode()).digest()


def gpus_of(settings: Settings) -> Gpus | None:
    """The placement of a group with several GPUs; None for any other."""
    gpus = Gpus(settings.run_dir) if settings.gpus else None
    return gpus if gpus and gpus.placement.uuids else None


def establish(settings: Settings) -> None:
    """Writes down which GPUs the group has, when it starts or its setting has changed; all processes then agree.

    Sources stay on GPUs that the group keeps.
    """
    asked, gpus = list(settings.gpus), Gpus(settings.run_dir)
    if not asked:
        (settings.run_dir / FILE).unlink(missing_ok=True)
    elif gpus.placement.asked != asked and (uuids := list(backend.gpus(settings))):
        with gpus.change() as placement:
            if placement.asked != asked:
                sources = {name: placement.uuids[number] for name, number in placement.sources.items()}
                placement.sources = {name: uuids.index(uuid) for name, uuid in sources.items() if uuid in uuids}
                placement.uuids, placement.asked = uuids, asked
                placement.lost_ns, placement.fell_ns, placement.found_ns = {}, {}, {}


def may_start(settings: Settings, row: ServiceRow, instance: str) -> bool:
    """False for a worker whose GPU was just lost."""
    gpus = gpus_of(settings) if row.each == "worker" and row.on_gpu else None
    number = gpus.placement.of_worker(instance) if gpus else None
    return gpus is None or number is None or not gpus.placement.rests(number, time.monotonic_ns())


def choose(
    settings: Settings, row: ServiceRow, instance: str, current: Callable[[], Collection[str]]
) -> ProcessGpu | None:
    """The GPU of a process that starts; None where the group has one, or the process serves the whole group.

    `current()`: the sources that are decoded now.
    """
    gpus = gpus_of(settings) if row.on_gpu else None
    if gpus is None:
        return None
    if row.each == "worker":
        number = gpus.placement.of_worker(instance)
        if number is None:
            raise AppError(f"{row.name}.{instance} of a group with several GPUs needs a number: it decides which GPU.")
        return ProcessGpu(gpus, number)
    sources = current()
    with gpus.change() as placement:
        number = placement.place(instance, sources, time.monotonic_ns())
    return ProcessGpu(gpus, number)


def healthy_uuids(gpus: Gpus | None) -> tuple[str, ...]:
    """UUIDs of the group's GPUs that are healthy; empty where the group has one."""
    if gpus is None:
        return ()
    return tuple(gpus.placement.uuids[number] for number in gpus.placement.healthy(time.monotonic_ns()))


def exit_code(error: AppError, gpu: ProcessGpu | None) -> int:
    """Of a process that ends with this error. Where there is another GPU, losing one is no reason to give up."""
    if gpu is None or not isinstance(error, (GpuLost, NoGpu)):
        return error.code
    try:
        if isinstance(error, NoGpu) and gpu.others_were_just_lost():
            return RESTART  # it could not start, which says nothing of its own GPU
        if not getattr(error, "noted", False):
            gpu.lose(started=isinstance(error, GpuLost))
        return RESTART if gpu.others_are_healthy() else SOFTWARE
    except (AppError, OSError):
        return SOFTWARE
