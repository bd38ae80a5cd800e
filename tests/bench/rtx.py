"""Sizes of TensorRT-RTX plans, without a GPU: `python -m tests.bench.rtx FOOTAGE MODEL …`.

Each model in FP32 and in what `engine precision --device gpu` makes of it, calibrated on the footage, for sm120: the
RTX 5060 Ti of the original pipeline. Whether and how fast the plans run, only such a card tells.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from peoplecounter.deploy.engine.build import BuildOptions, BuildProgress, build_memory
from peoplecounter.deploy.engine.precision import convert
from tests.bench.cpu import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("footage", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--python", type=Path, help="with ModelOpt; else it is installed on first use")
    parser.add_argument("--target", default="sm120")
    parser.add_argument("--out", type=Path, default=Path(".bench") / "rtx.json")
    args = parser.parse_args()
    rows = []
    for model in args.models:
        for precision in ("fp32", "fp16", "int8", "fp8"):
            with tempfile.TemporaryDirectory() as folder:
                onnx, people = model, None
                if precision != "fp32":
                    onnx = Path(folder) / "low.onnx"
                    people = convert(model, onnx, precision, args.footage, "gpu", args.python)
                options = BuildOptions(runtime="rtx", targets=(args.target,))
                plan, sidecar, _ = build_memory(onnx, options, BuildProgress())
                row = {
                    "model": model.name, "precision": precision, "onnx_mb": round(onnx.stat().st_size / 1e6, 2),
                    "plan_mb": round(len(plan) / 1e6, 2), "build_s": sidecar.build_s, "computed": sidecar.computed,
                    "people_before_after": people and [round(n, 2) for n in people],
                }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    result = {**machine(), "command": "python -m tests.bench.rtx " + " ".join(sys.argv[1:])}
    result |= {"builder": sidecar.builder, "target": args.target, "batches": sidecar.batches, "plans": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
