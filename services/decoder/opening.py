"""Opens a source: a file, images, a URL or a USB camera, and picks its video stream."""

import re
from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Disposition

from peoplecounter.common.errors import BAD_DATA, CONFIG, NO_INPUT, SourceError
from peoplecounter.common.settings import DecoderSettings, SourceSettings
from peoplecounter.common.sources import redacted
from peoplecounter.services.decoder.damage import LostData, listen

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
NUMBER = re.compile(r"%(?:0?\d+)?d")  # of an image sequence: frame%04d.png
DEMUXERS = {"/dev/video": "v4l2"}  # beginning of a path -> the demuxer that FFmpeg would not find by itself
PLAYLISTS = {"hls", "dash"}
HTTP_TIMEOUT_S = 10.0  # at least: a camera that sends an image every few seconds is alive
TRANSPORTS = {  # of RTSP -> FFmpeg's options
    "auto": {"rtsp_flags": "prefer_tcp"},
    "tcp": {"rtsp_transport": "tcp"},
    "udp": {"rtsp_transport": "udp"},
    "http": {"rtsp_transport": "http"},
}
SEQUENCE = {"reorder_queue_size": "500", "max_delay": "200000"}  # packets, us; over TCP too: cameras leave some out


class Unreachable(SourceError):
    """A server that cannot be reached now, but may be later."""


@dataclass(frozen=True)
class Opening:
    """One opening of a source."""

    container: av.container.InputContainer
    stream: av.VideoStream
    network: bool  # a stream that cannot be paused and is opened again when it breaks
    lost: LostData  # what was lost of the packets that were read to open it


def parts_of(url: str) -> list[str]:
    """The files or URLs that a source consists of: images of a folder or of a sequence in order, else just itself.

    Raises SourceError for a folder or a sequence without images.
    """
    path = Path(url)
    if path.is_dir():
        images = sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGES), key=_natural)
    elif "://" not in url and NUMBER.search(path.name) and not path.exists():
        before, after = (re.escape(text) for text in NUMBER.split(path.name, maxsplit=1))
        name = re.compile(f"{before}[0-9]+{after}")
        folder = path.parent.iterdir() if path.parent.is_dir() else []
        images = sorted((p for p in folder if name.fullmatch(p.name)), key=_natural)
    else:
        return [url]
    if not images:
        raise SourceError(f"The source {url} has no images: it takes {', '.join(sorted(IMAGES))}.", NO_INPUT)
    return [str(image) for image in images]


def open_source(url: str, source: SourceSettings, settings: DecoderSettings) -> Opening:
    """Opens one part of a source. Raises SourceError, which contains no secret of the URL."""
    container, said = listen(lambda: _open(url, source, settings))
    try:
        stream, network = _video(container, source), source.network or _is_http_stream(url, container)
        return Opening(container, stream, network, LostData(stream.index, said))
    except SourceError:
        container.close()
        raise


def can_be_resumed(url: str) -> bool:
    """False for a pipe and the like: what was read of it is gone."""
    path = Path(url)
    return "://" in url or not path.exists() or path.is_file() or path.is_dir()


def why(error: Exception) -> str:
    """An error of FFmpeg in words, in lower case."""
    if isinstance(error, av.error.ExitError):  # how FFmpeg reports our timeout
        return "no data within the timeout"
    text = getattr(error, "strerror", None) or str(error)
    return text[0].lower() + text[1:]


def _open(url: str, source: SourceSettings, settings: DecoderSettings) -> av.container.InputContainer:
    scheme, http = url.partition("://")[0] if "://" in url else "", _is_http(url)
    transport, options = source.transport, {}
    if scheme == "rtspt":  # RTSP by TCP, in the words of other players
        url, transport = "rtsp" + url.removeprefix(scheme), "tcp"
    if http:
        options = {"fpsprobesize": "0"}  # one image is enough to know what a camera sends
    elif scheme.startswith("rtsp"):
        options = {**TRANSPORTS[transport], **SEQUENCE}
    least_s = HTTP_TIMEOUT_S if http else 0
    timeouts = (max(settings.open_timeout_s, least_s), max(settings.read_timeout_s, least_s))
    timeout = timeouts if scheme not in ("", "file") else None
    demuxer = next((name for path, name in DEMUXERS.items() if url.startswith(path)), None)
    try:
        return av.open(url, format=demuxer, options=options, timeout=timeout)
    except (av.error.FFmpegError, OSError) as error:
        code = BAD_DATA if isinstance(error, av.error.InvalidDataError) else NO_INPUT
        refused = isinstance(error, (av.error.InvalidDataError, av.error.HTTPClientError))
        kind = Unreachable if http and not refused else SourceError
        raise kind(f"The source {redacted(url)} cannot be opened: {why(error)}.", code) from None


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _is_http_stream(url: str, container: av.container.InputContainer) -> bool:
    """True for what a camera sends by HTTP: it has no length, as a file has."""
    if not _is_http(url) or container.duration is not None:
        return False
    return (container.size or 0) <= 0 or container.format.name in PLAYLISTS


def _video(container: av.container.InputContainer, source: SourceSettings) -> av.VideoStream:
    """The stream that the source names; else the default, among several the largest. Cover art is not a video."""
    videos = [] if container.format.name == "tty" else container.streams.video  # FFmpeg accepts any text as ANSI art
    streams = {stream.index: stream for stream in videos if not stream.disposition & Disposition.attached_pic}
    url = redacted(source.url)
    if not streams:
        raise SourceError(f"The source {url} has no video stream.", BAD_DATA)
    if source.stream < 0:
        candidates = list(streams.values())
    elif source.stream in streams:
        candidates = [streams[source.stream]]
    else:
        raise SourceError(
            f"The source {url} has no video stream {source.stream}: its video streams are "
            f"{', '.join(f'{index} ({stream.width}x{stream.height})' for index, stream in streams.items())}.",
            CONFIG,
        )
    decodable = [stream for stream in candidates if stream.codec_context is not None]
    if not decodable:
        raise SourceError(f"The source {url} uses a codec that this FFmpeg cannot decode.", BAD_DATA)
    return max(decodable, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts frame2 before frame10."""
    return [(0, int(text)) if text.isdecimal() else (1, text) for text in re.split(r"(\d+)", path.name)]
