"""OpenTelemetry: one trace a frame, begun by its decoder, with a span for each stage in each process.

The decoder decides once whether a frame is traced; an untraced frame costs one comparison. Spans are exported by a
separate thread: a slow or dead collector delays nothing, and spans that it does not accept are counted as `spans_lost`.
A process that traces nothing does not import this module, see tracer.py.
"""

import base64
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import FrameHeader
from peoplecounter.common.process.tracer import Attributes
from peoplecounter.common.settings import TelemetrySettings

QUEUE = 4096  # spans waiting for export
IDS = {"traceId", "spanId", "parentSpanId"}
_propagator = TraceContextTextMapPropagator()
_CLOCK_OFFSET_NS = time.time_ns() - time.monotonic_ns()


def identity(process: str) -> dict[str, str]:
    """OpenTelemetry's attributes for a process "infer_tiles.0"."""
    name, _, instance = process.partition(".")
    return {"service.name": f"peoplecounter.{name}", "service.instance.id": instance or "0"}


def resource(process: str) -> Resource:
    """The resource of a process; OTEL_RESOURCE_ATTRIBUTES takes precedence."""
    named = {**identity(process), "service.namespace": "peoplecounter"}
    return Resource.create(named).merge(OTELResourceDetector().detect())


class Spans:
    """Starts and ends spans from CLOCK_MONOTONIC times."""

    def __init__(self, service: str, settings: TelemetrySettings, counters: Counter[str]):
        self._counters = counters
        self._provider = TracerProvider(resource=resource(service))
        self._counting = _CountingExporter(_exporter(settings), counters)
        self._provider.add_span_processor(_EndedCounter(counters))
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._counting, max_queue_size=QUEUE, schedule_delay_millis=500, export_timeout_millis=5000
            )
        )
        self._tracer = self._provider.get_tracer("peoplecounter")

    def record(self, name: str, header: FrameHeader, begin_ns: int, end_ns: int, attributes: Attributes) -> None:
        """One finished stage of a traced frame, as a child of the frame's root span."""
        parent = _propagator.extract({"traceparent": header.traceparent})
        self._start(name, parent, header, begin_ns, attributes).end(end_ns + _CLOCK_OFFSET_NS)

    def open(self, name: str, header: FrameHeader, begin_ns: int) -> "FrameSpan":
        """Begins the root span of a frame."""
        return FrameSpan(self._start(name, None, header, begin_ns, {}))

    def _start(
        self, name: str, parent: Context | None, header: FrameHeader, begin_ns: int, attributes: Attributes
    ) -> trace.Span:
        return self._tracer.start_span(
            name,
            context=parent,
            start_time=begin_ns + _CLOCK_OFFSET_NS,
            attributes={"source": header.source, "seq": header.seq, **attributes},
        )

    def count_lost(self) -> None:
        """Counts spans as lost that ended, were not exported, and no longer fit into the queue."""
        waiting = self._counters["spans_ended"] - self._counters["spans_exported"] - self._counters["spans_lost"]
        if waiting > QUEUE:
            self._counters["spans_lost"] += waiting - QUEUE

    def close(self) -> int:
        """Exports the remaining spans, for at most a few seconds; returns how many were lost since the start."""
        self._provider.shutdown()
        return self._counters["spans_ended"] - self._counters["spans_exported"]


class FrameSpan:
    """A frame's root span. Its `traceparent` travels in the header; end() ends it with its stage."""

    def __init__(self, span: trace.Span):
        self._span = span
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(span))
        self.traceparent: str = carrier["traceparent"]

    def end(self, end_ns: int) -> None:
        self._span.end(end_ns + _CLOCK_OFFSET_NS)


def _exporter(telemetry: TelemetrySettings) -> SpanExporter:
    if telemetry.exporter == "file":
        return OtlpJsonExporter(Path(telemetry.file))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(telemetry.endpoint, timeout=2)


class OtlpJsonExporter(SpanExporter):
    """Appends OTLP/JSON to a file that several processes may share, one request a line: a collector's file format.

    Collectors read it with their otlpjsonfile receiver, people with `peoplecounter trace`. Raises AppError when the
    file cannot be written.
    """

    def __init__(self, path: Path):
        from google.protobuf.json_format import MessageToDict  # here: importing this later would delay frames
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        self._to_dict, self._encode = MessageToDict, encode_spans
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise AppError(f"The traces file {path} cannot be written: {error.strerror}. Set telemetry.file.") from None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        request = self._to_dict(self._encode(spans), use_integers_for_enums=True)
        for span in (s for r in request["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]):
            for key in IDS & span.keys():
                span[key] = base64.b64decode(span[key]).hex()  # OTLP/JSON has ids in hex, protobuf's JSON in base64
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        self._file.write(line)  # one O_APPEND write is never interleaved
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


class _EndedCounter(SpanProcessor):
    """Counts spans as they end, before the exporter's queue may drop them."""

    def __init__(self, counters: Counter[str]):
        self._counters = counters

    def on_end(self, span: ReadableSpan) -> None:
        self._counters["spans_ended"] += 1


class _CountingExporter(SpanExporter):
    """Counts the spans that an exporter accepted and those that it did not."""

    def __init__(self, exporter: SpanExporter, counters: Counter[str]):
        self._exporter, self._counters = exporter, counters

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
        key = "spans_exported" if result is SpanExportResult.SUCCESS else "spans_lost"
        self._counters[key] += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
