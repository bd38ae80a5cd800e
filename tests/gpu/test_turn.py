"""The kernel that turns NVDEC's pictures gives what the CPU gives: natively on a GPU, elsewhere in the interpreter."""

from fractions import Fraction

import numpy as np
import pytest

from peoplecounter.services.decoder.upright import OF_EXIF, Upright

torch = pytest.importorskip("torch", reason="torch is installed for Python 3.11 only, see the extra 'dev'")
pytest.importorskip("triton")
from peoplecounter.services.decoder.turn import TURN_PLANE, Plane, turn_launch  # noqa: E402
from tests.support.kernels import DEVICE, run  # noqa: E402


def turned(stored: np.ndarray, upright: Upright, width: int, height: int, pitch: int) -> np.ndarray:
    """A plane [h, w, channels], turned by the kernel into one of this size with this many samples a row."""
    rows, columns, channels = stored.shape
    padded = np.zeros((rows, columns * channels + 7), stored.dtype)
    padded[:, : columns * channels] = stored.reshape(rows, -1)
    out = torch.zeros((height, pitch), dtype=torch.from_numpy(stored).dtype, device=DEVICE)
    source = Plane(torch.from_numpy(padded).to(DEVICE), columns, rows, channels, padded.shape[1])
    run(TURN_PLANE, *turn_launch(source, upright, Plane(out, width, height, channels, pitch)))
    return out.cpu().numpy()[:, : width * channels].reshape(height, width, channels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("turns, mirrored", OF_EXIF.values())
def test_all_eight_orientations_are_exact(turns, mirrored, channels, dtype):
    upright = Upright(turns, mirrored)
    stored = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (37, 150, channels)).astype(dtype)
    width, height = upright.turned(150, 37)
    np.testing.assert_array_equal(turned(stored, upright, width, height, 2 * width + 9), upright.turn(stored))


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(4, 3)])
@pytest.mark.parametrize("turns", [0, 1])
def test_pixels_that_are_not_square_are_interpolated(turns, aspect):
    """A ramp stays a ramp, from one edge to the other."""
    upright = Upright(turns, False, aspect)
    rows, columns = np.mgrid[:40, :60]
    stored = (rows * 2 + columns * 2).astype(np.uint8)[..., None]
    width, height = upright.size(60, 40)
    found = turned(stored, upright, width, height, width).astype(float)[..., 0]
    shown = upright.turn(stored).astype(float)[..., 0]
    y = np.clip((np.arange(height) + 0.5) * shown.shape[0] / height - 0.5, 0, shown.shape[0] - 1)
    x = np.clip((np.arange(width) + 0.5) * shown.shape[1] / width - 0.5, 0, shown.shape[1] - 1)
    down = np.apply_along_axis(lambda column: np.interp(y, np.arange(len(column)), column), 0, shown)
    expected = np.apply_along_axis(lambda row: np.interp(x, np.arange(len(row)), row), 1, down)
    assert np.abs(found - expected).max() <= 0.51
