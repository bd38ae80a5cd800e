"""OpenTelemetry: one trace a frame, begun by its decoder, with a span for each stage in each process.

Whether a frame is traced is decided once, by the decoder; an untraced frame costs a comparison. Spans are exported by a
thread of their own: a slow or dead collector delays nothing, and what it does not take is counted as `spans_lost`.
"""

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from peoplecounter.common.errors import Refused
from peoplecounter.common.ipc.messages import Header
from peoplecounter.common.settings import Settings

QUEUE = 4096  # spans waiting for export
IDS = {"traceId", "spanId", "parentSpanId"}
_propagator = TraceContextTextMapPropagator()
_CLOCK_OFFSET_NS = time.time_ns() - time.monotonic_ns()


def identity(process: str) -> dict[str, str]:
    """A process "infer_tiles.0" as OpenTelemetry names it."""
    name, _, instance = process.partition(".")
    return {"service.name": f"peoplecounter.{name}", "service.instance.id": instance or "0"}


def resource(process: str) -> Resource:
    """Its resource, in which OTEL_RESOURCE_ATTRIBUTES has the last word."""
    named = {**identity(process), "service.namespace": "peoplecounter"}
    return Resource.create(named).merge(OTELResourceDetector().detect())


class Tracer:
    """Starts and records spans from CLOCK_MONOTONIC times; a no-op without an exporter."""

    def __init__(self, service: str, settings: Settings, counters: Counter[str]):
        self._ratio = 0.0
        self._counters = counters
        exporter = _exporter(settings)
        if exporter is None:
            return
        self._ratio = settings.telemetry.ratio
        self._provider = TracerProvider(resource=resource(service))
        self._counting = _Counting(exporter, counters)
        self._provider.add_span_processor(_Ended(counters))
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._counting, max_queue_size=QUEUE, schedule_delay_millis=500, export_timeout_millis=5000
            )
        )
        self._tracer = self._provider.get_tracer("peoplecounter")

    def begin(self) -> bool:
        """True when the next frame is to be traced."""
        return self._ratio > 0 and random.random() < self._ratio

    def record(self, name: str, header: Header, begin_ns: int, end_ns: int, **attributes: str | int | bool) -> None:
        """One finished stage of a traced frame, as a child of the frame's root span."""
        if self._ratio and header.traceparent:
            parent = _propagator.extract({"traceparent": header.traceparent})
            self._start(name, parent, header, begin_ns, attributes).end(end_ns + _CLOCK_OFFSET_NS)

    def open(self, name: str, header: Header, begin_ns: int) -> "Opened":
        """Begins the first stage of a frame."""
        return Opened(self._start(name, None, header, begin_ns, {}))

    def _start(self, name, parent, header, begin_ns, attributes) -> trace.Span:
        return self._tracer.start_span(
            name,
            context=parent,
            start_time=begin_ns + _CLOCK_OFFSET_NS,
            attributes={"source": header.source, "seq": header.seq, **attributes},
        )

    def account(self) -> None:
        """Counts as lost what ended, was not exported and cannot be waiting in the full queue any more."""
        waiting = self._counters["spans_ended"] - self._counters["spans_exported"] - self._counters["spans_lost"]
        if waiting > QUEUE:
            self._counters["spans_lost"] += waiting - QUEUE

    def close(self) -> int:
        """Exports what is left, for at most a few seconds; returns how many spans were lost since the start."""
        if not self._ratio:
            return 0
        self._provider.shutdown()
        return self._counters["spans_ended"] - self._counters["spans_exported"]


class Opened:
    """A frame's root span: its `traceparent` travels in the header, it ends when its stage does."""

    def __init__(self, span: trace.Span):
        self._span, carrier = span, {}
        _propagator.inject(carrier, trace.set_span_in_context(span))
        self.traceparent: str = carrier["traceparent"]

    def end(self, end_ns: int) -> None:
        self._span.end(end_ns + _CLOCK_OFFSET_NS)


def _exporter(settings: Settings) -> SpanExporter | None:
    telemetry = settings.telemetry
    if telemetry.exporter == "none" or telemetry.ratio == 0:
        return None
    if telemetry.exporter == "file":
        return JsonLines(Path(telemetry.file))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(telemetry.endpoint, timeout=2)


class JsonLines(SpanExporter):
    """Appends OTLP/JSON to a file that several processes may share, a request a line, as a collector's own file has it.

    Collectors read it with their otlpjsonfile receiver, people with `peoplecounter trace`.
    """

    def __init__(self, path: Path):
        from google.protobuf.json_format import MessageToDict  # now: an import while frames pass holds them up
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        self._to_dict, self._encode = MessageToDict, encode_spans
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise Refused(f"The traces file {path} cannot be written: {error.strerror}; set telemetry.file.") from None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        request = self._to_dict(self._encode(spans), use_integers_for_enums=True)
        for span in (s for r in request["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]):
            for key in IDS & span.keys():
                span[key] = base64.b64decode(span[key]).hex()  # in OTLP/JSON, unlike in protobuf's own
        self._file.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")  # one O_APPEND write: never mixed
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


class _Ended(SpanProcessor):
    """Counts spans as they end, before the queue of the exporter may refuse them."""

    def __init__(self, counters: Counter[str]):
        self._counters = counters

    def on_end(self, span: ReadableSpan) -> None:
        self._counters["spans_ended"] += 1


class _Counting(SpanExporter):
    """Counts what the real exporter took and what it did not."""

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
