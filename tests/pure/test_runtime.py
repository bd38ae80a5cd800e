"""A service's end: everything is closed, whatever one of its parts does."""

import pytest

from peoplecounter.common.errors import SOFTWARE, GpuLost
from peoplecounter.common.process import control, runtime
from peoplecounter.common.settings import Settings


class Part:
    def __init__(self, closed, error=None):
        self.closed, self.error = closed, error

    def close(self):
        self.closed.append(self)
        if self.error:
            raise self.error


@pytest.fixture
def rt(run_dir):
    settings = Settings(run_dir=run_dir)
    return runtime.Runtime("fusion", "0", settings, control.claim_instance(settings, "fusion", None)[1])


def test_a_close_that_raises_skips_no_other(rt, run_dir):
    closed = []
    parts = [rt.closing(Part(closed, error)) for error in (None, RuntimeError("second"), None)]
    with pytest.raises(RuntimeError, match="second"):
        rt.close()
    assert closed == parts[::-1]
    assert rt.exit_code == SOFTWARE  # the links that closed later did not say bye
    assert not list(run_dir.glob("*.sock"))
    assert rt.loop.context.closed


def test_a_gpu_that_is_lost_while_closing_ends_the_process_at_once(rt, monkeypatch):
    codes = []
    monkeypatch.setattr(runtime.os, "_exit", codes.append)
    rt.closing(Part([], GpuLost("gone")))
    rt.close()
    assert codes == [SOFTWARE]
