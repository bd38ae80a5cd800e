"""Any message may reach fusion's socket: invalid ones are rejected and counted, and counting goes on."""

import os

import numpy as np
import zmq

from peoplecounter.common.ipc.messages import (
    SCHEMA,
    Confirmed,
    Detections,
    Dropped,
    FrameHeader,
    Hello,
    Part,
    Result,
    Status,
    encode,
)
from peoplecounter.common.topology import RESULTS
from peoplecounter.common.views import View
from tests.support.squares import expected


def header(**changes):
    known = {"source": "cam", "seq": 10**6, "pts_s": 0, "captured_ns": 0, "deadline_ns": 0, "width": 9, "height": 9}
    return FrameHeader(**(known | changes))


def detections(boxes, **changes):
    return Detections(header(**changes), Part("tiles", 0, 2, 1, (View(64, 64, 0, 0),)), boxes, 0, 0)


FORGED = [
    detections(b"\0" * 31),
    detections(np.full(8, np.nan, "<f4").tobytes()),
    detections(b"", source="nobody"),
    Detections(header(), Part("zzz"), b"", 0, 0),
    Detections(header(), Part("tiles", 7, 2), b"", 0, 0),
    detections(np.zeros(8 * 1001, "<f4").tobytes()),
    Status("cam", "ended", 0),
    Dropped(header(), "because"),
    Status("nobody", "ended", 3),
    Confirmed(header(seq=10**6 + 1, early=True)),
]


def test_forged_results_are_refused_and_counted(group, clip, run_dir):
    g = group({"cam": {"url": str(clip), "loop": True, "realtime": True}})
    g.start()
    g.wait_counts(10)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(f"ipc://{run_dir}/{RESULTS}0.sock")
    socket.send(encode(Hello(SCHEMA, "evil", os.getpid())))
    for number, body in enumerate(FORGED, 1):
        socket.send(encode(Result(number, body)))
    too_many = encode(Result(9, detections(b""))).replace(b"\xa2of\x02", b"\xa2of\xce\xff\xff\xff\xff")
    for garbage in (os.urandom(300), b"", too_many):
        socket.send(garbage)
    g.wait_for(lambda: g.counters("fusion.0").get("results_refused", 0) >= len(FORGED), "the forged to be refused")
    g.wait_for(lambda: g.counters("fusion.0").get("messages_malformed", 0) >= 3, "the garbage to be counted")
    g.wait_counts(10)
    context.destroy(linger=0)
    g.check_books()
    assert all(c["count"] == expected(c["seq"]) for c in g.of("counts") if c["complete"])
