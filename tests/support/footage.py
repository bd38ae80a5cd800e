"""Real footage at other sizes, with its truth."""

import csv
from pathlib import Path

import av

EDGES = ("bodyL", "bodyT", "bodyR", "bodyB")
ENCODER = {"preset": "veryfast", "crf": "8", "bf": "0"}


def resized(clip: Path, truth: Path, folder: Path, scale: float = 1, every: int = 1, frames: int = 0) -> tuple:
    """(clip, truth CSV) of every n-th of the first `frames` frames (0: of all), scaled, with the boxes scaled alike."""
    target = folder / f"{clip.stem}_{scale:g}.mp4"
    kept = []
    with av.open(str(clip)) as source, av.open(str(target), "w") as container:
        stream = None
        for number, frame in enumerate(source.decode(video=0)):
            if frames and number >= frames:
                break
            if number % every:
                continue
            width, height = (round(side * scale / 2) * 2 for side in (frame.width, frame.height))
            if stream is None:
                stream = container.add_stream("libx264", rate=25, options=ENCODER)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            picture.pts = len(kept)
            container.mux(stream.encode(picture))
            kept.append(number)
        container.mux(stream.encode())
    table = target.with_suffix(".csv")
    with truth.open(newline="") as rows, table.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["frame", *EDGES])
        for row in csv.DictReader(rows):
            frame = int(float(row["frame"]))
            if frame in kept:
                writer.writerow([kept.index(frame), *(round(float(row[edge]) * scale, 2) for edge in EDGES)])
    return target, table
