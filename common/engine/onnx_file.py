"""What can be read of an ONNX file without its runtime: its metadata, and which other files hold its weights.

Standard library only: a builder's own Python imports this module. The numbers are those of fields in onnx.proto.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from peoplecounter.common.errors import AppError

GRAPH, METADATA = 7, 14  # of ModelProto
NODE, INITIALIZER, SPARSE = 1, 5, 15  # of GraphProto
ATTRIBUTE, TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS = 5, 5, 6, 10, 11  # of NodeProto; the others of AttributeProto
EXTERNAL = 13  # of TensorProto
DATA_TYPE = 2  # of TensorProto
FLOAT8 = range(17, 21)  # of TensorProto.DataType
KEY, VALUE = 1, 2  # of StringStringEntryProto
INT8_MARK, INT8_FOR_CPUS = "peoplecounter", "int8 for CPUs"  # an entry of the metadata
FOR_ONNX_RUNTIME = "onnxruntime:"  # begin of the names of the Q/DQ pairs that OpenVINO does not need
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields


def metadata(onnx: bytes) -> dict[str, str]:
    """The custom metadata of a file; empty for what is no ONNX file."""
    try:
        return dict(_pair(entry) for number, entry in _fields(memoryview(onnx)) if number == METADATA)
    except (ValueError, IndexError):
        return {}


def has_pairs(onnx: bytes) -> bool:
    """True for a model that is quantized with Q/DQ pairs."""
    return b"DequantizeLinear" in onnx


def is_int8_for_cpus(onnx: bytes) -> bool:
    """True for a model that `engine precision --to int8` made for CPUs."""
    return metadata(onnx).get(INT8_MARK) == INT8_FOR_CPUS


def is_fp8(onnx: bytes) -> bool:
    """True for a model that has values in FP8."""
    try:
        graphs = [graph for number, graph in _fields(memoryview(onnx)) if number == GRAPH]
        return any(_data_type(tensor) in FLOAT8 for graph in graphs for tensor in _tensors(graph))
    except (ValueError, IndexError):
        return False


def external_files(onnx: bytes, name: str) -> list[str]:
    """The files beside an ONNX file that hold its weights, sorted. Raises AppError for one outside of its folder."""
    try:
        graphs = [graph for number, graph in _fields(memoryview(onnx)) if number == GRAPH]
        files = sorted({file for graph in graphs for tensor in _tensors(graph) for file in _locations(tensor)})
    except (ValueError, IndexError):
        return []  # the runtime says what is wrong with it
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise AppError(
                f"The model {name} takes weights from {file!r}, outside of its own folder: move them into it."
            )
    return files


def _tensors(graph: memoryview) -> Iterator[memoryview]:
    """Every tensor that holds weights or constants."""
    for number, value in _fields(graph):
        if number == INITIALIZER:
            yield value
        elif number == NODE:
            for attribute in (content for field, content in _fields(value) if field == ATTRIBUTE):
                for kind, content in _fields(attribute):
                    if kind in (TENSOR, TENSORS) and content:
                        yield content
                    elif kind in (SUBGRAPH, SUBGRAPHS) and content:
                        yield from _tensors(content)


def _data_type(tensor: memoryview) -> int:
    return next((_varint(content, 0)[0] for number, content in _fields(tensor) if number == DATA_TYPE and content), 0)


def _locations(tensor: memoryview) -> Iterator[str]:
    for number, entry in _fields(tensor):
        if number == EXTERNAL:
            key, value = _pair(entry)
            if key == "location":
                yield value


def _pair(entry: memoryview) -> tuple[str, str]:
    values = {number: bytes(value).decode(errors="replace") for number, value in _fields(entry)}
    return values.get(KEY, ""), values.get(VALUE, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of each field of a message in protobuf's encoding."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind, size = key & 7, 0
        if kind == VARINT:
            size = _varint(message, at)[1] - at
        elif kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"no field of kind {kind}")
        if at + size > len(message):
            raise ValueError("a field ends behind its message")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
