"""What the benchmarks share."""

import numpy as np


def spread(values: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}
