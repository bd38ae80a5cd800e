"""Files and streams as they come: every format decodes to the right pixels, every bad one gives a clear error."""

import contextlib
import socket
import threading
import time

import av
import numpy as np
import pytest
from av.stream import Disposition

from peoplecounter.common.errors import BAD_DATA, NO_INPUT, SourceError
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.common.sources import redacted
from peoplecounter.services.decoder.ffmpeg import FfmpegDecoder, copy_nv12, layout_of
from peoplecounter.services.decoder.playback import START, Damaged, Picture, StateChanged, play
from peoplecounter.services.decoder.reader import Reader
from tests.support.squares import CELL, FPS, FRAMES, HEIGHT, WIDTH, expected, make_clip, picture

QUICK = DecoderSettings(open_timeout_s=2, read_timeout_s=0.5, backoff_min_s=0.05, backoff_max_s=0.2)


def watch(url, resume=START, settings=QUICK, codec=None, **options):
    return list(play(SourceSettings(url=str(url), **options), settings, resume, lambda seconds: False, codec))


def pictures(events):
    return [event for event in events if isinstance(event, Picture)]


def nv12(frame):
    """(layout, luma [h, w], chroma [h/2, w/2, 2]) of a frame, through the slot it would lie in."""
    layout = layout_of(frame)
    slot = np.full(layout.nbytes + 100, 99, np.uint8)
    copy_nv12(frame, layout, slot)
    rows = slot[: layout.nbytes].reshape(-1, layout.pitch)
    half = (layout.width + 1) // 2
    chroma = rows[layout.height :, : 2 * half].reshape(-1, half, 2)
    assert (slot[layout.nbytes :] == 99).all()
    return layout, rows[: layout.height, : layout.width], chroma


def squares(picture):
    """How many squares a picture of a clip shows."""
    return round(float((nv12(picture.surface.frame)[1] > 128).mean()) * WIDTH * HEIGHT / CELL**2)


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (66, 50)])
@pytest.mark.parametrize("name", ["yuv420p", "yuvj420p", "nv12"])
def test_8_bit_420_is_copied_exactly(name, size):
    width, height = size
    frame = av.VideoFrame(width, height, name)
    random = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(random.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    layout, luma, chroma = nv12(frame)
    assert layout.full_range == (name == "yuvj420p")
    planes = [np.frombuffer(p, np.uint8).reshape(-1, p.line_size) for p in frame.planes]
    half = (width + 1) // 2
    np.testing.assert_array_equal(luma, planes[0][:height, :width])
    if name == "nv12":
        np.testing.assert_array_equal(chroma.reshape(-1, 2 * half), planes[1][:, : 2 * half])
    else:
        np.testing.assert_array_equal(chroma, np.dstack([planes[1][:, :half], planes[2][:, :half]]))


@pytest.mark.parametrize("name", ["yuv422p", "yuv444p", "yuv420p10le", "rgb24", "gray"])
def test_other_formats_become_nv12_of_the_same_picture(name):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, 32:] = 255
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=name)
    layout, luma, chroma = nv12(frame)
    dark, bright = (0, 255) if layout.full_range else (16, 235)
    assert abs(int(luma[20, 10]) - dark) <= 2
    assert abs(int(luma[20, 50]) - bright) <= 2
    assert np.abs(chroma.astype(int) - 128).max() <= 2


@pytest.mark.parametrize(
    "file, codec, pixel_format",
    [
        ("ramp.png", "png", "rgb24"),
        ("ramp.png", "png", "rgba"),
        ("ramp.mkv", "ffv1", "bgr0"),
        ("ramp.mkv", "libx264rgb", "rgb24"),
        ("ramp.gif", "gif", "rgb8"),
    ],
)
def test_rgb_keeps_its_range(tmp_path, file, codec, pixel_format):
    """Every level of a ramp becomes itself, whether the file states a range or not."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    frame = av.VideoFrame.from_ndarray(ramp, "rgb24").reformat(format=pixel_format)
    with av.open(str(tmp_path / file), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.width, stream.height, stream.pix_fmt = 256, 64, pixel_format
        container.mux([*stream.encode(frame), *stream.encode()])
    (shown,) = pictures(watch(tmp_path / file))
    rgb = shown.surface.frame.to_ndarray(format="rgb24")
    layout, luma, _ = nv12(shown.surface.frame)
    assert (layout.matrix, layout.full_range) == ("bt601", True)
    assert np.abs(luma - rgb @ [0.299, 0.587, 0.114]).max() <= 1
    if codec != "gif":  # which has 256 colours
        np.testing.assert_array_equal(rgb, ramp)


def test_the_colour_matrix_is_the_streams_or_what_its_size_suggests():
    frame = av.VideoFrame(64, 48, "yuv420p")
    assert layout_of(frame).matrix == "bt601"
    assert layout_of(av.VideoFrame(1280, 720, "yuv420p")).matrix == "bt709"
    frame.colorspace, frame.color_range = 1, 2
    assert (layout_of(frame).matrix, layout_of(frame).full_range) == ("bt709", True)
    frame.colorspace = 9
    assert layout_of(frame).matrix == "bt2020"


@pytest.mark.parametrize(
    "codec, options", [("libx264", {"bf": "3"}), ("libx265", {}), ("mpeg4", {}), ("libvpx-vp9", {})]
)
def test_codecs(tmp_path, codec, options):
    """All frames, in order, whatever is reordered inside."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 272, 208, "yuv420p"
        for seq in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(seq), "rgb24")))
        container.mux(stream.encode())
    shown = pictures(watch(path))
    assert [squares(p) for p in shown] == [expected(seq) for seq in range(20)]


def test_a_file_is_resumed_behind_a_frame(clip):
    whole = pictures(watch(clip))
    assert len(whole) == FRAMES
    for at in (0, 7, 29, FRAMES - 2):
        assert [p.pts_s for p in pictures(watch(clip, whole[at].position))] == [p.pts_s for p in whole[at + 1 :]]


def test_real_time_keeps_the_files_rate(clip):
    waits = []
    for event in play(
        SourceSettings(url=str(clip), realtime=True), QUICK, START, lambda s: waits.append(s) or time.sleep(s)
    ):
        if isinstance(event, Picture) and event.pts_s > 0.5:
            break
    assert sum(waits) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    "name, data, code, message",
    [
        ("missing.mp4", None, NO_INPUT, "no such file"),
        ("text.txt", b"just some text\n" * 50, BAD_DATA, ""),
        ("empty.mp4", b"", BAD_DATA, "invalid data"),
        ("noise.mp4", bytes(range(256)) * 40, BAD_DATA, "invalid data"),
    ],
)
def test_a_file_that_is_not_a_video_gives_one_error(tmp_path, name, data, code, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError) as refusal:
        watch(tmp_path / name)
    assert refusal.value.code == code
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_sound_file_has_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(SourceError, match="no video stream"):
        watch(path)


def make_streams(path, **videos):
    """A file of one picture a stream: name -> (width, disposition); `cover` is a JPEG, which only MP4 marks as such."""
    options = {"default_mode": "passthrough"} if path.suffix == ".mkv" else {}
    with av.open(str(path), "w", options=options) as container:
        streams = []
        for name, (width, disposition) in videos.items():
            stream = container.add_stream("mjpeg" if name == "cover" else "libx264", rate=FPS)
            stream.width, stream.height = width, width // 2
            stream.pix_fmt = "yuvj420p" if name == "cover" else "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream in streams:
            frame = av.VideoFrame(stream.width, stream.height, stream.pix_fmt)
            container.mux([*stream.encode(frame), *stream.encode()])
    return path


@pytest.mark.parametrize(
    "videos, chosen, width",
    [
        ({"small": (64, 0), "large": (256, Disposition.default)}, -1, 256),
        ({"small": (64, Disposition.default), "large": (256, 0)}, -1, 64),
        ({"small": (64, 0), "large": (256, 0)}, -1, 256),
        ({"small": (64, Disposition.default), "large": (256, Disposition.default)}, -1, 256),
        ({"small": (64, 0), "large": (256, 0)}, 0, 64),
    ],
)
def test_the_stream_is_the_named_the_default_or_the_largest(tmp_path, videos, chosen, width):
    path = make_streams(tmp_path / "streams.mkv", **videos)
    assert [p.surface.frame.width for p in pictures(watch(path, stream=chosen))] == [width]


def test_a_stream_that_a_file_does_not_have_gives_an_error_with_those_it_has(tmp_path):
    path = make_streams(tmp_path / "streams.mkv", small=(64, 0), large=(256, 0))
    with pytest.raises(SourceError, match=r"no video stream 7: its video streams are 0 \(64x32\), 1 \(256x128\)"):
        watch(path, stream=7)


def test_cover_art_is_not_a_video(tmp_path):
    path = make_streams(tmp_path / "film.mp4", cover=(512, Disposition.attached_pic), film=(64, 0))
    assert [p.surface.frame.width for p in pictures(watch(path))] == [64]
    path = make_streams(tmp_path / "song.mp4", cover=(64, Disposition.attached_pic))
    with pytest.raises(SourceError, match="no video stream"):
        watch(path)


def test_a_video_without_a_frame(tmp_path, clip):
    path = tmp_path / "headers.ts"
    with av.open(str(clip)) as source, av.open(str(path), "w") as container:
        container.add_stream_from_template(source.streams.video[0])
        container.start_encoding()
    with pytest.raises(SourceError) as refusal:
        watch(path)
    assert refusal.value.code == BAD_DATA


def test_a_truncated_file_counts_what_is_there(tmp_path, clip):
    path = make_clip(tmp_path / "whole.ts")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    shown = pictures(watch(path))
    assert 20 < len(shown) < FRAMES


def damaged_clip(path, codec, seed, harm):
    """A clip with a keyframe every 15 frames; `harm(packets, index)` three of its TS packets."""
    random, data = np.random.default_rng(seed), make_clip(path, codec=codec).read_bytes()
    packets = [bytearray(data[at : at + 188]) for at in range(0, len(data), 188)]
    for index in sorted(random.integers(20, len(packets) - 20, 3), reverse=True):
        harm(packets, index)
    path.write_bytes(b"".join(packets))
    return path


class Mute(FfmpegDecoder):
    """A decoder that does not say what it cannot decode, as NVDEC."""

    reports_damage = False

    def decode(self, packet):
        return super().decode(packet)[0], ""


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("decoder", [FfmpegDecoder, Mute])
def test_what_is_shown_of_a_stream_with_losses_is_right(tmp_path, decoder, codec, seed):
    """Damage lasts until the next keyframe: until then every packet is a frame that is dropped, and none is shown."""
    path = damaged_clip(tmp_path / "lost.ts", codec, seed, lambda packets, index: packets.pop(index))
    events = watch(path, codec=decoder)
    shown, damaged = pictures(events), [event for event in events if isinstance(event, Damaged)]
    for p in shown:
        seq = round(p.pts_s * FPS)
        assert squares(p) == expected(seq), f"frame {seq}"
    assert damaged and not any(p.doubtful for p in shown)
    assert FRAMES - 3 <= len(shown) + len(damaged) <= FRAMES + 3  # of a frame whose start is lost nothing may be seen
    assert events[-1] == StateChanged("ended")


def test_data_that_cannot_be_decoded_is_a_dropped_frame(tmp_path):
    """A decoder does not notice every changed bit: some pictures are decoded that are not right."""

    def scramble(packets, index):
        packets[index][30:150] = np.random.default_rng(index).integers(0, 256, 120, np.uint8).tobytes()

    events = watch(damaged_clip(tmp_path / "scrambled.ts", "libx264", 1, scramble))
    assert [event for event in events if isinstance(event, Damaged)]
    assert pictures(events)
    assert events[-1] == StateChanged("ended")


def test_a_stream_with_one_keyframe_comes_back_as_doubtful(tmp_path):
    """A camera with endless GOPs: after recover_s its pictures are shown again, marked."""
    path = make_clip(tmp_path / "whole.ts", options={"g": "1000"})
    data = path.read_bytes()
    lost = len(data) // 5 // 188 * 188
    path.write_bytes(data[:lost] + data[lost + 188 :])
    events = watch(path, settings=QUICK.model_copy(update={"recover_s": 0.5}))
    shown = pictures(events)
    doubtful = [p.doubtful for p in shown]
    assert sum(doubtful) > FRAMES // 3 and doubtful == sorted(doubtful)  # whole ones, then those that may be wrong
    damaged = [event for event in events if isinstance(event, Damaged)]
    assert len(damaged) == pytest.approx(0.5 * FPS, abs=3)


def test_credentials_are_never_shown():
    assert redacted("rtsp://user:secret@10.0.0.1/stream") == "rtsp://10.0.0.1/stream"
    with pytest.raises(SourceError) as refusal:
        next(_opened("rtsp://user:secret@127.0.0.1:9/stream"))
    assert "secret" not in str(refusal.value)


def _opened(url):
    from peoplecounter.services.decoder.playback import _once

    return _once(SourceSettings(url=url), QUICK, START, lambda seconds: False, FfmpegDecoder)


class Camera:
    """Serves MPEG-TS over TCP: each client gets a whole clip, then the end, or silence."""

    def __init__(self, data, hang=False):
        self.data, self.hang, self.clients = data, hang, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.clients += 1
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client):
        with client, contextlib.suppress(OSError):
            client.sendall(self.data)
            if self.hang:
                time.sleep(5)


@pytest.mark.parametrize("hang", [False, True], ids=["ends", "hangs"])
def test_a_stream_that_ends_or_hangs_is_opened_again(tmp_path, hang):
    camera = Camera(make_clip(tmp_path / "clip.ts").read_bytes(), hang)
    seen = []
    for event in play(SourceSettings(url=camera.url), QUICK, START, lambda seconds: camera.clients >= 3):
        seen.append(
            event.state if isinstance(event, StateChanged) else "frame" if isinstance(event, Picture) else "damage"
        )
    camera.listener.close()
    changes = [s for s in seen if s in ("online", "reconnecting")]
    assert changes[:4] == ["online", "reconnecting", "online", "reconnecting"]
    assert seen.count("frame") > FRAMES


def test_a_picture_that_a_break_cuts_off_is_damaged_not_shown(tmp_path):
    """FFmpeg would fill in the other half, and its people with it."""
    path = make_clip(tmp_path / "clip.ts")
    with av.open(str(path)) as container:
        begins = [packet.pos for packet in container.demux(video=0) if packet.size]
    whole = int(np.argmax(np.diff(begins)[1:])) + 1  # pictures in front of the largest
    middle = (begins[whole] + begins[whole + 1]) // 2
    camera = Camera(path.read_bytes()[: middle - middle % 188])
    events = []
    for event in play(SourceSettings(url=camera.url), QUICK, START, lambda seconds: False):
        events.append(event)
        if isinstance(event, StateChanged) and event.state == "reconnecting":
            break
    camera.listener.close()
    assert len(pictures(events)) == whole > 10
    assert isinstance(events[-2], Damaged), events[-2]


def test_a_stream_that_is_down_is_tried_with_growing_waits():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    waits = []
    events = list(play(SourceSettings(url=url), QUICK, START, lambda seconds: waits.append(seconds) or len(waits) == 5))
    assert waits == [0.05, 0.1, 0.2, 0.2, 0.2]
    assert {event.state for event in events} == {"reconnecting"}


def test_a_hanging_source_does_not_hang_its_reader(tmp_path):
    camera = Camera(b"", hang=True)
    reader = Reader(SourceSettings(url=camera.url), QUICK, START)
    begin = time.monotonic()
    assert list(reader.take()) == []
    reader.close()
    assert time.monotonic() - begin < 4
    camera.listener.close()
