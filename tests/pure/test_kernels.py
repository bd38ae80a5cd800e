"""The reference defines the tensor's values, checked against float64 written another way; the fast path equals it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peoplecounter.common.ipc.messages import Input, SurfaceLayout
from peoplecounter.common.views import View, table
from peoplecounter.services.preprocess.kernels import fused
from peoplecounter.services.preprocess.reference import PADDING, colour_matrix, reference, taps
from peoplecounter.services.preprocess.resample import axis, resample
from tests.support.inputs import INPUTS

SIZE = 32
PLAIN = Input(SIZE, SIZE)


def surface(width, height, extra_pitch=0, matrix="bt709", full=False, seed=0):
    """A random NV12 surface: (layout, uint8 bytes)."""
    layout = SurfaceLayout(width, height, 2 * ((width + 1) // 2) + extra_pitch, matrix, full)
    return layout, np.random.default_rng(seed).integers(0, 256, layout.nbytes, np.uint8)


def views_of(layout, read=PLAIN):
    """Those of a frame, an enlarged level, and odd places: in the middle of padding, and at odd pixels."""
    usual = table(layout.width, layout.height, read.size, 0.2, corner=read.corner)
    level, larger = (layout.width, layout.height), (layout.width * 5 // 4 + 1, layout.height * 5 // 4 + 1)
    return (*usual, View(*level, -3, -5), View(*level, layout.width // 3, 1), View(*larger, 2, -1))


def run_fused(layout, pixels, read=PLAIN):
    views = views_of(layout, read)
    out = np.full((len(views) + 1, *read.image_shape), 7, read.dtype)
    assert fused(pixels, layout, read, views, out).shape == (len(views), *read.image_shape)
    assert (out[-1] == 7).all()  # a slot may have room for more
    return out[:-1]


@given(
    st.integers(1, 150), st.integers(1, 110), st.integers(0, 70),
    st.sampled_from(["bt601", "bt709", "bt2020"]), st.booleans(), st.integers(0, 9),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_fused_equals_the_reference(width, height, extra_pitch, matrix, full, seed):
    layout, pixels = surface(width, height, extra_pitch, matrix, full, seed)
    expected = reference(pixels, layout, PLAIN, views_of(layout))
    assert np.abs(run_fused(layout, pixels) - expected).max() <= 0.01 / 255
    ulp = np.spacing(np.float16(1))
    assert np.abs(run_fused(layout, pixels, Input(SIZE, SIZE, "float16")).astype(float) - expected).max() <= ulp


@pytest.mark.parametrize(
    "side", [(1920, 640), (1080, 720), (1280, 768), (720, 512), (1944, 480), (563, 360), (480, 640)]
)
@pytest.mark.parametrize("halved", [False, True])
def test_slices_give_what_the_taps_say(side, halved):
    """Usual ratios are slices, those that do not repeat are indices; both are the reference's taps."""
    source, target = side
    samples = np.random.default_rng(1).integers(0, 256, ((source + halved) // (1 + halved), 3), np.uint8)
    indices, weights = taps(source, target, halved)
    expected = (samples[indices].astype(float) * weights[..., None]).sum(1)
    across = axis(3, 3, False)
    assert np.abs(resample(samples, axis(source, target, halved), across) - expected).max() < 1e-3


@pytest.mark.parametrize("read", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("width, height", [(100, 70), (33, 90), (20, 10)])
def test_every_input_gets_the_references_values(read, width, height):
    layout, pixels = surface(width, height)
    expected = reference(pixels, layout, read, views_of(layout, read))
    unit = max(read.scale) / 255
    difference = np.abs(run_fused(layout, pixels, read).astype(float) - expected).max()
    assert difference <= (0.51 if read.dtype == "uint8" else 0.01 * unit)
    plain = reference(pixels, layout, Input(*read.size), views_of(layout, read))
    values = plain * np.reshape(read.scale, (3, 1, 1)) + np.reshape(read.offset, (3, 1, 1))
    values = values[:, ::-1] if read.bgr else values
    np.testing.assert_allclose(expected, values.transpose(0, 2, 3, 1) if read.channels_last else values)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 40), st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_reference_equals_pixel_by_pixel_float64(width, height, extra_pitch, seed):
    layout, pixels = surface(width, height, extra_pitch, seed=seed)
    rows = pixels.reshape(-1, layout.pitch).astype(np.float64)

    def rgb(y, x):
        luma = (rows[y, x] - 16) / 219
        u, v = ((rows[height + y // 2, 2 * (x // 2) + i] - 128) / 224 for i in (0, 1))
        # BT.709, from its own definition: E'R = E'Y + 1.5748 E'PR and so on
        return luma + 1.5748 * v, luma - 0.187324 * u - 0.468124 * v, luma + 1.8556 * u

    views = views_of(layout)
    out = reference(pixels, layout, PLAIN, views)
    random = np.random.default_rng(seed)
    for image, view in enumerate(views):
        if view.level == (width, height):
            y, x = random.integers(0, SIZE, 2)
            inside = 0 <= view.y + y < height and 0 <= view.x + x < width
            expected = np.clip(rgb(view.y + y, view.x + x), 0, 1) if inside else [PADDING] * 3
            np.testing.assert_allclose(out[image, :, y, x], expected, atol=2e-5)


@pytest.mark.parametrize("by", [2, 3, 4, 8])
def test_shrinking_by_an_integer_is_the_mean_of_each_block(by):
    layout, pixels = surface(SIZE * by, SIZE * by)
    out = reference(pixels, layout, PLAIN, [View(SIZE, SIZE, 0, 0)])[0]
    luma = pixels[: layout.pitch * layout.height].reshape(SIZE * by, -1)[:, : SIZE * by].astype(float)
    means = luma.reshape(SIZE, by, SIZE, by).mean((1, 3))
    m, c = colour_matrix("bt709", False)
    rows = pixels.reshape(-1, layout.pitch)[layout.height :, : SIZE * by].reshape(-1, SIZE * by // 2, 2).astype(float)
    chroma = np.repeat(np.repeat(rows, 2, 0), 2, 1).reshape(SIZE, by, SIZE, by, 2).mean((1, 3))
    expected = np.clip(np.dstack([means, chroma]) @ m.T + c, 0, 1).transpose(2, 0, 1)
    np.testing.assert_allclose(out, expected, atol=1e-12)


def dense(source, target):
    """The taps as a matrix [target, source]."""
    indices, weights = taps(source, target, False)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], indices), weights)
    return matrix


@given(st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None)
def test_taps_are_centre_aligned(source, target):
    """A flat picture stays flat, and the mirrored picture gives the mirrored result: half a pixel off would not."""
    matrix = dense(source, target)
    np.testing.assert_allclose(matrix.sum(1), 1)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-9)


@given(st.integers(2, 300), st.integers(1, 300))
@settings(deadline=None)
def test_shrinking_counts_every_source_pixel_once(source, target):
    if target < source:
        np.testing.assert_allclose(dense(source, target).sum(0), target / source)


@given(st.integers(2, 100), st.integers(2, 300))
@settings(deadline=None)
def test_enlarging_keeps_a_ramp_a_ramp(source, target):
    if target >= source:
        position = dense(source, target) @ (np.arange(source) + 0.5)
        wanted = (np.arange(target) + 0.5) * source / target
        np.testing.assert_allclose(position, np.clip(wanted, 0.5, source - 0.5), atol=1e-9)


@pytest.mark.parametrize("matrix, full", [("bt601", False), ("bt601", True), ("bt709", False), ("bt709", True)])
def test_colour_matrix_of_black_white_and_primaries(matrix, full):
    m, c = colour_matrix(matrix, full)
    black, white = (0, 255) if full else (16, 235)
    np.testing.assert_allclose(m @ [black, 128, 128] + c, [0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(m @ [white, 128, 128] + c, [1, 1, 1], atol=1e-12)
    kr = {"bt601": 0.299, "bt709": 0.2126}[matrix]
    luma, chroma = (255, 255) if full else (219, 224)
    red = [
        black + kr * luma,
        128 + chroma * -kr / (2 * (1 - {"bt601": 0.114, "bt709": 0.0722}[matrix])),
        128 + chroma / 2,
    ]
    np.testing.assert_allclose(m @ red + c, [1, 0, 0], atol=1e-6)


def test_padding_is_114_where_there_is_no_frame():
    layout, pixels = surface(20, 10)
    views = table(20, 10, PLAIN.size)
    out = reference(pixels, layout, PLAIN, views)
    assert views[0] == View(SIZE, SIZE // 2, 0, -SIZE // 4)
    assert (out[0, :, : SIZE // 4] == 114 / 255).all()
    assert (out[1, :, 10:] == 114 / 255).all()
    assert (out[1, :, :, 20:] == 114 / 255).all()
