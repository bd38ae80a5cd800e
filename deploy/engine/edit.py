"""Changes an ONNX detector without training it again: cut to the class of persons, or made for another input size.

Both know the heads of YOLO (layouts `yolo` and `rows`), as Ultralytics exports them, and refuse what they do not
recognize. Needs the package onnx (extra `onnx`).
"""

import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from peoplecounter.common.engine.heads import Head
from peoplecounter.common.engine.loading import cpu_engine
from peoplecounter.common.engine.onnx_file import has_pairs
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.files import write_file
from peoplecounter.common.ipc.messages import Input
from peoplecounter.common.settings import EngineSettings

STRIDES = (8, 16, 32)  # of the grids
PLACE = "peoplecounter/"  # begin of the names of what is added


def cut_to_persons(source: Path, target: Path, person: int | None = None) -> None:
    """Writes a detector that knows persons alone: they are its class 0. `person`: its class, if the model names none.

    Raises AppError for a model that is missing or whose head is not known.
    """
    _edit(source, target, person, _cut)


def resize(source: Path, target: Path, width: int, height: int) -> None:
    """Writes a detector that reads images of width x height px, multiples of the largest stride.

    Raises AppError for such a size, and for a model that is missing or whose head is not known.
    """
    if width % STRIDES[-1] or height % STRIDES[-1] or min(width, height) < STRIDES[-1]:
        raise AppError(f"Invalid size {width}x{height}: both sides are multiples of {STRIDES[-1]} px.")
    _edit(source, target, None, lambda graph, read, head: _resize(graph, read, (width, height)))


def _edit(source: Path, target: Path, person: int | None, change: Callable[["_Graph", Input, Head], None]) -> None:
    try:
        import onnx
    except ImportError:
        raise AppError("Models are changed with the package onnx: install the extra 'onnx'.") from None
    engine = cpu_engine(EngineSettings(model=str(source), runtime="onnxruntime", person_class=person))
    read, head = engine.input, engine.head
    engine.close()
    if head.kind.name not in ("rows", "yolo") or has_pairs(source.read_bytes()):
        raise AppError(
            f"The model {source} cannot be changed: expected the head 'rows' or 'yolo' (it is {head.kind.name!r}), and "
            "no Q/DQ pairs. Change it first, then convert its precision."
        )
    try:
        graph = _Graph(onnx.load(str(source)), str(source))
    except OSError as error:
        raise AppError(f"The model {source} cannot be read: {error.strerror}.", NO_INPUT) from None
    change(graph, read, head)
    data = graph.serialized()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "changed.onnx").write_bytes(data)
        try:
            changed = cpu_engine(EngineSettings(model=f"{folder}/changed.onnx", runtime="onnxruntime"))
            changed.warm_up()
            changed.close()
        except Exception as error:  # ONNX Runtime has a dozen exception types of its own
            raise graph.fail(f"the result does not run: {str(error).splitlines()[0]}") from None
    write_file(target, data)


class _Graph:
    """An ONNX graph, with what it takes to follow and to change it."""

    def __init__(self, model: Any, name: str):
        from onnx import numpy_helper

        self.model, self.graph, self.name = model, model.graph, name
        constants = [
            node for node in self.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"
        ]
        for node in constants:
            self.graph.initializer.append(
                numpy_helper.from_array(numpy_helper.to_array(node.attribute[0].t), node.output[0])
            )
            self.graph.node.remove(node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.makers = {output: node for node in self.graph.node for output in node.output}

    def readers(self, tensor: str) -> list[Any]:
        return [node for node in self.graph.node if tensor in node.input]

    def new_constant(self, value: np.ndarray) -> str:
        """The name of a new constant."""
        from onnx import numpy_helper

        name = next(name for i in count() if (name := f"{PLACE}constant_{i}") not in self.constants)
        self.constants[name] = value
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def node(self, operator: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Appends a node; returns the names of its outputs."""
        from onnx import helper

        taken = {node.name for node in self.graph.node}
        first = next(name for i in count() if (name := f"{PLACE}{operator}_{i}") not in taken)
        names = [first, *(f"{first}_{i}" for i in range(1, outputs))]
        self.graph.node.append(helper.make_node(operator, inputs, names, name=names[0], **attributes))
        return names

    def serialized(self) -> bytes:
        """The model, without what nothing needs any more. Raises AppError when it is not valid."""
        import onnx

        used = {output.name for output in self.graph.output}
        for node in list(self.graph.node)[::-1]:
            if used & set(node.output):
                used |= set(node.input)
            else:
                self.graph.node.remove(node)
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in used]:
            self.graph.initializer.remove(tensor)
        del self.graph.value_info[:]
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise AppError(f"The model {self.name} is not built as expected: {str(error).splitlines()[0]}") from None
        return self.model.SerializeToString()

    def fail(self, why: str) -> AppError:
        return AppError(f"The model {self.name} cannot be changed: {why}.")


# --- cut


def _cut(graph: _Graph, read: Input, head: Head) -> None:
    boxes, scores = _joined(graph)
    path = _score_path(graph, scores)
    classes = {len(graph.constants[node.input[1]]) for node in path if node.op_type == "Conv"}
    if len(classes) != 1:
        raise graph.fail("its last convolutions do not compute one score for each class")
    fewer = classes.pop() - 1
    for node in path:
        if node.op_type in ("Conv", "Reshape", "Split") and any(name not in graph.constants for name in node.input[1:]):
            raise graph.fail(f"the weights or sizes of {node.name or node.op_type} are computed")
        if node.op_type == "Conv":
            for i in range(1, len(node.input)):
                kept = graph.constants[node.input[i]][head.person_class : head.person_class + 1]
                node.input[i] = graph.new_constant(np.ascontiguousarray(kept))
        elif node.op_type == "Reshape":
            shape = graph.constants[node.input[1]].copy()
            shape[1] -= fewer
            node.input[1] = graph.new_constant(shape)
        elif node.op_type == "Split" and len(node.input) > 1:
            sizes = graph.constants[node.input[1]].copy()
            sizes[-1] -= fewer
            node.input[1] = graph.new_constant(sizes)
        elif node.op_type == "Split":  # before opset 13
            (sizes,) = (attribute.ints for attribute in node.attribute if attribute.name == "split")
            sizes[-1] -= fewer
    output = graph.graph.output[0]
    if head.kind.name == "rows":
        _select(graph, boxes, scores, output)
    else:
        output.type.tensor_type.shape.dim[1].dim_value -= fewer
    from onnx import helper

    known = {entry.key: entry.value for entry in graph.model.metadata_props}
    helper.set_model_props(graph.model, {**known, "names": str({0: "person"})})


def _joined(graph: _Graph) -> tuple[str, str]:
    """The tensors of boxes [B, 4, places] and scores [B, classes, places], where they are joined."""
    for node in graph.graph.node:
        if node.op_type == "Concat" and len(node.input) > 1:
            maker = graph.makers.get(node.input[1])
            if maker is not None and maker.op_type == "Sigmoid" and node.attribute[0].i == 1:
                return node.input[0], node.input[1]
    raise graph.fail("no boxes and scores are joined in it")


def _score_path(graph: _Graph, scores: str) -> list[Any]:
    """The last class convolutions, and the nodes behind them that only bring the scores together.

    Boxes may travel with the scores, in front of them: those are split off again.
    """
    path: list[Any] = []
    todo = [scores]
    while todo:
        node = graph.makers.get(todo.pop())
        if node is None or any(node is known for known in path):
            continue
        if node.op_type not in ("Conv", "Reshape", "Concat", "Sigmoid", "Split"):
            raise graph.fail(f"its scores pass an operator {node.op_type}")
        path.append(node)
        if node.op_type == "Concat":  # of places, or of boxes and scores
            todo += [node.input[-1]] if node.attribute[0].i == 1 else node.input
        elif node.op_type != "Conv":
            todo.append(node.input[0])
    return path


def _select(graph: _Graph, boxes: str, scores: str, output: Any) -> None:
    """Behind the boxes and scores of one class: the rows with the best scores, as `rows` has them."""
    rows, columns = (dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])
    if columns != 6 or not rows:
        raise graph.fail("its rows are not [B, number, 6]")
    made = graph.makers[output.name]
    del made.output[:]
    made.output.append(f"{PLACE}before")
    axis = {
        name: graph.new_constant(np.array([value], np.int64))
        for name, value in (("one", 1), ("last", 2), ("rows", rows))
    }
    (flat,) = graph.node("Squeeze", [scores, axis["one"]])
    best, places = graph.node("TopK", [flat, axis["rows"]], 2, axis=1, largest=1, sorted=1)
    (turned,) = graph.node("Transpose", [boxes], perm=[0, 2, 1])
    (column,) = graph.node("Unsqueeze", [places, axis["last"]])
    (index,) = graph.node("Expand", [column, graph.new_constant(np.array([1, 1, 4], np.int64))])
    (chosen,) = graph.node("GatherElements", [turned, index], axis=1)
    (score,) = graph.node("Unsqueeze", [best, axis["last"]])
    (zero,) = graph.node("Mul", [score, graph.new_constant(np.array(0, np.float32))])
    graph.node("Concat", [chosen, score, zero], axis=2)
    graph.graph.node[-1].output[0] = output.name


# --- another size


def _resize(graph: _Graph, read: Input, size: tuple[int, int]) -> None:
    before, after = (dict(_grids(*sides)) for sides in (read.size, size))
    places, places_after = (sum(columns * rows for columns, rows in grids.values()) for grids in (before, after))
    for node in graph.graph.node:
        if node.op_type == "Reshape" and node.input[1] in graph.constants:
            shape = list(graph.constants[node.input[1]])
            for stride, (columns, rows) in before.items():
                wide, high = after[stride]
                if shape[2:] == [rows, columns]:
                    node.input[1] = graph.new_constant(np.array([*shape[:2], high, wide]))
                elif shape[-1] in (rows * columns, places):
                    many = high * wide if shape[-1] == rows * columns else places_after
                    node.input[1] = graph.new_constant(np.array([*shape[:-1], many]))
                else:
                    continue
                break
    depending = [(name, value) for name, value in graph.constants.items() if value.ndim and value.shape[-1] == places]
    if not depending:
        raise graph.fail("it has no constant grid of places, which tells how it depends on the size")
    for name, value in depending:
        if graph.readers(name):
            made = _as_grid(value, before, after)
            if made is None:
                raise graph.fail(f"its constant {name} depends on the size in an unknown way")
            for reader in graph.readers(name):
                reader.input[list(reader.input).index(name)] = graph.new_constant(made)
    image, output = graph.graph.input[0], graph.graph.output[0]
    sides = image.type.tensor_type.shape.dim
    sides[2].dim_value, sides[3].dim_value = size[1], size[0]
    last = output.type.tensor_type.shape.dim[-1]
    if last.dim_value == places:
        last.dim_value = places_after
    for masks in graph.graph.output[1:]:  # a part of the image's sides
        dims = masks.type.tensor_type.shape.dim
        dims[2].dim_value, dims[3].dim_value = (
            side * dim.dim_value // old for side, dim, old in zip(size[::-1], dims[2:], read.size[::-1])
        )
    for entry in graph.model.metadata_props:
        if entry.key == "imgsz":
            entry.value = str([size[1], size[0]])


def _grids(width: int, height: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """(stride, (columns, rows)) of each grid."""
    for stride in STRIDES:
        yield stride, (width // stride, height // stride)


def _as_grid(value: np.ndarray, before: dict, after: dict) -> np.ndarray | None:
    """A constant over all places, for another size: their centres, or their strides; None: it is neither."""
    for make in (_centres, _strides):
        for scaled in (False, True):
            old = make(before, scaled)
            if value.size == old.size and np.array_equal(value.reshape(old.shape), old.astype(value.dtype)):
                new = make(after, scaled).astype(value.dtype)
                return new.reshape(*value.shape[:-1], new.shape[-1])
    return None


def _centres(grids: dict, scaled: bool) -> np.ndarray:
    """float32 [2, places]: x, y in cells, or in px."""
    parts = []
    for stride, (columns, rows) in grids.items():
        y, x = np.mgrid[:rows, :columns]
        parts.append(np.stack([x.ravel(), y.ravel()]) + 0.5)
        parts[-1] = parts[-1] * stride if scaled else parts[-1]
    return np.concatenate(parts, 1).astype(np.float32)


def _strides(grids: dict, scaled: bool) -> np.ndarray:
    """float32 [1, places]."""
    return np.concatenate(
        [np.full((1, columns * rows), stride, np.float32) for stride, (columns, rows) in grids.items()], 1
    )
