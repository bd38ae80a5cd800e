"""Metrics of the whole group, in OpenTelemetry: fusion hears of every frame and of every process, so it tells of all.

Scraped by Prometheus on loopback, pushed to a collector by OTLP/HTTP, or neither: then nothing is kept. Instruments
that are looked at (OBSERVED) cost nothing until somebody looks; durations are recorded when a count is published.
"""

import threading
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

from peoplecounter.common.errors import Refused
from peoplecounter.common.process.telemetry import identity, resource
from peoplecounter.common.settings import Telemetry

if TYPE_CHECKING:
    from peoplecounter.services.fusion.__main__ import Fusion, Service

PUSH_MS = 10_000
IDLE_S = 5.0  # of a connection that does not ask
BOUNDARIES_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025,
    0.033, 0.042, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
DURATIONS = {
    "frame": ("peoplecounter.frame.duration", "A frame, from its packet's arrival to its published count"),
    "stage": ("peoplecounter.stage.duration", "Work of a stage on a frame"),
    "hop": ("peoplecounter.hop.duration", "A frame's time between two stages; fusion_wait: between its two answers"),
}
Rows = Iterator[tuple[float, dict[str, str]]]  # value, attributes


def _sources(value: Callable[[object, int], float]) -> Callable[["Fusion"], Rows]:
    """A value of each source, given it and the time, ns."""

    def rows(fusion: "Fusion") -> Rows:
        now = fusion.rt.loop.now_ns()
        for name, source in list(fusion.sources.items()):
            yield value(source, now), {"source": name}

    return rows


def _people(fusion: "Fusion") -> Rows:
    for name, source in list(fusion.sources.items()):
        if source.people is not None:
            yield source.people, {"source": name}


def _dropped(fusion: "Fusion") -> Rows:
    for name, source in list(fusion.sources.items()):
        for reason, frames in list(source.totals.dropped.items()):
            yield frames, {"source": name, "reason": reason}


def _processes(fusion: "Fusion") -> Iterator[tuple["Service", dict[str, str]]]:
    """(what is known of it, attributes) of each process, fusion among them."""
    for name, service in [*fusion.services.items(), (fusion.rt.name, fusion.own)]:
        yield service, identity(name)


def _counters(fusion: "Fusion") -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    """(counters, attributes) of each process that is not known to be down."""
    return ((s.told.get("counters", {}), named) for s, named in _processes(fusion) if s.state != "down")


def _gauges(fusion: "Fusion") -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    """(gauges, attributes) of the same."""
    return ((s.gauges, named) for s, named in _processes(fusion) if s.state != "down")


def _gauge(key: str, once: bool = False) -> Callable[["Fusion"], Rows]:
    """A gauge of each process that has it; `once`: they all tell of the same thing."""

    def rows(fusion: "Fusion") -> Rows:
        for gauges, named in _gauges(fusion):
            if key in gauges:
                yield gauges[key], {} if once else named
                if once:
                    return

    return rows


def _slots(fusion: "Fusion") -> Rows:
    for gauges, named in _gauges(fusion):
        for key, slots in gauges.items():
            if key.startswith("slots_"):
                yield slots, {**named, "state": key.removeprefix("slots_")}


def _up(fusion: "Fusion") -> Rows:
    for service, named in _processes(fusion):
        yield int(service.state == "up"), named


def _spans(fusion: "Fusion") -> Rows:
    for counters, named in _counters(fusion):
        if "spans_ended" in counters:
            yield counters.get("spans_exported", 0), named
            yield counters.get("spans_lost", 0), {**named, "error.type": "lost"}


def _batches(fusion: "Fusion") -> Rows:
    for counters, named in _counters(fusion):
        for mode in ("graph", "plain"):
            if f"batches_{mode}" in counters:
                yield counters[f"batches_{mode}"], {**named, "mode": mode}


def _events(fusion: "Fusion") -> Rows:
    for counters, named in _counters(fusion):
        for event, times in counters.items():
            if not event.startswith(("batches_", "spans_")):
                yield times, {**named, "event": event}


def _budgets(key: str) -> Callable[["Fusion"], Rows]:
    def rows(fusion: "Fusion") -> Rows:
        for name, state in list(fusion.budgets.items()):
            yield state[key] / 1000, {"budget": name}

    return rows


OBSERVED = (  # name, kind of instrument, unit, what it is, its rows
    ("peoplecounter.frames", "counter", "{frame}", "Frames, counted or not", _sources(lambda s, _: s.totals.next_seq)),
    ("peoplecounter.frames.counted", "counter", "{frame}", "Frames counted", _sources(lambda s, _: s.totals.counted)),
    (
        "peoplecounter.frames.incomplete", "counter", "{frame}", "Counted frames of which a part was missing",
        _sources(lambda s, _: s.totals.incomplete),
    ),
    ("peoplecounter.frames.dropped", "counter", "{frame}", "Frames not counted", _dropped),
    ("peoplecounter.people", "gauge", "{person}", "People in the last complete frame", _people),
    (
        "peoplecounter.source.online", "gauge", "", "1 while the source's decoder says that it is online",
        _sources(lambda s, now: int(s.shown(now) == "online")),
    ),
    (
        "peoplecounter.source.frame.age", "gauge", "s", "Since the last counted frame",
        _sources(lambda s, now: (now - s.frame_ns) / 1e9),
    ),
    ("peoplecounter.process.up", "gauge", "", "1 while a process is there and not silent", _up),
    ("peoplecounter.process.restarts", "counter", "{restart}", "Starts after the first", _gauge("restarts")),
    ("process.memory.usage", "up_down_counter", "By", "Resident memory", _gauge("memory_bytes")),
    ("process.unix.file_descriptor.count", "up_down_counter", "{file_descriptor}", "Open", _gauge("descriptors")),
    ("process.thread.count", "up_down_counter", "{thread}", "Threads", _gauge("threads")),
    ("peoplecounter.ring.slots", "up_down_counter", "{slot}", "Slots of a ring by their state", _slots),
    ("peoplecounter.ring.leases", "up_down_counter", "{lease}", "Parts that a process holds", _gauge("leases")),
    ("peoplecounter.ring.credits", "up_down_counter", "{offer}", "Offers it still accepts", _gauge("credits")),
    ("peoplecounter.engine.batches", "counter", "{batch}", "Batches by how they were launched", _batches),
    ("hw.gpu.memory.usage", "up_down_counter", "By", "GPU memory in use by everybody", _gauge("gpu_used_bytes", True)),
    ("hw.gpu.memory.limit", "up_down_counter", "By", "GPU memory there is", _gauge("gpu_bytes", True)),
    ("otel.sdk.exporter.span.exported", "counter", "{span}", "Spans exported, or lost (error.type)", _spans),
    ("peoplecounter.events", "counter", "{event}", "Whatever else a process counts", _events),
    ("peoplecounter.budget.limit", "gauge", "s", "What p95 may be", _budgets("budget_ms")),
    ("peoplecounter.budget.p95", "gauge", "s", "What p95 of the last 10 s is", _budgets("p95_ms")),
)  # fmt: skip


class Metrics:
    """The group's instruments. Raises Refused when the address for Prometheus cannot be had."""

    def __init__(self, fusion: "Fusion", settings: Telemetry):
        self._server = self._thread = None
        readers = [reader for make in (self._scraped, _pushed) if (reader := make(settings))]
        self._provider = MeterProvider(
            metric_readers=readers, resource=resource(fusion.rt.name), exemplar_filter=AlwaysOffExemplarFilter()
        )
        meter = self._provider.get_meter("peoplecounter")
        for name, kind, unit, description, rows in OBSERVED:
            create = getattr(meter, f"create_observable_{kind}")
            create(name, callbacks=[_callback(rows, fusion)], unit=unit, description=description)
        self._durations = {
            key: meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=BOUNDARIES_S)
            for key, (name, about) in DURATIONS.items()
        }

    def record(self, source: str, stages_ms: dict[str, float], hops_ms: dict[str, float], all_ms: float) -> None:
        """The times of a frame whose count has been published."""
        self._durations["frame"].record(all_ms / 1000, {"source": source})
        for key, times in (("stage", stages_ms), ("hop", hops_ms)):
            for name, ms in times.items():
                self._durations[key].record(ms / 1000, {key: name})

    def close(self) -> None:
        self._provider.shutdown(timeout_millis=1000)
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _scraped(self, settings: Telemetry) -> MetricReader | None:
        if not settings.prometheus:
            return None
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, make_wsgi_app

        registry = CollectorRegistry()
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
        host, _, port = settings.prometheus.rpartition(":")
        try:
            self._server = make_server(host, int(port), make_wsgi_app(registry), _Server, _Request)
        except OSError as error:
            raise Refused(
                f"Prometheus cannot be served on {settings.prometheus}: {error.strerror}; set telemetry.prometheus."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="prometheus")
        self._thread.start()
        return reader


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a scrape."""

    daemon_threads = True


class _Request(WSGIRequestHandler):
    """One that says nothing is left alone."""

    timeout = IDLE_S

    def log_message(self, *_: object) -> None:
        pass


def _pushed(settings: Telemetry) -> MetricReader | None:
    if not settings.metrics_endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    exporter = OTLPMetricExporter(settings.metrics_endpoint, timeout=2)
    return PeriodicExportingMetricReader(exporter, PUSH_MS, export_timeout_millis=5000)


def _callback(rows: Callable[["Fusion"], Rows], fusion: "Fusion") -> Callable[[CallbackOptions], list[Observation]]:
    return lambda options: [Observation(value, attributes) for value, attributes in rows(fusion)]
