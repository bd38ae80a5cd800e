"""infer_global: the letterboxed frame -> detections of the people too large for a tile.

tensors ring, part "global" --> engine --> results to fusion
"""

from functools import partial

from peoplecounter.common.inference import worker
from peoplecounter.common.inference.mapping import letterbox_to_frame
from peoplecounter.common.process.runtime import serve

if __name__ == "__main__":
    serve("infer_global", partial(worker.run, to_frame=letterbox_to_frame))
