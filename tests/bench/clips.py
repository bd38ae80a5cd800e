"""The 4K clip in other codecs, for `tests.bench.gpu codecs`: `python -m tests.bench.clips CLIP FOLDER`.

AV1, HEVC of 10 bits, and HEVC of 7680x4320, where every pixel is doubled; without B-frames, as cameras encode.
"""

import argparse
from pathlib import Path

import av
from av.video.frame import PictureType

MADE = {  # name -> encoder, pixel format, by how much larger, its options
    "av1": ("libsvtav1", "yuv420p", 1, {"preset": "10", "crf": "40", "svtav1-params": "pred-struct=1"}),
    "hevc10": ("libx265", "yuv420p10le", 1, {"preset": "ultrafast", "crf": "30", "x265-params": "bframes=0"}),
    "8k_hevc": ("libx265", "yuv420p", 2, {"preset": "ultrafast", "crf": "32", "x265-params": "bframes=0"}),
}


def encode(clip: Path, path: Path, codec: str, pixel_format: str, larger: int, options: dict, frames: int) -> None:
    """Writes up to `frames` frames of the clip."""
    with av.open(clip) as source, av.open(path, "w") as made:
        video = source.streams.video[0]
        out = made.add_stream(codec, rate=video.average_rate, options=options)
        out.width, out.height, out.pix_fmt = video.width * larger, video.height * larger, pixel_format
        for number, frame in enumerate(source.decode(video)):
            if number >= frames:
                break
            shown = frame.reformat(out.width, out.height, pixel_format)
            shown.pict_type = PictureType.NONE  # the encoder decides
            shown.pts, shown.time_base = frame.pts, frame.time_base
            made.mux(out.encode(shown))
        made.mux(out.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=96)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (codec, pixel_format, larger, options) in MADE.items():
        path = args.folder / f"{args.clip.stem.rpartition('_')[0]}_{name}.mp4"
        encode(args.clip, path, codec, pixel_format, larger, options, args.frames // larger**2)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
