"""Every message between services, one schema number, and the encoding.

Messages are single-part MessagePack maps, decoded into typed structs: data that does not fit is an error, never another
object. What subscribers read is JSON, see services/fusion.

Rings, on the socket of a ring's owner (ROUTER) and its consumers (DEALER):

    consumer                                owner
    Hello(schema, service, pid, …)   -->
                                     <--    Welcome(epoch, pid, ring) | Refuse(reason)
                                     <--    Offer(header, ref, part)
    Release(ref, part)               -->
    Unmapped(epoch)                  -->    this consumer no longer maps an epoch that has ended
    Beat                            <-->    Beat
    Bye                              -->

Results, on fusion's socket: Hello / Welcome / Beat / Bye as above, then Result(number, body) --> and <-- Ack(numbers).
Control, on each process' socket: the same, then Describe --> <-- Described; Restart | Stop | SetLevel --> <-- Done.
To fusion: Correct --> <-- Corrected.
Swap, on the control sockets of the infer processes: Prepare --> <-- Prepared; when all are: Commit --> <-- Committed.
Models, on the socket of `engine serve`: Fetch --> and <-- Chunk | Refuse.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from peoplecounter.common.logs import Level
from peoplecounter.common.topology import GLOBAL, TILES
from peoplecounter.common.views import View

SCHEMA = 9
ROW_VALUES = 8  # of one detection
ROW_BYTES = 4 * ROW_VALUES
MAX_BOXES = 1000  # of one image
MAX_BYTES = 1 << 20  # of one message; libzmq refuses more, see link.py

Name = Annotated[str, Meta(max_length=128)]
NOTE_MAX = 1000  # characters
Text = Annotated[str, Meta(max_length=NOTE_MAX)]
PEOPLE_MAX = 10_000_000  # in an area
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]  # SHA-256
Count = Annotated[int, Meta(ge=0)]
Seq = Annotated[int, Meta(ge=0, lt=2**53)]  # an integer in any JSON reader
IMAGES_MAX = 65_535
Small = Annotated[int, Meta(ge=0, le=IMAGES_MAX)]  # sides in px, images, tiles, parts
SourceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


@cache
def namespaces() -> tuple[int, int]:
    """This process' PID and IPC namespaces (inodes). Pids are valid in one PID namespace, CUDA IPC in one of each."""
    return Path("/proc/self/ns/pid").stat().st_ino, Path("/proc/self/ns/ipc").stat().st_ino


class FrameHeader(Struct, frozen=True, kw_only=True):
    """One frame's identity and times, made by the decoder and carried by every message about the frame."""

    source: SourceName
    seq: Seq
    pts_s: float | None  # presentation time in the source, seconds; None: the source has no timestamps
    captured_ns: Count  # CLOCK_MONOTONIC when the frame's packet arrived in the decoder
    deadline_ns: Count  # CLOCK_MONOTONIC after which work on the frame is dropped; 0: no deadline (lossless)
    width: Small  # of the surface, whose pixels are square
    height: Small
    aspect: Annotated[float, Meta(gt=0)] = 1.0  # width of a stored pixel over its height
    doubtful: bool = False  # the picture may refer to lost data: its count is incomplete
    early: bool = False  # offered before it was decoded: counted only when its decoder has confirmed it
    traceparent: Annotated[str, Meta(max_length=64)] = ""  # W3C trace context; empty: the frame is not traced
    marks: dict[Name, tuple[Count, Count]] = {}  # stage -> CLOCK_MONOTONIC ns (begin, end)

    @property
    def live(self) -> bool:
        """True for a frame that is worth less the older it gets."""
        return self.deadline_ns > 0


class Part(Struct, frozen=True):
    """A named region of a slot, offered on its own; of a tensor slot the images of `views`, from image `first` on."""

    name: Name  # one of topology's parts
    index: Small = 0  # of the part among those of its name
    of: Small = 1  # parts of the frame, all names together
    first: Small = 0
    views: tuple[View, ...] = ()

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.index

    @property
    def is_of_tensors(self) -> bool:
        """True for a part that a tensor slot can have."""
        return self.key == (GLOBAL, 0) or (self.name == TILES and self.index < self.of - 1)


class SurfaceLayout(Struct, frozen=True, tag="surface"):
    """NV12: `height` rows of luma, then ceil(height / 2) rows of interleaved U, V; every row `pitch` bytes apart."""

    width: Small
    height: Small
    pitch: Count
    matrix: Name  # "bt601" | "bt709" | "bt2020"
    full_range: bool
    sample_bytes: Annotated[int, Meta(ge=1, le=2)] = 1  # 2: P016, of which the upper 8 bits are used

    @property
    def nbytes(self) -> int:
        return self.pitch * (self.height + (self.height + 1) // 2)


Triple = tuple[float, float, float]


class Input(Struct, frozen=True):
    """The images an engine reads: [n, 3, height, width] RGB in 0..1, unless a field says otherwise.

    A value is `pixel * scale + offset`, where pixel is R, G or B in 0..1. A ring with other tensors refuses a Hello.
    """

    width: Annotated[int, Meta(ge=32, le=4096)]
    height: Annotated[int, Meta(ge=32, le=4096)]
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    channels_last: bool = False  # [n, height, width, 3]
    bgr: bool = False
    scale: Triple = (1.0, 1.0, 1.0)  # of R, G, B
    offset: Triple = (0.0, 0.0, 0.0)
    corner: bool = False  # the whole frame lies at the top left of its image, not in the middle

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[3, height, width] or [height, width, 3]."""
        return (self.height, self.width, 3) if self.channels_last else (3, self.height, self.width)

    @property
    def values_are_pixels(self) -> bool:
        """True when a value is a pixel in 0..1 as it is."""
        return self.scale == (1, 1, 1) and self.offset == (0, 0, 0)

    def __str__(self) -> str:
        unusual = [word for word in ("channels_last", "bgr", "corner") if getattr(self, word)]
        unusual += [] if self.values_are_pixels else [f"scale {self.scale}, offset {self.offset}"]
        return ", ".join([f"{self.dtype} {self.width}x{self.height}", *unusual])


class TensorLayout(Struct, frozen=True, tag="tensor"):
    """Images as an engine reads them, C-contiguous."""

    images: Small
    input: Input

    @property
    def dtype(self) -> str:
        return self.input.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.images, *self.input.image_shape

    @property
    def image_bytes(self) -> int:
        return 3 * self.input.width * self.input.height * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return self.images * self.image_bytes


class RingSpec(Struct, frozen=True):
    """Everything a consumer needs to map a ring. Sent once, in Welcome."""

    memory: Name  # "shm" | "cuda"
    handle: bytes  # shm: the file's name in the run directory; cuda: the GPU's uuid and the IPC handle
    slots: Count
    slot_bytes: Count
    layout: SurfaceLayout | TensorLayout


class SlotRef(Struct, frozen=True):
    """Names one content of a slot. Never valid for another run of the owner or another use of the slot."""

    epoch: Name
    slot: Count
    generation: Count


class Hello(Struct, frozen=True, tag="hello"):
    """Introduces a peer: its version, and what it wants to consume."""

    schema: int
    service: Name  # "infer_tiles.0"
    pid: Annotated[int, Meta(gt=0)]
    part: Name = ""  # which parts to offer
    credits: Annotated[int, Meta(ge=0, le=1000)] = 0
    wants: Input | None = None
    images_max: Small = 0  # of a part that suits this peer; 0: any number
    namespaces: tuple[Count, Count] = msgspec.field(default_factory=namespaces)


class Welcome(Struct, frozen=True, tag="welcome"):
    """Accepts a peer, and describes the ring it may map."""

    epoch: Name
    pid: Annotated[int, Meta(gt=0)]
    ring: RingSpec | None = None  # None: this link carries no slots


class Refuse(Struct, frozen=True, tag="refuse"):
    """Rejects a peer."""

    reason: Text
    final: bool = True  # False: say hello again


class Offer(Struct, frozen=True, tag="offer"):
    """A part of a slot is leased to the receiver."""

    header: FrameHeader
    ref: SlotRef
    part: Part


class Release(Struct, frozen=True, tag="release"):
    """Ends a lease."""

    ref: SlotRef
    part: Name
    index: Count


class Unmapped(Struct, frozen=True, tag="unmapped"):
    """This consumer no longer maps an epoch's memory, which may be freed."""

    epoch: Name


class Beat(Struct, frozen=True, tag="beat"):
    """The sender is alive."""


class Bye(Struct, frozen=True, tag="bye"):
    """The sender ends as intended."""


class Detections(Struct, frozen=True, tag="detections"):
    """Persons found in one part of one frame."""

    header: FrameHeader
    part: Part
    # float32 [n, 8], little-endian: x1, y1, x2, y2 (frame px), score, cut edges (bits), view (its image in the slot),
    # px of the view for one of the frame
    boxes: bytes
    began_ns: Count  # CLOCK_MONOTONIC when the inference was queued
    ended_ns: Count  # CLOCK_MONOTONIC when its boxes had arrived
    gpu_ns: Count = 0  # GPU time in between; 0: no GPU

    def rows(self) -> np.ndarray | None:
        """The boxes as float32 [n, 8]; None when their size is wrong or a value is not finite."""
        if len(self.boxes) % ROW_BYTES or len(self.boxes) > MAX_BOXES * len(self.part.views) * ROW_BYTES:
            return None
        rows = np.frombuffer(self.boxes, "<f4").reshape(-1, ROW_VALUES)
        return rows if np.isfinite(rows).all() else None


class Dropped(Struct, frozen=True, tag="dropped"):
    """A frame (part is None), or one part of it, that will not be answered. `reason` is one of DROP_REASONS."""

    header: FrameHeader
    reason: Name
    part: Part | None = None


class Confirmed(Struct, frozen=True, tag="confirmed"):
    """A frame that was offered early has been decoded; its header has the decoder's marks."""

    header: FrameHeader
    part: None = None


class Status(Struct, frozen=True, tag="status"):
    """State of a source as its decoder sees it. "ended": no frame with a seq of `frames` or above will come."""

    source: SourceName
    state: Name  # "online" | "reconnecting" | "ended"
    frames: Seq = 0
    detail: Text = ""
    live: bool = False  # it cannot be paused: late frames are dropped


class Report(Struct, frozen=True, tag="report"):
    """A process' counters since its start, the frames that its ring holds now, and its gauges for metrics."""

    service: Name
    pid: int
    counters: dict[Name, int]
    holding: list[tuple[SourceName, Seq]] = []
    gauges: dict[Name, int] = {}


class Result(Struct, frozen=True, tag="result"):
    """One result on its way to fusion, repeated until it is acknowledged."""

    number: Count  # 0: not acknowledged
    body: Detections | Dropped | Confirmed | Status | Report


class Ack(Struct, frozen=True, tag="ack"):
    """These results are settled: their frame was published or dropped, and the ledger is written."""

    numbers: list[Count]


class Describe(Struct, frozen=True, tag="describe"):
    """Asks a process for its state."""


class Described(Struct, frozen=True, tag="described"):
    """A process' state."""

    service: Name
    pid: int
    supervisor: Name  # what starts it again, see process/control.py
    starts: Count  # processes of this name that were started in this run directory
    age_s: float
    ready: bool
    log_level: Name
    epoch: Name = ""  # of the ring it owns
    slots: dict[Name, int] = {}  # of that ring, by their state
    leases: Count = 0  # of other processes' rings
    about: Text = ""  # a decoder's URL, without credentials
    gpu: Count | None = None  # its GPU's number in a group with several
    counters: dict[Name, int] = {}


class Restart(Struct, frozen=True, tag="restart"):
    """Asks a process to shut down cleanly, so that its supervisor starts it again."""


class Stop(Struct, frozen=True, tag="stop"):
    """Asks a process to shut down cleanly, for good."""


class SetLevel(Struct, frozen=True, tag="set_level"):
    """Sets the minimum level that a process logs."""

    level: Level


class Done(Struct, frozen=True, tag="done"):
    """Answers Restart, Stop and SetLevel."""


class Correct(Struct, frozen=True, tag="correct"):
    """Tells fusion how many people are in an area."""

    area: SourceName
    people: Annotated[int, Meta(ge=0, le=PEOPLE_MAX)]
    note: Text = ""


class Corrected(Struct, frozen=True, tag="corrected"):
    """The occupancy before and now, or why it was not corrected."""

    before: int = 0
    after: int = 0
    refusal: Text = ""


class Prepare(Struct, frozen=True, tag="prepare"):
    """Asks an infer process to load this model beside the current one, without using it yet."""

    model: Annotated[str, Meta(max_length=4096)]
    sha256: Hash


class Prepared(Struct, frozen=True, tag="prepared"):
    """The model is loaded, or `refusal` says why it is not."""

    seconds: float
    refusal: Text = ""


class Commit(Struct, frozen=True, tag="commit"):
    """Asks an infer process to use the prepared model from the next frame on."""


class Committed(Struct, frozen=True, tag="committed"):
    """The prepared model is in use."""


class Fetch(Struct, frozen=True, tag="fetch"):
    """Asks for a piece of a served item, from byte `offset` on."""

    schema: int
    item: Literal["model", "weights"]
    offset: Count


class Chunk(Struct, frozen=True, tag="chunk"):
    """A piece of an item, with the size and hash of the whole."""

    item: Name
    total: Count  # bytes of the item
    sha256: Hash
    offset: Count
    data: bytes
    sidecar: bytes = b""  # a plan's sidecar (JSON), with the first piece


LinkMessage = Hello | Welcome | Refuse | Offer | Release | Unmapped | Beat | Bye | Result | Ack
ControlMessage = Describe | Described | Restart | Stop | SetLevel | Done | Correct | Corrected
SwapMessage = Prepare | Prepared | Commit | Committed
Message = LinkMessage | ControlMessage | SwapMessage | Fetch | Chunk
DROP_REASONS = ("no_slot", "no_credit", "deadline", "stale", "decode_error", "engine_error")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
encode = _encoder.encode


def decode(data: bytes) -> Message:
    """The message in `data`. Raises msgspec.MsgspecError for data that is not one of these messages."""
    return _decoder.decode(data)
