"""Pictures as they are meant to be seen: turned, mirrored, with pixels that are not square, interlaced."""

import gc
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder.playback import START, Picture, play
from peoplecounter.services.decoder.upright import OF_EXIF, OF_MATRIX, Upright
from tests.support import squares

WIDTH, HEIGHT = 96, 64
ROTATION_OF_TURNS = {0: 0, 1: -90, 2: 180, 3: 90}  # PyAV's degrees, counterclockwise


def no(seconds: float) -> bool:
    """Never stop."""
    return False


def scene() -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: four quarters of different brightness, none of which is another one turned."""
    grey = np.zeros((HEIGHT, WIDTH), np.uint8)
    grey[: HEIGHT // 2, : WIDTH // 2], grey[: HEIGHT // 2, WIDTH // 2 :] = 40, 90
    grey[HEIGHT // 2 :, : WIDTH // 2], grey[HEIGHT // 2 :, WIDTH // 2 :] = 150, 220
    return np.repeat(grey[..., None], 3, axis=2)


def stored(turns: int, mirrored: bool) -> np.ndarray:
    """The scene as a camera stores it that says: turn it so, then mirror it."""
    shown = scene()[:, ::-1] if mirrored else scene()
    return np.ascontiguousarray(np.rot90(shown, turns))


def seen(path, **options) -> list[tuple[Picture, np.ndarray]]:
    """Every picture of a file, with the luma of its surface."""
    source = SourceSettings(url=str(path), **options)
    pictures = [e for e in play(source, DecoderSettings(), START, no) if isinstance(e, Picture)]
    return [(picture, luma(picture)) for picture in pictures]


def luma(picture: Picture) -> np.ndarray:
    layout = picture.surface.layout
    slot = np.zeros(layout.nbytes, np.uint8)
    picture.surface.write(slot)
    return slot.reshape(-1, layout.pitch)[: layout.height, : layout.width].astype(int)


def assert_is_the_scene(pixels: np.ndarray) -> None:
    height, width = pixels.shape
    quarters = [pixels[height * y // 4, width * x // 4] for y in (1, 3) for x in (1, 3)]
    assert quarters == sorted(quarters) and quarters[3] - quarters[0] > 120, quarters


def make_jpeg(path, rgb, exif: int, byte_order: str):
    """A JPEG that says how it is to be turned, as phones do."""
    height, width = rgb.shape[:2]
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuvj420p")
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.time_base = width, height, "yuvj420p", Fraction(1)
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode()])
    order = "<" if byte_order == "II" else ">"
    tiff = byte_order.encode() + struct.pack(order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, exif, 0, 0)
    app1 = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + data[2:])
    return path


def make_video(path, rgb, frames=4, setup=lambda stream: None, codec="libx264", **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "5", **options})
        stream.height, stream.width = rgb.shape[:2]
        stream.pix_fmt = "yuv420p"
        setup(stream)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(stream.encode())
    return path


def write_matrix(path, turns, mirrored) -> None:
    """Writes into an MP4 that its pictures are to be turned and mirrored."""
    a, b, c, d = next(signs for signs, of in OF_MATRIX.items() if of == (turns, mirrored))
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    track = data.index(b"tkhd")
    assert data[track:].count(identity) == 1
    path.write_bytes(data[:track] + data[track:].replace(identity, matrix))


@pytest.mark.parametrize("byte_order", ["II", "MM"])
@pytest.mark.parametrize("exif", OF_EXIF)
def test_a_photo_is_shown_as_its_exif_orientation_says(tmp_path, exif, byte_order):
    path = make_jpeg(tmp_path / "photo.jpg", stored(*OF_EXIF[exif]), exif, byte_order)
    ((_, pixels),) = seen(path)
    assert pixels.shape == (HEIGHT, WIDTH)
    assert_is_the_scene(pixels)


@pytest.mark.parametrize("turns, mirrored", OF_MATRIX.values())
def test_a_video_is_shown_as_its_display_matrix_says(tmp_path, turns, mirrored):
    """All eight, in an MP4 as phones write it."""
    path = make_video(tmp_path / "phone.mp4", stored(turns, mirrored))
    write_matrix(path, turns, mirrored)
    shown = seen(path)
    assert len(shown) == 4
    for _, pixels in shown:
        assert pixels.shape == (HEIGHT, WIDTH)
        assert_is_the_scene(pixels)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_camera_that_is_mounted_sideways_is_turned_by_its_settings(tmp_path, turns, mirrored):
    path = make_video(tmp_path / "clip.mp4", stored(turns, mirrored))
    for _, pixels in seen(path, rotate=90 * turns, mirror=mirrored):
        assert pixels.shape == (HEIGHT, WIDTH)
        assert_is_the_scene(pixels)


def test_the_setting_overrides_what_the_file_says(tmp_path):
    path = make_jpeg(tmp_path / "wrong.jpg", scene(), 6, "II")
    ((_, pixels),) = seen(path, rotate="0")
    assert_is_the_scene(pixels)


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(4, 3), Fraction(3, 4)])
@pytest.mark.parametrize("said", ["stream", "settings"])
def test_pixels_become_square_and_none_is_lost(tmp_path, aspect, said):
    squeezed = av.VideoFrame.from_ndarray(scene(), "rgb24").reformat(
        round(WIDTH / max(aspect, 1)), round(HEIGHT * min(aspect, 1)), "rgb24"
    )
    setup = lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", aspect)  # noqa: E731
    path = make_video(
        tmp_path / "clip.mp4", squeezed.to_ndarray(), setup=setup if said == "stream" else lambda stream: None
    )
    options = {} if said == "stream" else {"pixel_aspect": f"{aspect.numerator}:{aspect.denominator}"}
    for picture, pixels in seen(path, **options):
        assert pixels.shape == pytest.approx((HEIGHT, WIDTH), abs=1)
        assert picture.surface.aspect == pytest.approx(float(aspect))
        assert_is_the_scene(pixels)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(1088, 1080), Fraction(255)])
def test_aspects_that_mean_nothing_are_not_resampled(tmp_path, aspect):
    setup = lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", aspect)  # noqa: E731
    path = make_video(tmp_path / "clip.mp4", scene(), setup=setup)
    assert {pixels.shape for _, pixels in seen(path)} == {(HEIGHT, WIDTH)}


def test_a_turn_turns_the_aspect_too():
    turned = Upright(1, False, Fraction(1, 2))  # stored 2:1, so after a quarter turn 1:2
    assert turned.size(100, 80) == (80, 200)


@pytest.mark.parametrize("top", [True, False])
def test_interlaced_frames_become_whole_pictures(tmp_path, top):
    """A bar that moves between the two fields is a comb in the frame, and one bar in the picture."""
    frames, bar = 6, 24

    def field(at: int) -> np.ndarray:
        grey = np.full((HEIGHT, 2 * WIDTH), 40, np.uint8)
        grey[:, 8 + 6 * at : 8 + 6 * at + bar] = 200
        return grey

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        order = "tff" if top else "bff"
        stream = container.add_stream("libx264", rate=25, options={"crf": "3", "x264-params": f"{order}=1"})
        stream.width, stream.height, stream.pix_fmt = 2 * WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            first, second = field(2 * index), field(2 * index + 1)
            woven = first.copy()
            woven[(1 if top else 0) :: 2] = second[(1 if top else 0) :: 2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(woven[..., None], 3, 2), "rgb24")))
        container.mux(stream.encode())
    shown = seen(path)
    assert [round(picture.pts_s * 25) for picture, _ in shown] == list(range(frames))
    for _, pixels in shown[1:-1]:  # the first and the last have one neighbour only
        combs = np.abs(pixels[2:-2:2] - pixels[3:-1:2]).mean()
        assert combs < 3, combs


def test_frames_that_were_played_are_freed_at_once(clip):
    """Not when Python looks for garbage, which it does only after hundreds of frames: 700 MB of a 1080p source."""
    gc.disable()
    try:
        gc.collect()
        played = sum(isinstance(e, Picture) for e in play(SourceSettings(url=str(clip)), DecoderSettings(), START, no))
        alive = sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    finally:
        gc.enable()
    assert played == squares.FRAMES and alive <= 1
