"""NVDEC gives FFmpeg's pixels, in its order, through our slots; what the GPU cannot decode gives a clear error."""

import av
import numpy as np
import pytest

from peoplecounter.common.errors import BAD_DATA, SourceError
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.services.decoder.ffmpeg import FfmpegDecoder
from peoplecounter.services.decoder.playback import Damaged, PacketArrived, Picture, StateChanged, play

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
            SourceSettings(url=str(path), **options), DecoderSettings(), None, lambda seconds: False, codec
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
    def on_cpu(path):
        for event in play(SourceSettings(url=str(path)), DecoderSettings(), None, lambda seconds: False, FfmpegDecoder):
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
        assert (a.pts, a.pts_s) == (b.pts, b.pts_s)
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
    pts = [event.pts for event, *_ in shown]
    with av.open(str(street)) as container:
        packets = [p.pts for p in container.demux(video=0) if p.pts is not None]
    assert pts == packets
    assert sorted(pts) != pts  # the clip has B-frames, so this says something
    same(sorted(shown[:40], key=lambda one: one[0].pts)[:20], list(decode.on_cpu(street))[:20])


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


def test_a_damaged_stream_goes_on(decode, tmp_path):
    path = encode(tmp_path / "clip.ts", "libx264", frames=60, options={"g": "10"})
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 2000):
        data[at] ^= 0x5A
    path.write_bytes(data)
    shown = [event for event in decode.on_gpu(path) if not isinstance(event, Damaged)]
    assert len(shown) >= 40


def test_a_network_stream_that_ends_is_opened_again(decode, tmp_path):
    """The live path: each picture is announced by its packet before it is decoded."""
    from functools import partial

    from peoplecounter.services.decoder.nvdec import NvdecDecoder
    from tests.pipeline.test_sources import QUICK, Camera

    camera = Camera(encode(tmp_path / "clip.ts", "libx264", options={"bf": "0"}).read_bytes())
    codec = partial(NvdecDecoder, cuda_stream=decode.work.stream)
    states, announced, shown = [], [], []
    for event in play(SourceSettings(url=camera.url), QUICK, None, lambda seconds: False, codec):
        if isinstance(event, StateChanged):
            states.append(event.state)
        elif isinstance(event, PacketArrived):
            announced.append(event.pts)
        elif isinstance(event, Picture):
            shown.append(event.pts)
        if states.count("reconnecting") == 2:
            break
    assert states == ["online", "reconnecting"] * 2
    assert len(shown) >= 20 and shown == announced
