"""Errors of an engine, one after the other."""

from types import SimpleNamespace

import pytest

from peoplecounter.common.errors import AppError, ModelOutputError
from peoplecounter.common.inference.worker import MAX_ERRORS_IN_A_ROW, Inference
from peoplecounter.common.ipc.messages import FrameHeader, Offer, Part, SlotRef


@pytest.mark.parametrize(
    "error, raised, text",
    [
        (ValueError("no such tensor"), ValueError, "no such tensor"),
        (ModelOutputError("not a number"), AppError, f"on {MAX_ERRORS_IN_A_ROW} parts in a row: not a number"),
    ],
)
def test_the_error_that_ends_an_infer_process_is_the_engines_own(error, raised, text):
    """It was raised again by a bare `raise`, which works only inside of an `except`."""
    dropped = []
    rt = SimpleNamespace(
        work=SimpleNamespace(on_done=lambda callback: callback()),
        drop=lambda header, reason, part: dropped.append(reason),
        log=SimpleNamespace(error=lambda *values, exc_info=None: None),
    )
    header = FrameHeader(source="cam", seq=1, pts_s=0, captured_ns=0, deadline_ns=0, width=64, height=64)
    offer, lease = Offer(header, SlotRef("e", 0, 1), Part("global")), SimpleNamespace(release=lambda: None)
    inference = Inference(rt, None, None)
    for _ in range(MAX_ERRORS_IN_A_ROW - 1):
        inference._fail(lease, offer, error)
    with pytest.raises(raised, match=text):
        inference._fail(lease, offer, error)
    assert dropped == ["engine_error"] * MAX_ERRORS_IN_A_ROW
