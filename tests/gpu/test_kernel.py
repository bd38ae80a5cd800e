"""The fused kernel gives the reference's values: natively on a GPU, elsewhere in Triton's interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest

from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.views import View, table
from peoplecounter.services.preprocess.reference import reference
from tests.support.inputs import INPUTS

torch = pytest.importorskip("torch", reason="torch is installed for Python 3.11 only, see the extra 'dev'")
pytest.importorskip("triton")
from peoplecounter.services.preprocess import kernels_torch  # noqa: E402
from tests.support import kernels  # noqa: E402

DEVICE = kernels.DEVICE
SIZE = 64
SHAPES = [  # width, height, extra pitch
    (64, 64, 0), (1, 1, 0), (150, 110, 0), (151, 111, 9), (33, 99, 31), (200, 30, 64), (224, 128, 0)
]  # fmt: skip
SMALL_SHAPES = [(1, 1, 0), (33, 99, 31), (97, 65, 9)]  # the interpreter takes seconds for each


def surface(width, height, extra_pitch, matrix, full, sample_bytes, seed=0):
    pitch = 2 * ((width + 1) // 2) * sample_bytes + extra_pitch * sample_bytes
    layout = SurfaceLayout(width, height, pitch, matrix, full, sample_bytes)
    return layout, np.random.default_rng(seed).integers(0, 256, layout.nbytes, np.uint8)


def run(launch, layout, pixels, read, views):
    out = torch.full((len(views), *read.image_shape), float("nan"), device=DEVICE)
    out = out.to(getattr(torch, read.dtype))
    launch(torch.from_numpy(pixels).to(DEVICE), layout, read, views, out)
    return out.cpu().numpy()


def views_of(layout, read):
    """Those of a frame, an enlarged level, and a view in the middle of padding."""
    usual = table(layout.width, layout.height, read.size, 0.2, corner=read.corner)
    larger = layout.width * 5 // 4 + 1, layout.height * 5 // 4 + 1
    return (*usual, View(layout.width, layout.height, -3, -5), View(*larger, 2, -1))


def assert_equal(out, expected):
    """Within a hundredth of 1/255 in float32; in float16 within one ulp of that."""
    if out.dtype == np.float32:
        assert np.abs(out - expected).max() <= 0.01 / 255  # NaN, what was not written, is not
    else:
        ulp = np.spacing(expected.astype(np.float16)).astype(float)
        assert (np.abs(out.astype(float) - expected) <= ulp + 1e-6).all()  # sums of float32 are good to 1e-6


@pytest.mark.parametrize("launch", [kernels.images, kernels_torch.launch], ids=["triton", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width, height, extra", SHAPES)
def test_random_frames_of_odd_sizes_and_pitches(launch, dtype, width, height, extra):
    for seed, (matrix, full, sample_bytes) in enumerate(
        [("bt709", False, 1), ("bt601", True, 1), ("bt2020", False, 2)]
    ):
        layout, pixels = surface(width, height, extra, matrix, full, sample_bytes, seed)
        read = Input(SIZE, SIZE, dtype)
        views = views_of(layout, read)
        assert_equal(run(launch, layout, pixels, read, views), reference(pixels, layout, read, views))


@pytest.mark.parametrize("launch", [kernels.images, kernels_torch.launch], ids=["triton", "torch"])
@pytest.mark.parametrize("read", INPUTS.values(), ids=INPUTS)
def test_every_input_gets_the_references_values(launch, read):
    """Rectangular, channels last, bytes, another order, range or place of the letterbox."""
    for width, height, extra in SMALL_SHAPES:
        layout, pixels = surface(width, height, extra, "bt709", False, 1)
        views = views_of(layout, read)
        difference = run(launch, layout, pixels, read, views).astype(float) - reference(pixels, layout, read, views)
        assert np.abs(difference).max() <= (0.51 if read.dtype == "uint8" else 0.01 * max(read.scale) / 255)


def test_a_kernel_that_is_half_a_pixel_off_would_be_seen():
    layout, pixels = surface(150, 110, 0, "bt709", False, 1)
    read = Input(SIZE, SIZE)
    views = views_of(layout, read)
    shifted = np.roll(pixels.reshape(-1, layout.pitch), 1, axis=1).reshape(-1)
    with pytest.raises(AssertionError):
        assert_equal(run(kernels.images, layout, shifted, read, views), reference(pixels, layout, read, views))


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability):
    """The interpreter takes what the compiler refuses; and stores of tiles are to be 16 bytes wide."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.gpu.compile", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "nv12_to_images (3840, 2160) float16 True", "nv12_to_images (1367, 769) float32 True", "turn_plane",
        "average_plane", "yolo", "yolox", "yolonas", "select",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width, height", [(3840, 2160), (1920, 1080), (1366, 768), (4096, 2160)])
def test_whole_frames(dtype, width, height):
    layout, pixels = surface(width, height, 128, "bt709", False, 1)
    read = Input(640, 640, dtype)
    views = table(width, height, read.size)
    assert_equal(run(kernels.images, layout, pixels, read, views), reference(pixels, layout, read, views))
