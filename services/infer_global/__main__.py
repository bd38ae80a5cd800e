"""infer_global: the view of the whole frame -> detections, of people too large for any tile.

tensors ring, part "global" --> engine --> results to fusion
"""

from peoplecounter.common.inference import worker
from peoplecounter.common.process.runtime import serve

if __name__ == "__main__":
    serve("infer_global", worker.run)
