"""NVDEC: packets from FFmpeg's demuxer -> NV12 (or P016) surfaces on the GPU, copied on the decoder's own stream.

A live source is decoded with latency ZERO: a picture comes out with its own packet. A stream with B-frames then comes
in decoding order, which is the price of not waiting for what is shown before. Files that are not played in real time
come in the order of presentation.
"""

from fractions import Fraction

import av
import PyNvVideoCodec as nvc
from av.bitstream import BitStreamFilterContext

from peoplecounter.common import cuda
from peoplecounter.common.cuda import check, cudart
from peoplecounter.common.errors import BAD_DATA, SourceError
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.services.decoder.ffmpeg import colour_of, pitch_of
from peoplecounter.services.decoder.playback import DecodeError

CODECS = {  # FFmpeg's name -> (NVDEC's name, bitstream filters that give what NVDEC's parser reads)
    "h264": ("H264", "h264_mp4toannexb"),
    "hevc": ("HEVC", "hevc_mp4toannexb"),
    "av1": ("AV1", None),
    "vp9": ("VP9", "vp9_superframe_split"),
    "mpeg4": ("MPEG4", None),
    "mpeg2video": ("MPEG2", None),
}
FORMATS = {"yuv420p": 8, "yuvj420p": 8, "nv12": 8, "yuv420p10le": 10, "p010le": 10, "yuv420p12le": 12}  # 4:2:0, bits
ANNEX_B = b"\0\0\1"
ON_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice


def capabilities(codec: str, bits: int = 8) -> dict[str, int]:
    """What the first GPU's NVDEC says of a codec in 4:2:0: supported, width_min, width_max, height_min, height_max …"""
    name, _ = CODECS[codec]
    return dict(nvc.GetDecoderCaps(0, getattr(nvc.cudaVideoCodec, name), _chroma_420(), bits))


class OnGpu:
    """Decodes one opening of a source. Raises SourceError, in words, for what this GPU's NVDEC cannot decode."""

    def __init__(self, stream: av.VideoStream, live: bool, cuda_stream: int):
        context = stream.codec_context
        refuse_unless_supported(context.name, context.pix_fmt, context.width, context.height)
        cuda.start()  # this is the reader's thread
        codec, filters = CODECS[context.name]
        self._time_base, self._stream = stream.time_base, cuda_stream
        self._filter = BitStreamFilterContext(filters, stream) if filters else None
        self._lead = bytes(context.extradata or b"")  # of RTSP: parameter sets that may not be in the stream itself
        self._lead = self._lead if ANNEX_B in self._lead[:4] else b""
        self._timed = True
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
            raise SourceError(f"NVDEC gives no decoder for this source: {_why(error)}.", BAD_DATA) from None

    def decode(self, packet: av.Packet) -> list["Frame"]:
        """The frames that a packet gives; their pixels stay until the next call."""
        ended = not packet.size
        packets = [packet] if not ended else []
        if self._filter:
            packets = list(self._filter.filter(None if ended else packet))
        frames = [frame for one in packets for frame in self._decode(one)]
        return frames + (self._feed(nvc.PacketData()) if ended else [])

    def _decode(self, packet: av.Packet) -> list["Frame"]:
        self._timed = packet.pts is not None
        lead, self._lead = self._lead, b""
        if lead:
            packet = _with_data(packet, lead + bytes(packet))
        data = nvc.PacketData()
        data.bsl_data, data.bsl = packet.buffer_ptr, packet.buffer_size
        data.pts, data.dts = packet.pts or 0, packet.dts or 0
        data.key, data.decode_flag = int(packet.is_keyframe), self._flags
        return self._feed(data)

    def _feed(self, data: nvc.PacketData) -> list["Frame"]:
        try:
            decoded = self._decoder.Decode(data)
        except Exception as error:
            code = cudart.cudaStreamQuery(self._stream)
            if code[0] != cudart.cudaError_t.cudaErrorNotReady:
                check(code)  # it was not the data, the GPU is lost
            raise DecodeError(_why(error)) from None
        return [Frame(self, frame, data.pts if self.early else frame.getPTS()) for frame in decoded]

    def surface(self, frame: "Frame") -> "Frame":
        return frame

    def pitch(self, frame: nvc.DecodedFrame, layout: SurfaceLayout) -> int:
        """Bytes from one of NVDEC's rows to the next; asked once a layout, it takes longer than a copy."""
        if layout not in self._pitches:
            (pitch, *_) = frame.cuda()[0].__cuda_array_interface__["strides"]
            in_samples = pitch < layout.width * layout.sample_bytes  # so it is told of P016
            self._pitches[layout] = pitch * (layout.sample_bytes if in_samples else 1)
        return self._pitches[layout]

    def restart(self) -> None:
        if self._filter:
            self._filter.flush()

    def layout(self, frame: nvc.DecodedFrame) -> SurfaceLayout:
        """The slot that a frame fits into, with our own pitch."""
        sample_bytes = 2 if "P016" in str(frame.format) else 1
        width, height = self._decoder.GetWidth(), self._decoder.GetHeight()
        return SurfaceLayout(width, height, pitch_of(width) * sample_bytes, *self._colour, sample_bytes)


class Frame:
    """A frame of NVDEC's, which is its own surface, see sources.Surface."""

    is_corrupt = False

    def __init__(self, codec: OnGpu, frame: nvc.DecodedFrame, pts: int):
        self._codec, self._frame = codec, frame
        self.pts = pts if codec._timed else None
        self.time = float(self.pts * Fraction(codec._time_base)) if self.pts is not None else None
        self.layout = codec.layout(frame)

    def write(self, slot) -> None:
        """Queues the copy into a slot on the decoder's stream, which decodes the next frame behind it."""
        layout, stream = self.layout, self._codec._stream
        row_bytes = layout.width * layout.sample_bytes
        pitch, half_rows = self._codec.pitch(self._frame, layout), (layout.height + 1) // 2
        for plane, rows, offset in ((0, layout.height, 0), (1, half_rows, layout.pitch * layout.height)):
            source = self._frame.GetPtrToPlane(plane)
            check(
                cudart.cudaMemcpy2DAsync(
                    slot.address + offset, layout.pitch, source, pitch, row_bytes, rows, ON_DEVICE, stream
                )
            )


def refuse_unless_supported(codec: str, pixel_format: str | None, width: int, height: int) -> None:
    """Raises SourceError, in one sentence, for a codec, format or size that this GPU does not decode."""
    if codec not in CODECS:
        raise SourceError(f"NVDEC does not decode {codec}: use one of {', '.join(CODECS)}, or backend 'cpu'.", BAD_DATA)
    if pixel_format is not None and pixel_format not in FORMATS:
        raise SourceError(
            f"The source is {codec} in {pixel_format}: on a GPU 4:2:0 is needed, or backend 'cpu'.", BAD_DATA
        )
    bits = FORMATS.get(pixel_format, 8)
    caps = capabilities(codec, bits)
    if not caps["supported"]:
        raise SourceError(f"This GPU's NVDEC does not decode {bits}-bit {codec}: use backend 'cpu'.", BAD_DATA)
    least, most = ((caps[f"width_{end}"], caps[f"height_{end}"]) for end in ("min", "max"))
    if not (least[0] <= width <= most[0] and least[1] <= height <= most[1]):
        raise SourceError(
            f"This GPU's NVDEC decodes {codec} from {least[0]}x{least[1]} to {most[0]}x{most[1]}, the source is "
            f"{width}x{height}.",
            BAD_DATA,
        )


def _with_data(packet: av.Packet, data: bytes) -> av.Packet:
    whole = av.Packet(data)
    whole.pts, whole.dts, whole.time_base, whole.is_keyframe = packet.pts, packet.dts, packet.time_base, True
    return whole


def _chroma_420():
    """NVDEC's 4:2:0, whose name begins with a digit and cannot be written as an attribute."""
    return nvc.cudaVideoChromaFormat.__members__["420"]


def _why(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
