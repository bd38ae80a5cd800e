"""A synthetic plaza full of walking people, with exact truth.

`python -m peoplecounter.deploy.demo.plaza OUT.mp4 --size 1080p` writes OUT.mp4 (H.264) and OUT.csv. Everything is drawn
by our own code with NumPy, the same for the same seed.

The rule of truth: a person is in the truth of a frame when at least 30 % of the pixels of its whole silhouette are
visible, that is inside the picture and hidden by no nearer person or thing. Its box encloses the whole silhouette,
hidden parts included, cut at the picture's edge.
"""

import argparse
import csv
from pathlib import Path

import av

from peoplecounter.deploy.demo.crowd import Plaza, TruthBox
from peoplecounter.deploy.demo.scene import CAMERAS

__all__ = ["Plaza", "TruthBox", "render_clip"]

SIZES = {"1080p": (1920, 1080), "4k": (3840, 2160)}
HEADER = [
    "frame",
    "person",
    "headValid",
    "bodyValid",
    "headL",
    "headT",
    "headR",
    "headB",
    "bodyL",
    "bodyT",
    "bodyR",
    "bodyB",
    "visible",
]
ENCODER = {
    "preset": "veryfast",
    "crf": "23",
    "bf": "0",
    "x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709",
}


def render_clip(path, truth_csv, width=1920, height=1080, frames=240, fps=30, seed=1, people=22, camera="far"):
    """Write `frames` pictures as H.264 (yuv420p, BT.709, no B-frames) to `path` and their truth to `truth_csv`.

    The CSV has one row per person and frame, frames counted from 0, boxes in pixels; a head that is not in the picture
    has headValid 0 and an empty box; `visible` is the share of the silhouette that can be seen.
    """
    plaza = Plaza(width, height, seed, people, camera)
    with av.open(str(path), "w") as container, Path(truth_csv).open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(HEADER)
        stream = container.add_stream("libx264", rate=fps, options=ENCODER | {"g": str(fps)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = 1, 1
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 1, 1
        for index in range(frames):
            picture, truth = plaza.frame(index / fps)
            for box in truth:
                head = box.head or (0, 0, 0, 0)
                edges = (f"{edge:.1f}" for edge in head + box.body)
                rows.writerow([index, box.person, int(box.head is not None), 1, *edges, f"{box.visible:.3f}"])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", src_colorspace="ITU709", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path, help="the MP4 to write; the truth goes beside it as .csv")
    parser.add_argument("--size", choices=SIZES, default="1080p")
    parser.add_argument("--camera", choices=CAMERAS, default="far")
    parser.add_argument("--people", type=int, default=22)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    width, height = SIZES[options.size]
    given = {key: getattr(options, key) for key in ("frames", "seed", "people", "camera")}
    render_clip(options.clip, options.clip.with_suffix(".csv"), width, height, **given)


if __name__ == "__main__":
    main()
