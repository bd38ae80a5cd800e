"""NVDEC: packets from FFmpeg's demuxer -> NV12 (or P016) surfaces on the GPU, copied on the decoder's own stream.

NVDEC deinterlaces by itself. What turns or stretches the pictures is read where FFmpeg shows it, see _look.

A live source is decoded with latency ZERO: a picture comes out with its own packet. A stream with B-frames then comes
in decoding order, because nothing waits for the frames that are presented earlier. Lossless files come in the order of
presentation.
"""

import contextlib
import ctypes

import av
import PyNvVideoCodec as nvc
from av.bitstream import BitStreamFilterContext

from peoplecounter.common import cuda
from peoplecounter.common.cubins import Launch
from peoplecounter.common.cuda import check, cudart
from peoplecounter.common.errors import BAD_DATA, SourceError
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import SourceSettings
from peoplecounter.services.decoder.ffmpeg import colour_of, pitch_of
from peoplecounter.services.decoder.playback import PENDING_MAX, DecodeError
from peoplecounter.services.decoder.turn import TURN_PLANE, plane, turn_launch
from peoplecounter.services.decoder.upright import Upright, upright

CODECS = {  # FFmpeg's name -> (NVDEC's name, bitstream filters whose output NVDEC's parser reads)
    "h264": ("H264", "h264_mp4toannexb"),
    "hevc": ("HEVC", "hevc_mp4toannexb"),
    "av1": ("AV1", None),
    "vp9": ("VP9", "vp9_superframe_split"),
    "mpeg4": ("MPEG4", None),
    "mpeg2video": ("MPEG2", None),
}
FORMATS = {"yuv420p": 8, "yuvj420p": 8, "nv12": 8, "yuv420p10le": 10, "p010le": 10, "yuv420p12le": 12}  # 4:2:0, bits
TURNING = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers with a display matrix
CHROMA_420 = 1  # cudaVideoChromaFormat
ANNEX_B = b"\0\0\1"
ON_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice


class Limits(ctypes.Structure):
    """What NVDEC decodes of a codec: CUVIDDECODECAPS of NVIDIA's cuviddec.h."""

    _fields_ = [
        ("codec", ctypes.c_int), ("chroma", ctypes.c_int), ("bits_above_8", ctypes.c_uint),
        ("_reserved_in", ctypes.c_uint * 3),
        ("supported", ctypes.c_ubyte), ("nvdecs", ctypes.c_ubyte), ("formats", ctypes.c_ushort),
        ("width_max", ctypes.c_uint), ("height_max", ctypes.c_uint), ("macroblocks_max", ctypes.c_uint),
        ("width_min", ctypes.c_ushort), ("height_min", ctypes.c_ushort),
        ("_histogram", ctypes.c_ubyte * 4), ("_reserved_out", ctypes.c_uint * 10),
    ]  # fmt: skip


def limits(codec: str, bits: int = 8) -> Limits:
    """NVDEC's limits on the current GPU for a codec in 4:2:0. PyNvVideoCodec's own function creates a CUDA context each
    time, which takes 0.2 s."""
    name, _ = CODECS[codec]
    asked = Limits(int(getattr(nvc.cudaVideoCodec, name)), CHROMA_420, bits - 8)
    cuda.start(cuda.current())
    code = ctypes.CDLL("libnvcuvid.so.1").cuvidGetDecoderCaps(ctypes.byref(asked))
    check((cudart.cudaError_t(code),))  # of the driver's errors, which have the same numbers
    return asked


class NvdecDecoder:
    """Decodes one opening of a source. Raises SourceError for a stream that this GPU's NVDEC cannot decode."""

    reports_damage = False

    def __init__(self, stream: av.VideoStream, source: SourceSettings, live: bool, cuda_stream: int):
        context = stream.codec_context
        self._video, self._source = stream, source
        self._upright: Upright | None = None  # None: no packet has come yet
        name = context.codec.canonical_name  # not that of FFmpeg's decoder: libdav1d decodes av1
        refuse_unless_supported(name, context.pix_fmt, context.width, context.height)
        cuda.start()  # this is the reader's thread
        codec, filters = CODECS[name]
        self._stream = cuda_stream
        self._filter = BitStreamFilterContext(filters, stream) if filters else None
        self._lead = bytes(context.extradata or b"")  # with RTSP: parameter sets, which may not be in the stream itself
        self._lead = self._lead if ANNEX_B in self._lead[:4] else b""
        self._sent: dict[int, tuple[int, int | None, float | None]] = {}  # timestamp given to NVDEC -> number, pts, s
        self._pitches: dict[SurfaceLayout, int] = {}
        self._colour = colour_of(context.colorspace, context.color_range, context.pix_fmt, context.height)
        self.early = live
        flags = nvc.VideoPacketFlag
        self._flags = int(flags.ENDOFPICTURE.value) | int(flags.TIMESTAMP.value) if live else 0
        latency = nvc.DisplayDecodeLatencyType.ZERO if live else nvc.DisplayDecodeLatencyType.NATIVE
        try:
            self._decoder = nvc.CreateDecoder(
                gpuid=0,
                codec=getattr(nvc.cudaVideoCodec, codec),
                cudacontext=cuda.context(),
                cudastream=cuda_stream,
                usedevicememory=True,
                latency=latency,
            )
        except Exception as error:  # NVDEC sessions or memory have run out
            raise SourceError(f"NVDEC cannot create a decoder for this source: {_why(error)}.", BAD_DATA) from None

    def decode(self, packet: av.Packet) -> tuple[list["NvdecFrame"], str]:
        """The frames that a packet gives; their pixels are valid until the next call."""
        ended, number, stamp = not packet.size, int(packet.opaque), 0  # type: ignore[call-overload]
        if self._upright is None and not ended:
            self._upright = self._look(packet)
        packets = [packet] if not ended else []
        if not ended:
            stamp = number if packet.pts is None else packet.pts  # NVDEC gives it back, sorted, so it must be the pts
            pts_s = float(packet.pts * packet.time_base) if packet.pts is not None else None
            self._sent[stamp] = number, packet.pts, pts_s
            if len(self._sent) > PENDING_MAX:
                del self._sent[next(iter(self._sent))]
        if self._filter:
            packets = list(self._filter.filter(None if ended else packet))
        frames = [frame for one in packets for frame in self._decode(one, stamp)]
        return frames + (self._feed(nvc.PacketData()) if ended else []), ""

    def _look(self, packet: av.Packet) -> Upright:
        """How the pictures become upright. A container that may turn them has its first picture decoded by FFmpeg."""
        frames: list[av.VideoFrame] = []
        if self._video.container.format.name in TURNING:
            with contextlib.suppress(av.error.FFmpegError):
                frames = self._video.codec_context.decode(packet)
                frames += self._video.codec_context.decode(None)
        return upright(self._source, self._video, next(iter(frames), None), bytes)

    def _decode(self, packet: av.Packet, stamp: int) -> list["NvdecFrame"]:
        lead, self._lead = self._lead, b""
        if lead:
            packet = _with_data(packet, lead + bytes(packet))
        data = nvc.PacketData()
        data.bsl_data, data.bsl = packet.buffer_ptr, packet.buffer_size
        data.pts = data.dts = stamp
        data.key, data.decode_flag = int(packet.is_keyframe), self._flags
        return self._feed(data)

    def _feed(self, data: nvc.PacketData) -> list["NvdecFrame"]:
        try:
            decoded = self._decoder.Decode(data)
        except Exception as error:
            code = cudart.cudaStreamQuery(self._stream)
            if code[0] != cudart.cudaError_t.cudaErrorNotReady:
                check(code)  # the GPU is lost: the data was not the cause
            raise DecodeError(_why(error)) from None
        stamps = [data.pts if self.early else frame.getPTS() for frame in decoded]
        return [NvdecFrame(self, frame, *self._sent.pop(s, (0, None, None))) for frame, s in zip(decoded, stamps)]

    def surface(self, frame: "NvdecFrame") -> "NvdecFrame":
        return frame

    def pitch(self, frame: nvc.DecodedFrame, layout: SurfaceLayout) -> int:
        """Bytes from one of NVDEC's rows to the next; read once per layout, since it takes longer than a copy."""
        if layout not in self._pitches:
            (pitch, *_) = frame.cuda()[0].__cuda_array_interface__["strides"]
            in_samples = pitch < layout.width * layout.sample_bytes  # PyNvVideoCodec does so for P016
            self._pitches[layout] = pitch * (layout.sample_bytes if in_samples else 1)
        return self._pitches[layout]

    def restart(self) -> None:
        if self._filter:
            self._filter.flush()

    @property
    def upright(self) -> Upright:
        return self._upright or Upright()

    def stored(self, frame: nvc.DecodedFrame) -> SurfaceLayout:
        """The frame as NVDEC gives it, but with the pitch of the CPU backend."""
        return self._layout(frame, self._decoder.GetWidth(), self._decoder.GetHeight())

    def layout(self, frame: nvc.DecodedFrame) -> SurfaceLayout:
        """The layout of a slot for this frame, with the same pitch as the CPU backend."""
        return self._layout(frame, *self.upright.size(self._decoder.GetWidth(), self._decoder.GetHeight()))

    def _layout(self, frame: nvc.DecodedFrame, width: int, height: int) -> SurfaceLayout:
        sample_bytes = 2 if "P016" in str(frame.format) else 1
        return SurfaceLayout(width, height, pitch_of(width) * sample_bytes, *self._colour, sample_bytes)


class NvdecFrame:
    """A frame of NVDEC, which is its own surface, see playback.Surface."""

    is_corrupt = False

    def __init__(self, codec: NvdecDecoder, frame: nvc.DecodedFrame, number: int, pts: int | None, time: float | None):
        self._codec, self._frame, self.opaque, self.pts, self.time = codec, frame, number, pts, time
        self.layout, self.aspect = codec.layout(frame), float(codec.upright.aspect)

    def write(self, slot) -> None:
        """Queues the copy into a slot on the decoder's stream, which decodes the next frame after it."""
        if self._codec.upright:
            return self._turn(slot)
        layout, stream = self.layout, self._codec._stream
        row_bytes = layout.width * layout.sample_bytes
        pitch, half_rows = self._codec.pitch(self._frame, layout), (layout.height + 1) // 2
        for index, rows, offset in ((0, layout.height, 0), (1, half_rows, layout.pitch * layout.height)):
            source = self._frame.GetPtrToPlane(index)
            check(
                cudart.cudaMemcpy2DAsync(
                    slot.address + offset, layout.pitch, source, pitch, row_bytes, rows, ON_DEVICE, stream
                )
            )

    def _turn(self, slot) -> None:
        codec, stored, layout = self._codec, self._codec.stored(self._frame), self.layout
        pitch, sample = codec.pitch(self._frame, stored), layout.sample_bytes
        for index, channels in enumerate((1, 2)):
            sizes = [((s.width + index) // channels, (s.height + index) // channels) for s in (stored, layout)]
            offset = index * layout.pitch * layout.height
            grid, arguments, constants = turn_launch(
                plane(self._frame.GetPtrToPlane(index), *sizes[0], channels, pitch, sample),
                codec.upright,
                plane(slot.address + offset, *sizes[1], channels, layout.pitch, sample),
            )
            Launch(TURN_PLANE, grid, arguments, constants)(codec._stream)


def refuse_unless_supported(codec: str, pixel_format: str | None, width: int, height: int) -> None:
    """Raises SourceError for a codec, format or size that this GPU does not decode."""
    if codec not in CODECS:
        raise SourceError(f"NVDEC does not decode {codec}: use one of {', '.join(CODECS)}, or backend 'cpu'.", BAD_DATA)
    if pixel_format is not None and pixel_format not in FORMATS:
        raise SourceError(
            f"NVDEC decodes only 4:2:0, the source is {codec} in {pixel_format}: use backend 'cpu'.", BAD_DATA
        )
    bits = FORMATS.get(pixel_format or "", 8)
    found = limits(codec, bits)
    if not found.supported:
        raise SourceError(f"This GPU's NVDEC does not decode {bits}-bit {codec}: use backend 'cpu'.", BAD_DATA)
    smallest, largest = (found.width_min, found.height_min), (found.width_max, found.height_max)
    if not (smallest[0] <= width <= largest[0] and smallest[1] <= height <= largest[1]):
        raise SourceError(
            f"This GPU's NVDEC decodes {codec} from {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}, the "
            f"source is {width}x{height}: use backend 'cpu'.",
            BAD_DATA,
        )


def _with_data(packet: av.Packet, data: bytes) -> av.Packet:
    whole = av.Packet(data)
    whole.pts, whole.dts, whole.time_base, whole.is_keyframe = packet.pts, packet.dts, packet.time_base, True
    return whole


def _why(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
