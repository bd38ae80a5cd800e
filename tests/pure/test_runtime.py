"""A service's end: everything is closed, whatever one of its parts does."""

from types import SimpleNamespace

import pytest

from peoplecounter.common.errors import SOFTWARE, GpuLost
from peoplecounter.common.process import control, runtime
from peoplecounter.common.process.journal import Journal
from peoplecounter.common.settings import Settings
from peoplecounter.deploy.group.circus import GroupSupervisor, reap_before_replacing


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


def test_a_process_that_died_is_told_of_before_it_is_replaced():
    """circus itself replaces one that dies between its two looks without calling after_reap."""
    from circus.process import DEAD_OR_ZOMBIE, RUNNING

    told = []
    processes = {pid: SimpleNamespace(pid=pid, status=status) for pid, status in ((1, RUNNING), (2, DEAD_OR_ZOMBIE))}
    watcher = SimpleNamespace(
        processes=processes, reap_process=told.append, manage_processes=lambda: told.append("managed")
    )
    reap_before_replacing(watcher)
    watcher.manage_processes()
    assert told == [2, "managed"]


def test_when_a_source_ends_no_decoder_of_another_one_does(run_dir):
    """circus ends the oldest processes when there are too many; two of these four wait for sources of a lost GPU."""
    sources = {name: {"url": f"{name}.mp4"} for name in "abc"}
    group = GroupSupervisor(Settings(run_dir=run_dir, sources=sources), {}, print)
    group._gpus = 2
    Journal(control.record_path(run_dir, "decoder.a"), control.ProcessRecord).write(control.ProcessRecord(ended=""))
    watcher = SimpleNamespace(name="decoder", numprocesses=5, processes=dict.fromkeys(range(4)))
    watcher.is_stopping = watcher.is_stopped = lambda: False
    group._after_reap(watcher, 1, 0)
    assert watcher.numprocesses == 4
