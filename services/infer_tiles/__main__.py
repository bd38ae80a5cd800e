"""infer_tiles: one group of a frame's other views, the tiles of its levels -> detections.

Start more of these to infer groups side by side.

tensors ring, parts "tiles" --> engine --> results to fusion
"""

from peoplecounter.common.inference import worker
from peoplecounter.common.process.runtime import serve

if __name__ == "__main__":
    serve("infer_tiles", worker.run)
