"""A collector: takes OTLP over HTTP and parses the real protobufs."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Collector:
    """Listens on loopback while its context lasts; `requests` are what it has got."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest | ExportMetricsServiceRequest] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                requests.append(KINDS[self.path].FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, kind: str) -> str:
        """Where "traces" or "metrics" are taken."""
        return f"http://127.0.0.1:{self._server.server_port}/v1/{kind}"

    def spans(self) -> Iterator[tuple[dict[str, str], object]]:
        """(attributes of its process, span) of every span."""
        for request in self.requests:
            for resource in getattr(request, "resource_spans", ()):
                process = {a.key: a.value.string_value for a in resource.resource.attributes}
                yield from ((process, span) for scope in resource.scope_spans for span in scope.spans)

    def senders(self) -> set[str]:
        """service.instance.id of the processes that sent metrics."""
        found = [r.resource.attributes for request in self.requests for r in getattr(request, "resource_metrics", ())]
        return {a.value.string_value for attributes in found for a in attributes if a.key == "service.instance.id"}

    def points(self) -> dict[str, float]:
        """Metric -> its last value, summed over its attributes; of a histogram, how many values it has."""
        found: dict[str, float] = {}
        for request in self.requests:
            for resource in getattr(request, "resource_metrics", ()):
                for metric in (m for scope in resource.scope_metrics for m in scope.metrics):
                    if metric.HasField("histogram"):
                        found[metric.name] = sum(p.count for p in metric.histogram.data_points)
                    else:
                        of = metric.sum if metric.HasField("sum") else metric.gauge
                        found[metric.name] = sum(p.as_int or p.as_double for p in of.data_points)
        return found
