"""infer_tiles: one group of a frame's tiles -> detections. Start more of these to infer groups side by side.

tensors ring, parts "tiles" --> engine --> results to fusion
"""

from functools import partial

from peoplecounter.common.inference import worker
from peoplecounter.common.inference.mapping import tiles_to_frame
from peoplecounter.common.process.runtime import serve

if __name__ == "__main__":
    serve("infer_tiles", partial(worker.run, to_frame=tiles_to_frame))
