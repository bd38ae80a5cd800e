"""NVDEC gives FFmpeg's pixels, in its order, through our slots; what the GPU cannot decode gives a clear error."""

import av
import numpy as np
import pytest

from peoplecounter.common.errors import BAD_DATA, SourceError
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder.ffmpeg import FfmpegDecoder
from peoplecounter.services.decoder.playback import START, Damaged, PacketArrived, Picture, StateChanged, play
from peoplecounter.services.decoder.upright import OF_MATRIX, Upright
from tests.pipeline.test_upright import write_matrix
from tests.support.squares import ENCODERS

pytestmark = pytest.mark.gpu


class Decode:
    """Plays a file through a codec, each picture through a slot, back to the host."""

    def __init__(self):
        from peoplecounter.common.ipc.memory.cuda_ipc import CudaWorkQueue

        self.loop = Loop()
        self.work = CudaWorkQueue(self.loop)

    def on_gpu(self, path, **options):
        from functools import partial

        from peoplecounter.common.cuda import check, cudart
        from peoplecounter.common.ipc.memory import Block
        from peoplecounter.services.decoder.nvdec import NvdecDecoder

        codec = partial(NvdecDecoder, cuda_stream=self.work.stream)
        slot = None
        for event in play(
            SourceSettings(url=str(path), **options), DecoderSettings(), START, lambda seconds: False, codec
        ):
            if isinstance(event, Damaged):
                yield event
            if isinstance(event, Picture):
                layout = event.surface.layout
                slot = slot or Block(int(check(cudart.cudaMalloc(layout.nbytes))), layout.nbytes)
                event.surface.write(slot)
                host = np.empty(layout.nbytes, np.uint8)
                self.work.finish()
                kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
                check(cudart.cudaMemcpy(host.ctypes.data, slot.address, host.nbytes, kind))
                yield event, layout, host

    @staticmethod
    def on_cpu(path, **options):
        source = SourceSettings(url=str(path), **options)
        for event in play(source, DecoderSettings(), START, lambda seconds: False, FfmpegDecoder):
            if isinstance(event, Picture):
                layout = event.surface.layout
                slot = np.zeros(layout.nbytes, np.uint8)
                event.surface.write(slot)
                yield event, layout, slot


@pytest.fixture(scope="module")
def decode():
    return Decode()


def encode(path, codec, pixel_format="yuv420p", size=(640, 360), frames=12, options=None):
    """A moving gradient."""
    y, x = np.mgrid[: size[1], : size[0]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for i in range(frames):
            rgb = np.stack([(x + 9 * i) % 256, (y + 5 * i) % 256, (x + y) % 256], axis=2).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixel_format)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def pixels(layout: SurfaceLayout, slot):
    """(luma, chroma) without padding, the upper 8 bits."""
    step = layout.sample_bytes
    rows = slot.reshape(-1, layout.pitch)[:, step - 1 :: step][:, : layout.width]
    return rows[: layout.height], rows[layout.height :]


def same(gpu, cpu, tolerance=0):
    assert len(gpu) == len(cpu)
    for (a, layout_a, slot_a), (b, layout_b, slot_b) in zip(gpu, cpu):
        assert (a.number, a.pts_s) == (b.number, b.pts_s)
        assert (layout_a.width, layout_a.height, layout_a.matrix, layout_a.full_range) == (
            layout_b.width, layout_b.height, layout_b.matrix, layout_b.full_range
        )  # fmt: skip
        for one, other in zip(pixels(layout_a, slot_a), pixels(layout_b, slot_b)):
            assert np.abs(one.astype(int) - other.astype(int)).max() <= tolerance


def test_the_4k_clip_is_decoded_bit_for_bit(decode, street):
    same(list(decode.on_gpu(street)), list(decode.on_cpu(street)))


def test_live_every_picture_comes_with_its_own_packet(decode, street):
    """Latency ZERO: decoding order, none held back; the same pictures."""
    shown = list(decode.on_gpu(street, realtime=True))
    numbers = [event.number for event, *_ in shown]
    assert numbers == list(range(1, 1 + len(numbers)))
    times = [event.pts_s for event, *_ in shown]
    assert sorted(times) != times  # the clip has B-frames, so this says something
    same(sorted(shown[:40], key=lambda one: one[0].pts_s)[:20], list(decode.on_cpu(street))[:20])


@pytest.mark.parametrize(
    "codec, pixel_format, suffix, tolerance",
    [
        ("libx264", "yuv420p", "mp4", 0),
        ("libx264", "yuvj420p", "ts", 0),
        ("libx265", "yuv420p", "mp4", 0),
        ("libx265", "yuv420p10le", "mkv", 1),
        ("libsvtav1", "yuv420p", "mp4", 0),
        ("libvpx-vp9", "yuv420p", "webm", 0),
    ],
)
def test_codecs_and_containers(decode, tmp_path, codec, pixel_format, suffix, tolerance):
    path = encode(tmp_path / f"clip.{suffix}", codec, pixel_format)
    try:
        shown = list(decode.on_gpu(path))
    except SourceError as refused:
        assert "NVDEC does not decode" in str(refused)  # this GPU's generation
        return pytest.skip(str(refused))
    same(shown, list(decode.on_cpu(path)), tolerance)


@pytest.mark.parametrize("bits", [8, 10])
def test_the_limits_are_those_that_pynvvideocodec_reports(decode, bits):
    import PyNvVideoCodec as nvc

    from peoplecounter.services.decoder.nvdec import CODECS, limits

    for codec, (name, _) in CODECS.items():
        chroma = nvc.cudaVideoChromaFormat.__members__["420"]
        reported = dict(nvc.GetDecoderCaps(0, getattr(nvc.cudaVideoCodec, name), chroma, bits))
        found = limits(codec, bits)
        assert bool(found.supported) == bool(reported["supported"]), codec
        if found.supported:
            assert found.nvdecs == reported["num_decoder_engines"]
            for limit in ("width_min", "width_max", "height_min", "height_max"):
                assert getattr(found, limit) == reported[limit], (codec, limit)


def test_what_nvdec_cannot_decode_gives_a_clear_error(decode, tmp_path):
    for codec, pixel_format, suffix, words in [
        ("mjpeg", "yuvj420p", "mkv", "NVDEC does not decode mjpeg"),
        ("libx264", "yuv444p", "mp4", "decodes only 4:2:0"),
        ("libx264", "yuv420p10le", "mp4", "10-bit h264"),
    ]:
        path = encode(tmp_path / f"{codec}{pixel_format}.{suffix}", codec, pixel_format)
        with pytest.raises(SourceError, match=words) as refusal:
            list(decode.on_gpu(path))
        assert refusal.value.code == BAD_DATA and "\n" not in str(refusal.value)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_shown_of_a_stream_with_losses_is_right(decode, tmp_path, codec, seed):
    """NVDEC says nothing of damage: what the demuxer says must do."""
    whole = encode(tmp_path / "whole.ts", codec, frames=60, options=ENCODERS[codec])
    data, random = whole.read_bytes(), np.random.default_rng(seed)
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    for index in sorted(random.integers(20, len(packets) - 20, 3), reverse=True):
        del packets[index]
    (tmp_path / "lost.ts").write_bytes(b"".join(packets))
    right = {event.pts_s: (layout, slot) for event, layout, slot in decode.on_cpu(whole)}
    events = list(decode.on_gpu(tmp_path / "lost.ts"))
    shown = [event for event in events if not isinstance(event, Damaged)]
    assert len(shown) < len(events) and len(shown) > 10
    for picture, layout, slot in shown:
        for one, other in zip(pixels(layout, slot), pixels(*right[picture.pts_s])):
            assert np.abs(one.astype(int) - other.astype(int)).max() == 0, f"picture at {picture.pts_s} s"


@pytest.mark.parametrize("turns, mirrored", OF_MATRIX.values())
def test_a_video_is_shown_as_its_display_matrix_says(decode, tmp_path, turns, mirrored):
    path = encode(tmp_path / "phone.mp4", "libx264", frames=4)
    write_matrix(path, turns, mirrored)
    shown = list(decode.on_gpu(path))
    width, height = Upright(turns, mirrored).size(640, 360)
    assert {(layout.width, layout.height) for _, layout, _ in shown} == {(width, height)}
    same(shown, list(decode.on_cpu(path)))


@pytest.mark.parametrize("options", [{"rotate": "90"}, {"rotate": "180", "mirror": True}])
def test_a_camera_that_is_mounted_sideways_is_turned_by_its_settings(decode, tmp_path, options):
    path = encode(tmp_path / "clip.ts", "libx264", frames=4)
    same(list(decode.on_gpu(path, **options)), list(decode.on_cpu(path, **options)))


@pytest.mark.parametrize("aspect", ["2:1", "4:3", "8:9"])
def test_pixels_become_square(decode, tmp_path, aspect):
    """The GPU interpolates between neighbours, FFmpeg's scaler over more of them."""
    path = encode(tmp_path / "clip.mp4", "libx264", frames=4)
    for (one, a, slot_a), (other, b, slot_b) in zip(
        decode.on_gpu(path, pixel_aspect=aspect), decode.on_cpu(path, pixel_aspect=aspect), strict=True
    ):
        assert (a.width, a.height, one.surface.aspect) == (b.width, b.height, other.surface.aspect)
        for ours, theirs in zip(pixels(a, slot_a), pixels(b, slot_b)):
            assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 3


def test_interlaced_frames_become_whole_pictures(decode, tmp_path):
    """NVDEC deinterlaces by itself: no comb is left of a bar that moves between the two fields."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "3", "x264-params": "tff=1"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for index in range(8):
            woven = np.full((360, 640, 3), 40, np.uint8)
            for field in (0, 1):
                at = 20 + 12 * (2 * index + field)
                woven[field::2, at : at + 60] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(woven, "rgb24")))
        container.mux(stream.encode())
    shown = list(decode.on_gpu(path))
    assert len(shown) == 8
    for _, layout, slot in shown[1:-1]:
        luma = pixels(layout, slot)[0].astype(int)
        assert np.abs(luma[2:-2:2] - luma[3:-1:2]).mean() < 3


def test_a_network_stream_that_ends_is_opened_again(decode, tmp_path):
    """The live path: each picture is announced by its packet before it is decoded."""
    from functools import partial

    from peoplecounter.services.decoder.nvdec import NvdecDecoder
    from tests.pipeline.test_sources import QUICK, Camera

    camera = Camera(encode(tmp_path / "clip.ts", "libx264", options={"bf": "0"}).read_bytes())
    codec = partial(NvdecDecoder, cuda_stream=decode.work.stream)
    states, announced, shown = [], [], []
    for event in play(SourceSettings(url=camera.url), QUICK, START, lambda seconds: False, codec):
        if isinstance(event, StateChanged):
            states.append(event.state)
        elif isinstance(event, PacketArrived):
            announced.append(event.number)
        elif isinstance(event, Picture):
            shown.append(event.number)
        if states.count("reconnecting") == 2:
            break
    assert states == ["online", "reconnecting"] * 2
    assert len(shown) >= 20 and shown == announced
