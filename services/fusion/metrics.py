"""Metrics of the whole group, in OpenTelemetry. Fusion reports them, because it learns of every frame and process.

They are scraped by Prometheus on loopback or pushed to a collector by OTLP/HTTP. Observable instruments (OBSERVED) cost
nothing until they are read; durations are recorded when a count is published.
"""

import threading
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

from peoplecounter.common.errors import AppError
from peoplecounter.common.process.telemetry import identity, resource
from peoplecounter.common.settings import TelemetrySettings
from peoplecounter.services.fusion.group import Group, SourceView
from peoplecounter.services.fusion.members import ProcessState

PUSH_MS = 10_000
IDLE_S = 5.0  # after which a connection without a request is closed
BOUNDARIES_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.025,
    0.033, 0.042, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip
DURATIONS = {
    "frame": ("peoplecounter.frame.duration", "A frame, from its packet's arrival to its published count"),
    "stage": ("peoplecounter.stage.duration", "Work of a stage on a frame"),
    "hop": ("peoplecounter.hop.duration", "Time between two stages; fusion_wait: between a frame's two answers"),
}
Rows = Iterator[tuple[float, dict[str, str]]]  # value, attributes


def _sources(value: Callable[[SourceView, int], float]) -> Callable[[Group], Rows]:
    """A value of each source, computed from the source and the time, ns."""

    def rows(group: Group) -> Rows:
        now_ns = group.now_ns()
        for name, source in list(group.sources.items()):
            yield value(source, now_ns), {"source": name}

    return rows


def _people(group: Group) -> Rows:
    for name, source in list(group.sources.items()):
        if source.people is not None:
            yield source.people, {"source": name}


def _dropped(group: Group) -> Rows:
    for name, source in list(group.sources.items()):
        for reason, frames in list(source.status["totals"]["dropped"].items()):
            yield frames, {"source": name, "reason": reason}


def _crossings(group: Group) -> Rows:
    for name, source in list(group.sources.items()):
        for line in list(source.status["lines"]):
            for direction, times in group.line_totals(f"{name}.{line}").public().items():
                yield times, {"source": name, "line": line, "direction": direction}


def _zones(group: Group) -> Rows:
    for name, source in list(group.sources.items()):
        for zone, totals in list(source.status["zones"].items()):
            yield totals["people"], {"source": name, "zone": zone}


def _areas(group: Group) -> Rows:
    for name, area in group.areas.items():
        yield area.occupancy(), {"area": name}


def _processes(group: Group) -> Iterator[tuple[ProcessState, dict[str, str]]]:
    """(state, attributes) of each process."""
    for name, process in list(group.members.processes.items()):
        yield process, identity(name)


def _counters(group: Group) -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    """(counters, attributes) of each process that is not down."""
    return ((process.counters, named) for process, named in _processes(group) if process.state != "down")


def _gauges(group: Group) -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    """(gauges, attributes) of each process that is not down."""
    return ((process.gauges, named) for process, named in _processes(group) if process.state != "down")


def _gauge(key: str) -> Callable[[Group], Rows]:
    """A gauge of each process that reports it."""

    def rows(group: Group) -> Rows:
        for gauges, named in _gauges(group):
            if key in gauges:
                yield gauges[key], named

    return rows


def _gpu_gauge(key: str) -> Callable[[Group], Rows]:
    """A gauge of each GPU: all its processes report the same, so the first report is used."""

    def rows(group: Group) -> Rows:
        seen = set()
        for gauges, _ in _gauges(group):
            number = gauges.get("gpu")
            if key in gauges and number not in seen:
                seen.add(number)
                yield gauges[key], {} if number is None else {"hw.id": str(number)}

    return rows


def _slots(group: Group) -> Rows:
    for gauges, named in _gauges(group):
        for key, slots in gauges.items():
            if key.startswith("slots_"):
                yield slots, {**named, "state": key.removeprefix("slots_")}


def _up(group: Group) -> Rows:
    for process, named in _processes(group):
        yield int(process.state == "up"), named


def _spans(group: Group) -> Rows:
    for counters, named in _counters(group):
        if "spans_ended" in counters:
            yield counters.get("spans_exported", 0), named
            yield counters.get("spans_lost", 0), {**named, "error.type": "lost"}


def _batches(group: Group) -> Rows:
    for counters, named in _counters(group):
        for mode in ("graph", "plain"):
            if f"batches_{mode}" in counters:
                yield counters[f"batches_{mode}"], {**named, "mode": mode}


def _events(group: Group) -> Rows:
    for counters, named in _counters(group):
        for event, times in counters.items():
            if not event.startswith(("batches_", "spans_")):
                yield times, {**named, "event": event}


def _budgets(key: str) -> Callable[[Group], Rows]:
    def rows(group: Group) -> Rows:
        for name, state in list(group.budgets.items()):
            yield state[key] / 1000, {"budget": name}

    return rows


Observed = tuple[str, str, str, str, Callable[[Group], Rows]]  # name, kind of instrument, unit, description, rows
OBSERVED: tuple[Observed, ...] = (
    (
        "peoplecounter.frames", "counter", "{frame}", "Frames, counted or not",
        _sources(lambda s, _: s.status["totals"]["frames"]),
    ),
    (
        "peoplecounter.frames.counted", "counter", "{frame}", "Frames counted",
        _sources(lambda s, _: s.status["totals"]["counted"]),
    ),
    (
        "peoplecounter.frames.incomplete", "counter", "{frame}", "Counted frames of which a part was missing",
        _sources(lambda s, _: s.status["totals"]["incomplete"]),
    ),
    ("peoplecounter.frames.dropped", "counter", "{frame}", "Frames not counted", _dropped),
    ("peoplecounter.people", "gauge", "{person}", "People in the last complete frame", _people),
    ("peoplecounter.line.crossings", "counter", "{crossing}", "People who crossed a line, in and out", _crossings),
    ("peoplecounter.zone.people", "gauge", "{person}", "People in a zone", _zones),
    ("peoplecounter.area.people", "gauge", "{person}", "Occupancy of an area; below 0: more have left", _areas),
    (
        "peoplecounter.source.online", "gauge", "", "1 while the source is online",
        _sources(lambda s, now: int(s.state(now) == "online")),
    ),
    (
        "peoplecounter.source.frame.age", "gauge", "s", "Since the last counted frame",
        _sources(lambda s, now: (now - s.frame_ns) / 1e9),
    ),
    ("peoplecounter.process.up", "gauge", "", "1 while a process is up, 0 while it is silent or down", _up),
    ("peoplecounter.process.restarts", "counter", "{restart}", "Starts after the first", _gauge("restarts")),
    ("process.memory.usage", "up_down_counter", "By", "Resident memory", _gauge("memory_bytes")),
    ("process.unix.file_descriptor.count", "up_down_counter", "{file_descriptor}", "Open", _gauge("descriptors")),
    ("process.thread.count", "up_down_counter", "{thread}", "Threads", _gauge("threads")),
    ("peoplecounter.ring.slots", "up_down_counter", "{slot}", "Slots of a ring by their state", _slots),
    ("peoplecounter.ring.leases", "up_down_counter", "{lease}", "Parts that a process has leased", _gauge("leases")),
    ("peoplecounter.ring.credits", "up_down_counter", "{offer}", "Offers a process still accepts", _gauge("credits")),
    ("peoplecounter.engine.batches", "counter", "{batch}", "Batches by how they were launched", _batches),
    ("hw.gpu.memory.usage", "up_down_counter", "By", "GPU memory in use", _gpu_gauge("gpu_used_bytes")),
    ("hw.gpu.memory.limit", "up_down_counter", "By", "Total GPU memory", _gpu_gauge("gpu_bytes")),
    ("otel.sdk.exporter.span.exported", "counter", "{span}", "Spans exported, or lost (error.type)", _spans),
    ("peoplecounter.events", "counter", "{event}", "Other counters of a process", _events),
    ("peoplecounter.budget.limit", "gauge", "s", "Budget of a p95", _budgets("budget_ms")),
    ("peoplecounter.budget.p95", "gauge", "s", "p95 of the last 10 s", _budgets("p95_ms")),
)  # fmt: skip


class Metrics:
    """The group's instruments. Raises AppError when the address for Prometheus cannot be bound."""

    def __init__(self, group: Group, process: str, settings: TelemetrySettings):
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        readers = [reader for make in (self._scraped, _pushed) if (reader := make(settings))]
        self._provider = MeterProvider(
            metric_readers=readers, resource=resource(process), exemplar_filter=AlwaysOffExemplarFilter()
        )
        meter = self._provider.get_meter("peoplecounter")
        for name, kind, unit, description, rows in OBSERVED:
            create = getattr(meter, f"create_observable_{kind}")
            create(name, callbacks=[_callback(rows, group)], unit=unit, description=description)
        self._durations = {
            key: meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=BOUNDARIES_S)
            for key, (name, about) in DURATIONS.items()
        }

    def record(self, source: str, stages_ms: dict[str, float], hops_ms: dict[str, float], all_ms: float) -> None:
        """Records the times of a frame whose count was published."""
        self._durations["frame"].record(all_ms / 1000, {"source": source})
        for key, times in (("stage", stages_ms), ("hop", hops_ms)):
            for name, ms in times.items():
                self._durations[key].record(ms / 1000, {key: name})

    def close(self) -> None:
        self._provider.shutdown(timeout_millis=1000)
        if self._server and self._thread:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _scraped(self, settings: TelemetrySettings) -> MetricReader | None:
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
            raise AppError(
                f"Metrics cannot be served on {settings.prometheus}: {error.strerror}. Set telemetry.prometheus."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="prometheus")
        self._thread.start()
        return reader


class _Server(ThreadingMixIn, WSGIServer):
    """One thread per scrape."""

    daemon_threads = True


class _Request(WSGIRequestHandler):
    """Closes idle connections and logs nothing."""

    timeout = IDLE_S

    def log_message(self, *_: object) -> None:
        pass


def _pushed(settings: TelemetrySettings) -> MetricReader | None:
    if not settings.metrics_endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    exporter = OTLPMetricExporter(settings.metrics_endpoint, timeout=2)
    return PeriodicExportingMetricReader(exporter, PUSH_MS, export_timeout_millis=5000)


def _callback(rows: Callable[[Group], Rows], group: Group) -> Callable[[CallbackOptions], list[Observation]]:
    return lambda options: [Observation(value, attributes) for value, attributes in rows(group)]
