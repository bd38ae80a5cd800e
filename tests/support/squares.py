"""White squares on black: a clip whose every frame has a known number of them, and a model that finds exactly those.

Squares lie on a 16 px grid; the model is an average over each cell, so it is right by construction and takes
microseconds. A frame's count names the frame, so a result under the wrong seq is noticed.
"""

from pathlib import Path

import av
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CELL = 80, 16  # of the model's input and of a square, px
WIDTH, HEIGHT = 272, 208  # 4 x 3 tiles of 80 px
FRAMES, FPS = 60, 30
VIEWS = {"views__levels": "[1.0]", "views__overlap": "0.2"}  # squares have one size: settings of their groups
VARIABLES = {f"PEOPLECOUNTER_{key.upper()}": value for key, value in VIEWS.items()}  # of their commands


def expected(seq: int, frames: int = FRAMES) -> int:
    """How many squares frame `seq` shows; neighbouring frames differ."""
    return 1 + seq % frames * 7 % 23


def picture(seq: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 [height, width, 3] with expected(seq) squares (or all that fit) at places that depend on seq."""
    cells = (width // CELL) * (height // CELL)
    places = np.random.default_rng(seq).choice(cells, min(cells, expected(seq)), replace=False)
    rgb = np.zeros((height, width, 3), np.uint8)
    for place in places:
        y, x = divmod(int(place), width // CELL)
        rgb[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL] = 255
    return rgb


ENCODERS = {
    "libx264": {"crf": "12", "preset": "ultrafast", "g": "15"},
    "libx265": {"crf": "12", "preset": "ultrafast", "x265-params": "keyint=15:bframes=0:scenecut=0:log-level=error"},
}


def make_clip(
    path: Path,
    frames: int = FRAMES,
    sizes: tuple[tuple[int, int], ...] = ((WIDTH, HEIGHT),),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """An H.264 clip; with several sizes, an MPEG-TS whose resolution changes half-way."""
    if len(sizes) > 1:
        parts = [make_clip(path.with_suffix(f".{i}.ts"), frames // len(sizes), (size,)) for i, size in enumerate(sizes)]
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        return path
    ((width, height),) = sizes
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=ENCODERS[codec] | (options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for seq in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(seq, width, height), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_model(
    path: Path,
    batch: int | str = "batch",
    size: int = SIZE,
    dtype: int = TensorProto.FLOAT,
    gain: float = 10,
    width: int = 0,
    channels_last: bool = False,
    external: str = "",
    inset: int = 5,
) -> Path:
    """ONNX, `images` [batch, 3, size, width or size] -> `output0` [batch, cells, 6]: x1, y1, x2, y2, score, class 0.

    `gain` is a weight: with 1 it sees nothing. `channels_last`: it reads [batch, size, width, 3]. `external`: the file
    beside it that holds the weights. Of the type UINT8, its pixels are 0 to 255. `inset`: of boxes in their cells,
    so that none touches a tile's edge.
    """
    columns = (width or size) // CELL
    y, x = np.mgrid[: size // CELL, :columns].reshape(2, 1, -1, 1) * CELL
    shape = [batch, size, columns * CELL, 3] if channels_last else [batch, 3, size, columns * CELL]
    boxes = np.concatenate([x + inset, y + inset, x + CELL - inset, y + CELL - inset], 2).astype(np.float32)
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    computed = TensorProto.FLOAT16 if kind == np.float16 else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=computed),
        helper.make_node("Mul", ["values", "unit"], ["in_unit"]),
        helper.make_node("Transpose", ["in_unit"], ["pixels"], perm=[0, 3, 1, 2] if channels_last else [0, 1, 2, 3]),
        helper.make_node("ReduceMean", ["pixels", "channel"], ["grey"], keepdims=1),
        helper.make_node("AveragePool", ["grey"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["cells", "column"], ["means"]),
        helper.make_node("Mul", ["means", "ten"], ["tenfold"]),
        helper.make_node("Sub", ["tenfold", "nine"], ["above"]),
        helper.make_node("Relu", ["above"], ["scores"]),  # 0.9 … 1 -> 0 … 1: only a whole square will do
        helper.make_node("Mul", ["scores", "zero"], ["class"]),
        helper.make_node("Add", ["class", "boxes"], ["placed"]),
        helper.make_node("Concat", ["placed", "scores", "class"], ["output0"], axis=2),
    ]
    constants = {"channel": np.array([1]), "column": np.array([0, -1, 1]), "zero": np.zeros(1, kind)}
    constants |= {"ten": np.array([gain], kind), "nine": np.array([9], kind)}
    constants["boxes"] = boxes.astype(kind)
    constants["unit"] = np.array([1 / 255 if dtype == TensorProto.UINT8 else 1], kind)
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info("output0", computed, [batch, x.size, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    located = {"save_as_external_data": True, "location": external, "size_threshold": 100} if external else {}
    onnx.save(model, str(path), **located)
    return path
