"""Lower precisions by the real ModelOpt and NNCF, ModelOpt in an environment of its own: what they make and count."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from peoplecounter.common.engine.model import DEMO_MODEL
from peoplecounter.common.engine.onnx_file import FOR_ONNX_RUNTIME, is_int8_for_cpus
from peoplecounter.common.errors import CONFIG, NO_INPUT, SOFTWARE, AppError
from peoplecounter.deploy.cli import engine_commands as cli
from peoplecounter.deploy.demo.plaza import render_clip
from peoplecounter.deploy.engine import precision
from peoplecounter.deploy.engine.build import BuildOptions, BuildProgress, build_memory
from peoplecounter.deploy.engine.precision import MODELOPT, environment
from tests.support.cli import argv
from tests.support.squares import VARIABLES, make_model

ROOT = Path(__file__).parents[2]
modelopt = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="from Python 3.12 on ModelOpt's torch comes with gigabytes of CUDA"
)


def engine(*arguments):
    return subprocess.run(argv("engine", *arguments), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def python(request):
    return environment(MODELOPT, request.config.cache.mkdir("modelopt") / "environment")


@pytest.fixture(scope="session")
def plaza(tmp_path_factory):
    clip = tmp_path_factory.mktemp("plaza") / "plaza.mp4"
    render_clip(clip, clip.with_suffix(".csv"), frames=32)
    return clip


def converted(source, out, to, footage, python):
    """(people a frame after, before), from the line that `engine precision` ends with."""
    done = engine("precision", source, out, "--to", to, "--footage", footage, "--device", "gpu", "--python", python)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    return float(words[5].rstrip(",")), float(words[8])


def computed_for_sm120(onnx_file, target="sm120"):
    """Type -> convolutions and matrix products of a plan by the real builder of TensorRT-RTX, which needs no GPU."""
    options = BuildOptions(runtime="rtx", targets=(target,))
    _, sidecar, _ = build_memory(onnx_file, options, BuildProgress())
    assert sidecar.plan_bytes > 100_000
    return sidecar.computed


@modelopt
def test_fp16_counts_what_fp32_counts(python, plaza, tmp_path):
    out = tmp_path / "fp16.onnx"
    after, before = converted(DEMO_MODEL, out, "fp16", plaza, python)
    assert before > 10 and abs(after - before) <= 0.01 * before
    graph = onnx.load(out).graph
    halves = [w for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) > len(graph.initializer) / 2
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert out.stat().st_size < 0.8 * DEMO_MODEL.stat().st_size
    assert computed_for_sm120(out).get("HALF", 0) > 20


@modelopt
def test_int8_is_calibrated_on_the_footage_and_leaves_scores_and_pixels_alone(python, plaza, tmp_path):
    out, source = tmp_path / "int8.onnx", DEMO_MODEL.read_bytes()
    after, before = converted(DEMO_MODEL, out, "int8", plaza, python)
    assert abs(after - before) <= 0.05 * before
    assert DEMO_MODEL.read_bytes() == source  # ModelOpt writes to its input
    graph = onnx.load(out).graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    readers = {node.name: node for node in graph.node if rounded & set(node.input)}
    assert sum(node.op_type == "Conv" for node in readers.values()) > 20
    assert not {"/detector/head/Conv", "/TopK", "/Exp", "/Concat_2"} & readers.keys()
    assert computed_for_sm120(out).get("INT8", 0) > 20


@modelopt
def test_fp8_counts_nearly_the_same(python, plaza, tmp_path):
    """With all of ONNX Runtime 1.32's optimizations it counts no person: OnnxEngine limits them for Q/DQ."""
    out = tmp_path / "fp8.onnx"
    after, before = converted(DEMO_MODEL, out, "fp8", plaza, python)
    assert abs(after - before) <= 0.05 * before
    assert onnx.TensorProto.FLOAT8E4M3FN in {i.data_type for i in onnx.load(out).graph.initializer}
    computed = computed_for_sm120(out)
    assert computed["FP8"] >= computed["FLOAT"]
    with pytest.raises(AppError, match=r"sm86.*fp8"):  # which has no FP8
        computed_for_sm120(out, "sm86")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_for_cpus_counts_nearly_the_same(plaza, tmp_path, runtime, monkeypatch):
    monkeypatch.setenv("PEOPLECOUNTER_ENGINE__RUNTIME", runtime)
    out = tmp_path / "int8.onnx"
    done = engine("precision", DEMO_MODEL, out, "--to", "int8", "--device", "cpu", "--footage", plaza)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    after, before = float(words[5].rstrip(",")), float(words[8])
    assert before > 10 and abs(after - before) <= 0.05 * before
    assert is_int8_for_cpus(out.read_bytes())
    graph = onnx.load(out).graph
    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    types = {tensor.data_type for tensor in graph.initializer if tensor.name in zeros}
    assert types == {onnx.TensorProto.UINT8}  # OpenVINO finds nobody in signed activations


def test_int8_for_cpus_counts_the_same_street_in_both_engines(footage, yolo, tmp_path, monkeypatch):
    """The pairs that only ONNX Runtime needs are there, and OpenVINO leaves them out."""
    out, street = tmp_path / "int8.onnx", footage / "towncentre_1080p.mp4"
    done = engine("precision", yolo, out, "--to", "int8", "--device", "cpu", "--footage", street)
    assert done.returncode == 0, done.stderr
    names = [node.name for node in onnx.load(out).graph.node if node.name.startswith(FOR_ONNX_RUNTIME)]
    assert len(names) > 200
    people = []
    for runtime in ("onnxruntime", "openvino"):
        monkeypatch.setenv("PEOPLECOUNTER_ENGINE__RUNTIME", runtime)
        table = engine("bench", yolo, out, "--footage", street, "--frames", 8, "--rounds", 1, "--out", tmp_path / "t")
        assert table.returncode == 0, table.stderr
        people += [row["people"] for row in json.loads((tmp_path / "t.json").read_text())["engines"]]
    assert max(people) - min(people) <= 0.04 * people[0]


def test_a_precision_that_ruins_the_counts_is_called_useless(monkeypatch, capsys):
    monkeypatch.setattr(precision, "convert", lambda *_: (20.0, 18.0))
    cli.precision(DEMO_MODEL, DEMO_MODEL, "int8", Path("street.mp4"))
    message = capsys.readouterr()
    assert "18.00, by plaza.onnx 20.00 (-10.0%)" in message.out and "by more than 5%" in message.err


@modelopt
def test_fp16_of_a_real_detector_counts_the_same_street(python, footage, yolo, tmp_path):
    out, street = tmp_path / "fp16.onnx", footage / "towncentre_1080p.mp4"
    converted(yolo, out, "fp16", street, python)
    table = engine("bench", yolo, out, "--footage", street, "--frames", 12, "--rounds", 2, "--out", tmp_path / "t")
    assert table.returncode == 0, table.stderr
    _, half = json.loads((tmp_path / "t.json").read_text())["engines"]
    assert abs(half["difference_pct"]) <= 1
    assert computed_for_sm120(out).get("HALF", 0) > 80


@modelopt
@pytest.mark.parametrize("to, kind", [("int8", "INT8"), ("fp8", "FP8")])
def test_a_real_detector_in_eight_bits_builds_for_an_rtx_5060_ti(python, footage, yolo, tmp_path, to, kind):
    converted(yolo, tmp_path / "out.onnx", to, footage / "towncentre_1080p.mp4", python)
    computed = computed_for_sm120(tmp_path / "out.onnx")
    assert computed[kind] > 2 * computed["FLOAT"]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--to", "fp12"], CONFIG, "Unknown precision 'fp12'"),
        (["--to", "fp8", "--device", "cpu"], CONFIG, "Unknown precision 'fp8' for cpu"),
        (["--to", "fp16", "--footage", "none.mp4"], NO_INPUT, "none.mp4"),
        (["--to", "fp16", "--python", sys.executable], SOFTWARE, "ModelOpt 0.47.0 did not convert"),
    ],
)
def test_what_cannot_be_converted_gives_a_clear_error(plaza, tmp_path, arguments, code, message):
    done = engine("precision", DEMO_MODEL, tmp_path / "x.onnx", "--footage", plaza, *arguments)
    assert done.returncode == code and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.onnx").exists()


def test_the_bench_compares_what_engines_count(clip, model, tmp_path, monkeypatch):
    for variable, value in VARIABLES.items():
        monkeypatch.setenv(variable, value)
    blind, out = make_model(tmp_path / "blind.onnx", gain=1), tmp_path / "table"
    done = engine("bench", model, blind, "--footage", clip, "--frames", 20, "--rounds", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(out.with_suffix(".json").read_text())["engines"]
    assert first["counts"] == [1 + seq * 7 % 23 for seq in range(20)] and not any(second["counts"])
    assert (first["difference_pct"], second["difference_pct"]) == (0, -100)
    assert first["ms"].keys() == {"1"} and first["ms"]["1"]["p99"] >= first["ms"]["1"]["p50"] > 0
    markdown, page = out.with_suffix(".md").read_text(), out.with_suffix(".html").read_text()
    assert "| blind.onnx |" in markdown and "-100.0 %" in markdown and "RTX 5060 Ti" in markdown
    assert page.count("<table>") == 2 and "<td>blind.onnx</td>" in page
