"""One trace a frame across five processes: as a collector gets it, and as people draw it from a file."""

import base64
import json

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from peoplecounter.common.process.telemetry import IDS
from peoplecounter.common.topology import SERVICES
from tests.support.cli import peoplecounter
from tests.support.otlp import Collector
from tests.support.squares import FRAMES, expected

STAGES = {"decode": "decoder", **{s: s for s in ("preprocess", "infer_global", "infer_tiles", "fusion")}}
BEFORE = [("decode", "preprocess"), ("preprocess", "infer_global"), ("preprocess", "infer_tiles")]
BEFORE += [("infer_global", "fusion"), ("infer_tiles", "fusion")]


def check_traces(spans) -> None:
    """(attributes of its process, span) of a file of squares that was counted whole, every frame traced."""
    frames: dict[bytes, dict[str, object]] = {}
    for process, span in spans:
        assert process["service.namespace"] == "peoplecounter"
        assert process["service.name"] == f"peoplecounter.{STAGES[span.name]}"
        assert process["service.instance.id"] == ("cam" if span.name == "decode" else "0")
        assert span.name not in frames.setdefault(span.trace_id, {})
        frames[span.trace_id][span.name] = span
    assert len(frames) == FRAMES
    seqs = set()
    for of in frames.values():
        assert of.keys() == STAGES.keys()
        assert not of["decode"].parent_span_id
        assert {of[name].parent_span_id for name in of if name != "decode"} == {of["decode"].span_id}
        for first, second in BEFORE:
            assert of[first].end_time_unix_nano <= of[second].start_time_unix_nano, (first, second)
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in of.values())
        found = {name: {a.key: a.value for a in span.attributes} for name, span in of.items()}
        seq = found["fusion"]["seq"].int_value
        assert {(a["source"].string_value, a["seq"].int_value) for a in found.values()} == {("cam", seq)}
        assert found["fusion"]["people"].int_value == expected(seq) and found["fusion"]["complete"].bool_value
        assert found["infer_tiles"]["images"].int_value == 12 and found["infer_global"]["images"].int_value == 1
        seqs.add(seq)
    assert seqs == set(range(FRAMES))


def test_a_collector_gets_a_trace_of_every_frame(group, clip):
    with Collector() as collector:
        g = group(
            {"cam": {"url": str(clip)}}, telemetry__exporter="otlp", telemetry__ratio="1",
            telemetry__endpoint=collector.url("traces"), preprocess__group="16",
        )  # fmt: skip
        g.start()
        g.wait_for(g.ended, "the end", 60)
        g.close()
        assert len({process["service.name"] for process, _ in collector.spans()}) == sum(
            not row.optional for row in SERVICES
        )
        check_traces(collector.spans())


@pytest.fixture
def traces(group, clip, tmp_path):
    """The file that a group has written."""
    path = tmp_path / "traces.jsonl"
    g = group(
        {"cam": {"url": str(clip)}},
        telemetry__exporter="file",
        telemetry__ratio="1",
        telemetry__file=str(path),
        preprocess__group="16",
    )
    g.start()
    g.wait_for(g.ended, "the end", 60)
    g.close()
    return path


def test_a_file_holds_what_a_collector_reads_and_is_drawn(traces, run_dir, tmp_path):
    requests = []
    for line in traces.read_text().splitlines():
        request = json.loads(line)
        for span in (s for r in request["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"]):
            assert len(span["traceId"]) == 32 and len(span["spanId"]) == 16  # hexadecimal, as OTLP/JSON has it
            span |= {key: base64.b64encode(bytes.fromhex(span[key])).decode() for key in IDS & span.keys()}
        requests.append(ParseDict(request, ExportTraceServiceRequest()))
    collector = Collector()
    collector.requests = requests
    check_traces(collector.spans())

    done = peoplecounter(run_dir, "trace", traces, "-o", tmp_path / "page.html", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:4] for line in lines if "people" in line] == ["p50:", "p99:"]
    assert sum("█" in line for line in lines) == 2 * len(STAGES) and "60 frames were traced, 60 of them" in done.stdout
    assert (tmp_path / "page.html").read_text().count("<svg") == 2

    found = json.loads(peoplecounter(run_dir, "trace", traces, "--frame", "cam/7", "--json").stdout)
    (bars,) = (one["spans"] for one in found["drawn"])
    assert (bars[0]["label"], bars[-1]["label"]) == ("decoder.cam", "fusion.0")
    assert found["frames"] == FRAMES and found["damaged_lines"] == 0
    of = found["ms"]["frame"]
    assert of["spans"] == FRAMES and 0 < of["p50"] <= of["p95"] <= of["p99"]


def test_what_cannot_be_drawn_gives_a_clear_error(traces, run_dir, tmp_path):
    (tmp_path / "empty").write_text("")
    for arguments, code, message in (
        ((tmp_path / "none",), 66, "cannot be read"),
        ((tmp_path / "empty",), 65, "contains no span"),
        ((traces, "--frame", "cam/9999"), 66, "No trace of 'cam/9999'"),
        ((traces, "-o", tmp_path / "no" / "page.html"), 66, "cannot be written"),
    ):
        done = peoplecounter(run_dir, "trace", *arguments)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    with traces.open("a") as file:
        file.write('{"resourceSpans": [{"res')  # still being written
    done = peoplecounter(run_dir, "trace", traces)
    assert done.returncode == 0 and "1 lines of" in done.stderr
