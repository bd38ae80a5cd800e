"""Supervision's InferenceSlicer beside us: `python -m tests.bench.slicer CLIP MODEL`, in a Python that has supervision.

The same model in ONNX Runtime, slices of 640 px that overlap by 128 px, two threads. It has no whole frame and no
other level, so it infers 8 images of a 1080p frame where `run` infers 11. Prints milliseconds a frame.
"""

import json
import sys
import time

import av
import numpy as np
import onnxruntime
import supervision

SIZE, OVERLAP, THREADS, FRAMES, SCORE = 640, 128, 2, 48, 0.25


def main(clip: str, model: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def persons(image: np.ndarray) -> supervision.Detections:
        padded = np.full((SIZE, SIZE, 3), 114, np.uint8)
        padded[: image.shape[0], : image.shape[1]] = image
        (rows,) = session.run(None, {"images": (padded.transpose(2, 0, 1)[None] / 255).astype(np.float32)})
        found = rows[0][(rows[0, :, 4] > SCORE) & (rows[0, :, 5] == 0)]
        return supervision.Detections(found[:, :4], confidence=found[:, 4], class_id=found[:, 5].astype(int))

    slicer = supervision.InferenceSlicer(
        persons, slice_wh=(SIZE, SIZE), overlap_wh=(OVERLAP, OVERLAP), thread_workers=THREADS
    )
    times_ms, people = [], []
    with av.open(clip) as container:
        for number, frame in enumerate(container.decode(video=0)):
            began_s = time.perf_counter()
            people.append(len(slicer(frame.to_ndarray(format="rgb24"))))
            times_ms.append(1000 * (time.perf_counter() - began_s))
            if number == FRAMES:
                break
    print(json.dumps({"ms_per_frame": round(float(np.median(times_ms[4:])), 1), "people": float(np.mean(people))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
