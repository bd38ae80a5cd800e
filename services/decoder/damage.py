"""Which pictures lost or corrupt data has spoilt, and how FFmpeg says that data is lost.

A picture refers to those before it. So damage lasts until the next keyframe, whatever the decoder makes up meanwhile:
from the damaged packet on, pictures are void. The pictures that are shown before that keyframe are void too, even if
they come behind it. A camera that sends no keyframe for `recover_s` is believed again, but its pictures are doubtful.
"""

import logging
import re
from collections.abc import Callable
from typing import Literal, TypeVar

import av
import av.logging

Verdict = Literal["whole", "void", "doubtful"]
Result = TypeVar("Result")

MISSED = re.compile(r"missed -?\d+ packets")  # of RTP
PART_LOST = "a part of the packet is lost"
CORRUPT = re.compile(r"Packet corrupt \(stream = (\d+), dts = (\d+)\)")
HARMLESS = re.compile(  # what decoders say of pictures that are whole
    r"APP fields|SEI|reorder buffer|deprecated|EOI missing|chunk|profile|EXIF|ICC|chromaticities|AVI1|colou?r"
)

av.logging.set_level(av.logging.WARNING)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").propagate = False  # what is said outside listen() is for nobody, and may hold a password
logging.getLogger("libav").addHandler(logging.NullHandler())


def listen(call: Callable[[], Result]) -> tuple[Result, list[str]]:
    """(what a call into FFmpeg returns, the errors and warnings that it logs in this thread)."""
    with av.logging.Capture(local=True) as logs:
        result = call()
    return result, [text.strip() for _, _, text in logs]


class LostData:
    """What a demuxer has said of lost data, some of it before it gives the packet that it belongs to."""

    def __init__(self, stream: int, said: list[str]):
        self._stream = stream
        self._corrupt_dts: set[int] = set()
        self._missed = ""
        self.hear(said)

    def hear(self, said: list[str]) -> None:
        """Notes what concerns this stream."""
        for text in said:
            if found := CORRUPT.search(text):
                if int(found[1]) == self._stream:
                    self._corrupt_dts.add(int(found[2]))
            elif MISSED.search(text):
                self._missed = text

    def of(self, packet: av.Packet) -> str:
        """What is lost of the next packet, or just before it; empty: nothing."""
        lost, self._missed = self._missed, ""
        if packet.dts in self._corrupt_dts:
            self._corrupt_dts.remove(packet.dts)
            lost = lost or PART_LOST
        elif packet.is_corrupt:  # FFmpeg's parser marks the packet in front of the corrupt one
            self._missed = PART_LOST
        return lost


def decoding_problem(said: list[str]) -> str:
    """What a decoder has said of a picture that it could not decode as a whole; empty: nothing."""
    return next((text for text in said if not HARMLESS.search(text)), "")


class Damage:
    """Judges every packet of a stream, in the order in which they are decoded. Pure."""

    def __init__(self, recover_s: float):
        self._recover_s = recover_s
        self._since_s: float | None = None  # when the damage began; None: there is none
        self._shown_from: int | None = None  # pts of the keyframe that ended it

    def spoils(self, keyframe: bool) -> bool:
        """True when the next packet's picture is spoilt already by what came before it."""
        return self._since_s is not None and not keyframe

    def begin(self, time_s: float) -> None:
        """A picture turned out to be damaged."""
        self._since_s = time_s if self._since_s is None else self._since_s

    def judge(self, keyframe: bool, pts: int | None, time_s: float, damaged: bool) -> Verdict:
        """The verdict on the picture of a packet. `damaged`: its own data is lost or corrupt."""
        if damaged:
            self.begin(time_s)
        elif keyframe:
            self._shown_from = pts if self._since_s is not None else None
            self._since_s = None
        if self._since_s is not None:
            return "doubtful" if time_s - self._since_s > self._recover_s else "void"
        leading = self._shown_from is not None and pts is not None and pts < self._shown_from
        return "void" if leading else "whole"
