"""What a source may be: HTTP cameras and files, images, pipes, USB cameras, and how each is told from the others."""

import os
import socket
import threading
import time

import av
import numpy as np
import pytest

from peoplecounter.common.errors import NO_INPUT, SourceError
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder import opening
from peoplecounter.services.decoder.opening import parts_of
from peoplecounter.services.decoder.playback import START, Damaged, Opened, Picture, Position, StateChanged, play
from tests.support.http import file_server, jpeg, mjpeg_camera, status_server
from tests.support.squares import FRAMES, make_clip

QUICK = DecoderSettings(open_timeout_s=2, read_timeout_s=0.5, backoff_min_s=0.05, backoff_max_s=0.2)


def until(done, url, resume=START, **options):
    """(events of a source until `done(events)`, how long it asked to wait each time)."""
    events, waits = [], []

    def wait(seconds):
        waits.append(seconds)
        return done(events)

    for event in play(SourceSettings(url=str(url), **options), QUICK, resume, wait):
        events.append(event)
    return events, [seconds for seconds in waits if seconds]


def pictures(events):
    return [event for event in events if isinstance(event, Picture)]


def grey(picture):
    slot = np.zeros(picture.surface.layout.nbytes, np.uint8)
    picture.surface.write(slot)
    return int(slot[0])


def states(events):
    return [event.state for event in events if isinstance(event, StateChanged)]


def test_pictures_of_a_camera_with_b_frames_have_arrived_in_their_own_order(tmp_path):
    """Their packets have not: a person would jump to and fro in time."""
    path = make_clip(tmp_path / "clip.mp4", 40, options={"bf": "3", "preset": "medium", "g": "12"})
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored)
    events, _ = until(lambda events: False, path, realtime=True, fps=400)
    arrived = [p.captured_ns for p in pictures(events)]
    assert len(arrived) == 40 and arrived == sorted(set(arrived))


def test_frames_of_an_avi_file_come_in_the_order_of_their_times(tmp_path):
    """AVI numbers packets as they are stored: with B-frames that is another order."""
    path = make_clip(tmp_path / "clip.avi", 40, options={"bf": "3", "preset": "medium", "g": "12"})
    with av.open(str(path)) as container:
        decoded = [frame.pts for frame in container.decode(video=0)]
    assert decoded != sorted(decoded)  # what FFmpeg says
    events, _ = until(lambda events: False, path)
    assert [round(30 * p.pts_s) for p in pictures(events)] == list(range(1, 41))


def test_an_http_camera_is_live_and_opened_again_when_it_hangs_up():
    """It sends 40 frames as fast as it can: none waits for a frame rate that nobody has stated."""
    camera = mjpeg_camera(frames=40)
    events, waits = until(lambda events: camera.requests >= 3, camera.url)
    camera.close()
    assert Opened(live=True) in events and Opened(live=False) not in events
    assert states(events)[:4] == ["online", "reconnecting", "online", "reconnecting"]
    assert set(waits) == {QUICK.backoff_min_s}  # between two connections, and nowhere else
    assert len(pictures(events)) >= 80


def test_an_http_camera_of_a_frame_every_few_seconds_is_not_taken_for_dead():
    """It sends more rarely than read_timeout_s."""
    camera = mjpeg_camera(frames=4, every_s=3 * QUICK.read_timeout_s)
    events, _ = until(lambda events: states(events)[-1:] == ["reconnecting"], camera.url)
    camera.close()
    assert [grey(p) for p in pictures(events)][:2] == [0, 1] and len(pictures(events)) == 4
    assert camera.requests == 1


def test_a_file_by_http_is_a_file(tmp_path):
    server = file_server(make_clip(tmp_path / "clip.ts").read_bytes())
    events, _ = until(lambda events: False, server.url)
    server.close()
    assert events[0] == Opened(live=False) and events[-1] == StateChanged("ended")
    assert len(pictures(events)) == FRAMES


def test_an_http_server_that_refuses_is_an_error_and_one_that_is_down_is_tried_again():
    server = status_server("404 Not Found")
    with pytest.raises(SourceError, match="404") as refusal:
        until(lambda events: False, server.url)
    server.close()
    assert refusal.value.code == NO_INPUT
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    events, waits = until(lambda events: len(events) >= 3, url)
    assert states(events) == ["reconnecting"] * 3 and waits == [0.05, 0.1, 0.2]


def make_images(folder, names):
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(jpeg(10 * number, width=64 + 16 * number))
    return folder


@pytest.mark.parametrize("what", ["folder", "sequence"])
def test_images_are_played_in_the_order_of_their_numbers(tmp_path, what):
    """Each may have another size; a damaged one is a damaged frame."""
    folder = make_images(tmp_path / "images", [f"shot{n}.jpg" for n in (1, 2, 9, 10, 11)])
    (folder / "notes.txt").write_text("not an image")
    (folder / "shot9.jpg").write_bytes(b"\xff\xd8 damaged")
    events, _ = until(lambda events: False, folder if what == "folder" else folder / "shot%d.jpg")
    assert [grey(p) for p in pictures(events)] == pytest.approx([0, 10, 30, 40], abs=1)
    assert len([event for event in events if isinstance(event, Damaged)]) == 1
    resumed, _ = until(lambda events: False, folder, resume=pictures(events)[2].position)
    assert [grey(p) for p in pictures(resumed)] == pytest.approx([40], abs=1)


def test_a_folder_or_a_sequence_without_images_is_an_error(tmp_path):
    for url in (tmp_path, tmp_path / "shot%03d.png"):
        with pytest.raises(SourceError, match="has no images") as refusal:
            parts_of(str(url))
        assert refusal.value.code == NO_INPUT


def test_a_percent_sign_in_the_name_of_a_file_is_just_that(tmp_path):
    (tmp_path / "cam%20d.mp4").write_bytes(b"")
    assert parts_of(str(tmp_path / "cam%20d.mp4")) == [str(tmp_path / "cam%20d.mp4")]


def test_a_pipe_is_played_once_and_not_resumed(tmp_path):
    path, data = tmp_path / "pipe", make_clip(tmp_path / "clip.ts").read_bytes()
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,), daemon=True)
    writer.start()
    events, _ = until(lambda events: False, path, resume=Position(frames=10))
    assert len(pictures(events)) == FRAMES and events[-1] == StateChanged("ended")


def test_a_usb_camera_is_live_and_opened_again_when_it_is_plugged_in_again(tmp_path, monkeypatch):
    """There is no camera here: a pipe of JPEGs stands for the device, and FFmpeg's MJPEG demuxer for Video4Linux'."""
    device = tmp_path / "video0"
    os.mkfifo(device)
    monkeypatch.setattr(opening, "DEMUXERS", {str(device): "mjpeg"})
    monkeypatch.setattr(SourceSettings, "network", property(lambda source: True))

    def plug_in_and_out():
        while True:
            device.write_bytes(b"".join(jpeg(10 * n) for n in range(8)))  # waits for a reader
            time.sleep(0.3)  # in which the reader sees the end

    threading.Thread(target=plug_in_and_out, daemon=True).start()
    events, _ = until(lambda events: states(events).count("online") == 2, device)
    assert Opened(live=True) in events
    assert "reconnecting" in states(events) and "ended" not in states(events)


def test_a_usb_camera_that_is_not_there_is_waited_for():
    """FFmpeg's own Video4Linux demuxer is asked."""
    events, _ = until(lambda events: len(events) >= 2, "/dev/video9")
    assert states(events)[:2] == ["reconnecting"] * 2
    assert "/dev/video9" in events[0].detail and "no such file" in events[0].detail
    assert any("v4l2" in name for name in av.formats_available)


@pytest.mark.parametrize(
    "url, written", [("RTSP://Host/Path", "rtsp://Host/Path"), ("HTTP://h/A", "http://h/A"), ("C.mp4", "C.mp4")]
)
def test_a_scheme_may_be_written_in_any_case(url, written):
    assert SourceSettings(url=url).url == written


@pytest.mark.parametrize(
    "url, transport, options",
    [
        ("rtsp://127.0.0.1:1/a", "auto", {"rtsp_flags": "prefer_tcp"}),
        ("rtsp://127.0.0.1:1/a", "udp", {"rtsp_transport": "udp"}),
        ("rtspt://127.0.0.1:1/a", "auto", {"rtsp_transport": "tcp"}),
        ("http://127.0.0.1:1/a", "udp", {"fpsprobesize": "0"}),
    ],
)
def test_ffmpeg_is_told_the_transport_of_rtsp(monkeypatch, url, transport, options):
    asked = []
    monkeypatch.setattr(av, "open", lambda url, **named: asked.append((url, named["options"])) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        opening.open_source(url, SourceSettings(url=url, transport=transport), QUICK)
    assert asked[0][0] == url.replace("rtspt", "rtsp")
    assert options.items() <= asked[0][1].items()
