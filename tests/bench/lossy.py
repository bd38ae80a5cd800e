"""A camera behind a link that loses, repeats and swaps packets: `python -m tests.bench.lossy CLIP TRUTH.csv MODEL`.

The clip is played by a real RTSP server, for minutes over TCP and over UDP. Every complete count is compared with that
of the same frame in a clean run, and the clean run with the truth. Exit code 1: a complete count is further from the
clean one than the clean run ever is from the truth, or the books do not balance.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import av
import numpy as np

from peoplecounter.deploy.report.evaluate import read_truth
from tests.bench.cpu import machine
from tests.support.group import SERVICES, Group
from tests.support.lossy import LossyProxy
from tests.support.rtsp import RtspCamera

FPS = 25
SIZE = (640, 360)  # few enough images that two cores keep up
RATE = 0.002  # of each fault, of the packets


def camera_clip(source: Path, target: Path) -> int:
    """Encodes a clip as cameras do: no B-frames, a keyframe a second. Returns the number of its frames."""
    frames = 0
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"bf": "0", "g": str(FPS), "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in container.decode(video=0):
            small = frame.reformat(*SIZE, "yuv420p")
            small.pts, small.time_base, frames = frames, Fraction(1, FPS), frames + 1
            out.mux(stream.encode(small))
        out.mux(stream.encode())
    return frames


def run(folder: Path, model: Path, url: str, seconds: float, transport: str = "auto") -> tuple[list[dict], dict, int]:
    """(complete counts, totals, how often the source was opened) of a group; without seconds, of a file to its end."""
    group = Group(folder, model, {"cam": {"url": url, "transport": transport}}, engine__threads="0")
    try:
        group.start(*SERVICES)
        end_s = time.monotonic() + (seconds or 600)
        while time.monotonic() < end_s and not (seconds == 0 and group.ended()):
            time.sleep(0.5)
        group.check_books(unheard=64 if seconds else 0)
        counts = [c for c in group.of("counts", "cam") if c["complete"]]
        opened = [key for key, _ in groupby(c["state"] for c in group.of("status", "cam"))].count("online")
        return counts, group.totals(), opened
    finally:
        group.close()


def differences(counts: list[dict], clean: np.ndarray) -> tuple[list[int], int]:
    """(differences to the clean run's counts, jumps of the clock): where the clip began is what fits best."""
    frames = [round(c["pts_s"] * FPS) for c in counts if c["pts_s"] is not None]
    people = np.array([c["count"] for c in counts if c["pts_s"] is not None])
    found, first, jumps = [], 0, 0
    for at in range(1, len(frames) + 1):
        if at == len(frames) or not 0 < frames[at] - frames[at - 1] < 10 * FPS:
            part = np.array(frames[first:at])
            fits = [people[first:at] - clean[(part + start) % len(clean)] for start in range(len(clean))]
            found += min(fits, key=lambda fit: np.abs(fit).mean()).tolist()
            first, jumps = at, jumps + 1
    return found, jumps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=int, default=300, help="over each transport")
    parser.add_argument("--out", type=Path, default=Path(".bench") / "lossy.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    clip = folder / "camera.mp4"
    frames = camera_clip(args.clip, clip)
    counts, _, _ = run(folder / "clean", args.model, str(clip), 0)
    clean = np.array([c["count"] for c in counts])
    assert len(clean) == frames, f"the clean run counted {len(clean)} of {frames} frames"
    truth = read_truth(args.truth)
    errors = np.abs(clean - np.array([truth.get(i, 0) for i in range(frames)]))
    result = {**machine(), "command": " ".join(["python -m tests.bench.lossy", *sys.argv[1:]]), "frames": frames}
    result["clean"] = {"mae": round(float(errors.mean()), 3), "largest": int(errors.max())}
    for transport in ("tcp", "udp"):
        camera = RtspCamera(clip, transport=transport).start()
        proxy = LossyProxy(camera.port, RATE)
        url = camera.url.replace(str(camera.port), str(proxy.port))
        counts, totals, opened = run(folder / transport, args.model, url, args.seconds, transport)
        proxy.close()
        camera.kill()
        off, jumps = differences(counts, clean)
        result[transport] = {
            "packets": dict(proxy.faults), "opened": opened, "pieces": jumps, "totals": totals,
            "complete": len(off), "same": sum(d == 0 for d in off), "off_by": dict(Counter(map(abs, off))),
        }  # fmt: skip
        print(transport, json.dumps(result[transport]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    worst = max(int(by) for transport in ("tcp", "udp") for by in result[transport]["off_by"])
    print(f"clean {result['clean']}, furthest from it {worst}")
    sys.exit(worst > result["clean"]["largest"])


if __name__ == "__main__":
    main()
