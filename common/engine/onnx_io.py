"""What an ONNX model reads and gives, whatever runs it."""

from collections.abc import Sequence
from dataclasses import dataclass

from peoplecounter.common.engine.heads import Context, Head, Output, head
from peoplecounter.common.engine.images import read_shape, with_pixels
from peoplecounter.common.engine.metadata import read_metadata
from peoplecounter.common.engine.model import Model
from peoplecounter.common.engine.onnx_file import metadata
from peoplecounter.common.errors import AppError
from peoplecounter.common.ipc.messages import Input
from peoplecounter.common.settings import EngineSettings


@dataclass(frozen=True)
class ModelInput:
    """One input of a model."""

    name: str
    shape: Sequence[int | None]  # None: a free side
    dtype: str | None  # NumPy's name; None: one that has none


@dataclass(frozen=True)
class OnnxDetector:
    """A detector that is supported."""

    images: str  # name of the input that takes them
    sizes: str  # name of the input that takes their sizes, int64 [B, 2]; empty: there is none
    input: Input
    head: Head
    batch: int | None  # how many images it takes at once; None: any number


def describe(
    model: Model, inputs: Sequence[ModelInput], outputs: Sequence[Output], settings: EngineSettings
) -> OnnxDetector:
    """What these inputs and outputs are. Raises AppError for a model that is not a supported detector."""
    sizes = [i for i in inputs if len(i.shape) == 2 and i.shape[1] == 2 and i.dtype == "int64"]
    images = [i for i in inputs if i not in sizes]
    if len(images) != 1 or len(sizes) > 1:
        raise AppError(
            f"The inputs of the model {model.name} are not supported ({', '.join(i.name for i in inputs)}): expected "
            "images, and at most their sizes as int64 [B, 2]."
        )
    known = read_metadata(metadata(model.data))
    read, batch = read_shape(list(images[0].shape), images[0].dtype, known, model.name)
    context = Context(read.size, len(inputs), known)
    found = head(outputs, context, settings.head, settings.person_class, model.name)
    read = with_pixels(read, found.kind.pixels, settings.pixels)
    return OnnxDetector(images[0].name, sizes[0].name if sizes else "", read, found, batch)
