"""What a service does to trace frames. OpenTelemetry itself, telemetry.py, is imported only if frames are traced."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from peoplecounter.common.ipc.messages import FrameHeader
from peoplecounter.common.settings import Settings

if TYPE_CHECKING:
    from peoplecounter.common.process.telemetry import FrameSpan

Attributes = Mapping[str, str | int | bool]


class Tracer:
    """The spans of one process; a no-op without an exporter. Raises AppError for one that cannot be used."""

    def __init__(self, service: str, settings: Settings, counters: Counter[str]):
        self._ratio = 0.0 if settings.telemetry.exporter == "none" else settings.telemetry.ratio
        if self._ratio:
            from peoplecounter.common.process.telemetry import Spans

            self._spans = Spans(service, settings.telemetry, counters)

    def begin(self) -> bool:
        """True when the next frame is to be traced."""
        return self._ratio > 0 and random.random() < self._ratio

    def open(self, name: str, header: FrameHeader, begin_ns: int) -> "FrameSpan":
        """Begins the root span of a frame, after begin()."""
        return self._spans.open(name, header, begin_ns)

    def record(
        self, name: str, header: FrameHeader, begin_ns: int, end_ns: int, **attributes: str | int | bool
    ) -> None:
        """Records one finished stage of a traced frame."""
        if self._ratio and header.traceparent:
            self._spans.record(name, header, begin_ns, end_ns, attributes)

    def count_lost(self) -> None:
        """Counts what the exporter's queue had no room for."""
        if self._ratio:
            self._spans.count_lost()

    def close(self) -> int:
        """Exports the remaining spans, for at most a few seconds; returns how many were lost since the start."""
        return self._spans.close() if self._ratio else 0
