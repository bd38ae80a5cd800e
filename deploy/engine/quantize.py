"""Runs in ModelOpt's own environment: `python quantize.py fp16|int8|fp8 IN.onnx OUT.onnx IMAGES.npy`, see precision.py.

FP16 uses AutoCast: operators whose values on the calibration images do not suit FP16 stay FP32, such as box arithmetic
in pixels. INT8 and FP8 are Q/DQ pairs with ranges from the calibration images. The last convolutions and everything
after them compute scores and pixels, which need more than 8 bits: they stay FP32, as does all that is not quantized.
"""

import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

DATA_MAX = 512.0  # larger pixel coordinates are rounded to half a pixel in FP16


def main(precision: str, source: str, target: str, images: str) -> None:
    data = np.load(images)
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    if precision == "fp16":
        from modelopt.onnx.autocast import convert_to_mixed_precision

        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "images.npz"
            np.savez(image, **{name: data[:1]})
            model = convert_to_mixed_precision(
                source, low_precision_type="fp16", data_max=DATA_MAX, keep_io_types=True, calibration_data=str(image)
            )
        onnx.save(read_fp16(model), target)
    else:
        from modelopt.onnx.quantization import quantize

        quantize(
            source, quantize_mode=precision, calibration_data={name: data}, calibration_eps=["cpu"],
            output_path=target, high_precision_dtype="fp32", log_level="ERROR",
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in head_nodes(onnx.load(source).graph)],
        )  # fmt: skip


def head_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that are not followed by a convolution."""
    readers = readers_of(graph)
    followed: set[str] = set()  # outputs that are followed by a convolution
    for node in reversed(graph.node):  # ONNX lists nodes in order
        behind = [reader for name in node.output for reader in readers.get(name, [])]
        if any(reader.op_type == "Conv" or followed & set(reader.output) for reader in behind):
            followed |= set(node.output)
    return [node.name for node in graph.node if node.name and not followed & set(node.output)]


def readers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> the nodes that read it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def read_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns an input that is only cast to FP16 into an FP16 input: preprocess then writes half the bytes."""
    graph = model.graph
    image = graph.input[0]
    readers = [node for node in graph.node if image.name in node.input]
    if readers and all(n.op_type == "Cast" and n.attribute[0].i == onnx.TensorProto.FLOAT16 for n in readers):
        renamed = {node.output[0]: image.name for node in readers}
        for node in readers:
            graph.node.remove(node)
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        image.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
