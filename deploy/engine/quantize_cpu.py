"""Runs in NNCF's own environment: `python quantize_cpu.py int8 IN.onnx OUT.onnx IMAGES.npy`, see precision.py.

INT8 as Q/DQ pairs, with ranges from the calibration images, for engines on a CPU. NNCF places the pairs where OpenVINO
wants them: before convolutions, none between a convolution and its x·sigmoid(x). ONNX Runtime computes an operator in
INT8 only if pairs enclose it: those are added, with names that begin with EXTRA. Our OpenVINO engine leaves them out
again (common/engine/openvino.py). The last convolutions and everything after them stay FP32, as in quantize.py.
"""

import sys

import nncf
import numpy as np
import onnx
import onnxruntime
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from onnx import helper, numpy_helper
from quantize import head_nodes, readers_of  # type: ignore[import-not-found]  # in this folder

EXTRA, MARK = "onnxruntime:", ("peoplecounter", "int8 for CPUs")  # as in common/engine/onnx_file.py
Pair = tuple[str, str]  # names of a scale and a zero point
LOWEST = -6.0  # x·sigmoid(x) of less is nearly 0: finer steps for the rest
MOVES = {"Concat", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Transpose"}  # output values are input values


def main(precision: str, source: str, target: str, images: str) -> None:
    model, data = onnx.load(source), np.load(images)
    name = model.graph.input[0].name
    ranges = swish_ranges(model, data)
    model = nncf.quantize(
        model,
        nncf.Dataset([{name: image[None]} for image in data]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(data),
        ignored_scope=nncf.IgnoredScope(names=head_nodes(model.graph)),
        advanced_parameters=AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(per_channel=False)  # ONNX Runtime has no other
        ),
    )
    unsigned(model.graph)
    enclose(model.graph, ranges)
    del model.graph.value_info[:]  # types of before
    model.metadata_props.add(key=MARK[0], value=MARK[1])
    onnx.checker.check_model(model)
    onnx.save(model, target)


def swish_ranges(model: onnx.ModelProto, data: np.ndarray) -> dict[str, tuple[float, float]]:
    """Least and largest value of each convolution output x that only x·sigmoid(x) reads."""
    readers = readers_of(model.graph)
    names = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Conv" and sorted(r.op_type for r in readers.get(node.output[0], [])) == ["Mul", "Sigmoid"]
    ]
    if not names:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = np.zeros(len(names)), np.zeros(len(names))
    for image in data:
        values = session.run(names, {model.graph.input[0].name: image[None]})
        low = np.minimum(low, [value.min() for value in values])
        high = np.maximum(high, [value.max() for value in values])
    return {name: (max(a, LOWEST), b) for name, a, b in zip(names, low, high)}


def unsigned(graph: onnx.GraphProto) -> None:
    """Activations as uint8 instead of int8, the same values: OpenVINO 2026.4 computes int8 wrongly, u8 is faster."""
    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    for tensor in graph.initializer:
        if tensor.name in zeros and tensor.data_type == onnx.TensorProto.INT8:
            shifted = numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), tensor.name))


def enclose(graph: onnx.GraphProto, ranges: dict[str, tuple[float, float]]) -> None:
    """Adds the pairs that ONNX Runtime needs: inside x·sigmoid(x), and behind operators that only move values."""
    constants, readers = {tensor.name: tensor for tensor in graph.initializer}, readers_of(graph)
    scales: dict[str, Pair] = {}  # of dequantized activations
    renamed: dict[str, str] = {}  # tensor -> the same behind an added pair
    done: list[onnx.NodeProto] = []

    def add(tensor: str, pair: Pair) -> None:
        small, out = f"{EXTRA}{tensor}:q", f"{EXTRA}{tensor}"
        renamed[tensor], scales[out] = out, pair
        done.append(helper.make_node("QuantizeLinear", [tensor, *pair], [small], name=f"{EXTRA}{tensor}:Q"))
        done.append(helper.make_node("DequantizeLinear", [small, *pair], [out], name=f"{EXTRA}{tensor}:DQ"))

    def covering(tensor: str, low: float, high: float) -> Pair:
        scale = max(high - low, 1e-6) / 255
        names = f"{EXTRA}{tensor}:scale", f"{EXTRA}{tensor}:zero"
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), names[0]))
        graph.initializer.append(numpy_helper.from_array(np.array(round(-low / scale), np.uint8), names[1]))
        return names

    def values(pair: Pair) -> tuple:
        """Of NNCF's pairs the numbers: those of equal numbers are the same."""
        return tuple(numpy_helper.to_array(constants[n]).item() if n in constants else n for n in pair)

    for node in list(graph.node):
        sources, output = list(node.input), node.output[0]
        if node.op_type != "QuantizeLinear":  # a pair that NNCF placed reads the original: no value is rounded twice
            node.input[:] = [renamed.get(name, name) for name in sources]
        done.append(node)
        if node.op_type == "Sigmoid" and sources[0] in ranges:
            add(output, covering(output, 0.0, 1.0))
        elif output in ranges:
            add(output, covering(output, *ranges[output]))
        elif node.op_type == "DequantizeLinear" and sources[0] not in constants and not constants[sources[1]].dims:
            scales[output] = sources[1], sources[2]
        elif node.op_type in MOVES:
            moved = [scales.get(name) for name in (node.input if node.op_type == "Concat" else node.input[:1])]
            pairs = [pair for pair in moved if pair]
            if len(pairs) == len(moved) and len({values(pair) for pair in pairs}) == 1:
                for name in node.output:
                    if any(reader.op_type != "QuantizeLinear" for reader in readers.get(name, [])):
                        add(name, pairs[0])
    del graph.node[:]
    graph.node.extend(done)


if __name__ == "__main__":
    main(*sys.argv[1:])
