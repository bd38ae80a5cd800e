"""The kernel that shrinks surfaces for viewers, natively or in the interpreter; and a viewer on a GPU."""

import numpy as np
import pytest

from peoplecounter.common.ipc.messages import SurfaceLayout
from tests.support.dashboard import Dashboard, acknowledge, parts, pixels
from tests.support.group import SERVICES
from tests.support.rtsp import free_port

torch = pytest.importorskip("torch", reason="torch is installed for Python 3.11 only, see the extra 'dev'")
pytest.importorskip("triton")
from peoplecounter.deploy.dashboard.shrink import AVERAGE_PLANE, average_launches  # noqa: E402
from tests.support.kernels import DEVICE, run  # noqa: E402


@pytest.mark.parametrize("sample_bytes", [1, 2])
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("width, height", [(96, 64), (101, 53)])
def test_a_small_surface_has_the_means_of_its_pixels(width, height, factor, sample_bytes):
    pitch = 128 * sample_bytes
    layout = SurfaceLayout(width, height, pitch, "bt709", False, sample_bytes)
    surface = np.random.default_rng(1).integers(0, 256, layout.nbytes).astype(np.uint8)
    small, planes = average_launches(layout, factor)
    stored = torch.from_numpy(surface).to(DEVICE)
    found = torch.empty(small.nbytes, dtype=torch.uint8, device=DEVICE)
    for grid, begins, into, numbers, constants in planes:
        plane = stored[begins:].view(torch.uint16) if sample_bytes == 2 else stored[begins:]
        run(AVERAGE_PLANE, grid, [plane, found[into:], *numbers], constants)
    assert (small.width, small.height, small.sample_bytes) == (width // factor, height // factor, 1)
    rows = surface[sample_bytes - 1 :: sample_bytes].reshape(-1, 128).astype(int)  # the upper 8 bits
    shown = found.cpu().numpy().reshape(-1, small.pitch)
    luma = rows[: small.height * factor, : small.width * factor]
    means = luma.reshape(small.height, factor, small.width, factor).mean((1, 3))
    assert np.abs(shown[: small.height, : small.width] - means).max() <= 0.5
    half_width, half_height = small.width // 2, small.height // 2  # those that lie wholly inside
    chroma = rows[height:].reshape(-1, 64, 2)[: half_height * factor, : half_width * factor]
    means = chroma.reshape(half_height, factor, half_width, factor, 2).mean((1, 3))
    shown = shown[small.height :, : 2 * half_width].reshape(-1, half_width, 2)[:half_height]
    assert np.abs(shown - means).max() <= 0.5


@pytest.mark.gpu
def test_a_viewer_on_the_gpu_sees_what_is_counted(gpu_group, street):
    port = free_port()
    source = {"url": str(street), "loop": True, "realtime": True}
    group = gpu_group({"cam": source}, dashboard__listen=f"127.0.0.1:{port}")
    group.start(*SERVICES, "dashboard.0")
    dashboard = Dashboard(port)
    dashboard.wait(60)
    group.wait_counts(60, 90)
    with dashboard.live({"source": "cam", "width": 960, "fps": 15}) as connection:
        for _ in range(30):
            about, jpeg = parts(connection.recv(20))
            assert pixels(jpeg).shape == (540, 960, 3) and len(about["boxes"]) == about["count"] > 50
            acknowledge(connection, about)
    group.check_books()
