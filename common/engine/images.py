"""Which images an engine reads: its input's shape and type, and what its head and the settings say of their pixels."""

from collections.abc import Mapping
from typing import Any

from peoplecounter.common.engine.metadata import Metadata
from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import Input

DEFAULT_PX = 640  # side of a model whose height and width are free
SIDES_PX = range(32, 4097)
DTYPES = ("float32", "float16", "uint8")
BYTES = {"scale": (255.0, 255.0, 255.0)}
PIXELS: dict[str, dict[str, Any]] = {  # engine.pixels -> fields of Input
    "rgb": {},
    "rgb255": BYTES,
    "bgr255": {**BYTES, "bgr": True},
    "imagenet": {  # (pixel - mean) / deviation
        "scale": (1 / 0.229, 1 / 0.224, 1 / 0.225),
        "offset": (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    },
}


def read_shape(shape: list[int | None], dtype: str | None, metadata: Metadata, name: str) -> tuple[Input, int | None]:
    """(the images that an input [B, 3, H, W] or [B, H, W, 3] takes, its batch or None if that is free).

    None stands for a free side. Raises AppError for any other input.
    """
    batch, *sides = shape if len(shape) == 4 else [None, 0, 0, 0]
    last = sides[0] != 3 and sides[2] == 3
    height, width = sides[:2] if last else sides[1:]
    default_width, default_height = metadata.size or (DEFAULT_PX, DEFAULT_PX)
    width, height = width or default_width, height or default_height
    if dtype not in DTYPES or 3 not in (sides[0], sides[2]) or width not in SIDES_PX or height not in SIDES_PX:
        shown = [side if side is not None else "free" for side in shape]
        raise AppError(
            f"The input of the model {name} is not supported ({dtype} {shown}): expected {', '.join(DTYPES)} images "
            f"[B, 3, H, W] or [B, H, W, 3] with sides of {SIDES_PX[0]} to {SIDES_PX[-1]} px."
        )
    return Input(width, height, dtype, channels_last=last), batch  # type: ignore[arg-type]


def with_pixels(read: Input, of_head: Mapping[str, Any], wanted: str) -> Input:
    """The input with what its head, or engine.pixels, says of its pixels; bytes hold 0 to 255."""
    fields = dict(of_head) if wanted == "auto" else {**of_head, "bgr": False, "scale": (1, 1, 1), "offset": (0, 0, 0)}
    fields |= PIXELS.get(wanted, {})
    if read.dtype == "uint8":
        fields |= BYTES | {"offset": (0.0, 0.0, 0.0)}
    return Input(read.width, read.height, read.dtype, read.channels_last, **fields)
