"""Benchmarks on a GPU host: `python -m tests.bench.gpu SECTION …` prints tables and writes one JSON.

    kernel    the fused kernel beside a device copy of the same bytes and the old chain of torch operations
    floor     decode alone, kernel alone, engine alone, with the views of each set: what no pipeline can beat
    paced     the group at 30 frames/s from a looped 4K file: every stage and hop, with and without MPS, 1 and 2 workers
    views     the same with all levels, with those of people of 100 px and more, and with the finest alone, in turns
    codecs    the same as paced, best variant, for each clip in FOOTAGE: H.264, HEVC, and those of tests/bench/clips.py
    flat      the group as fast as it can, one source, lossless
    decoders  NVDEC alone: as many processes as there are numbers, each decoding as fast as it can
    sources   how many 4K sources at 30 frames/s at once, none dropped
    gains     each optimization off and on, in turns: the group at 30 frames/s, handing frames over, kernel, engine

PLAN and FOOTAGE name the plan and the clip, see tests/gpu/conftest.py. Medians of one run on one machine.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from peoplecounter.common import backend
from peoplecounter.common.engine.placing import each_alone
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory import memory_kind
from peoplecounter.common.ipc.messages import Input, SurfaceLayout, TensorLayout
from peoplecounter.common.settings import DecoderSettings, EngineSettings, Settings, SourceSettings
from peoplecounter.common.views import groups, table
from tests.bench import TRACED, TRACING, distribution, gain, spread

PLAN = Path(os.environ.get("PLAN", "/tmp/gpu/plans/yolo26n_coco.trt86vc.sm90.fp16.plan"))
CLIP = Path(os.environ.get("FOOTAGE", ".gpu/footage")).absolute() / "towncentre_4k_mosaic_h264.mp4"
LAYOUT = SurfaceLayout(3840, 2160, 3840, "bt709", False)
ALL, FINEST = table(3840, 2160, (640, 640)), table(3840, 2160, (640, 640), levels=(1.0,))  # 43 and 33 views
LARGEST = 32  # batch of the plan
VIEWS = {  # settings of a group
    "43 views": {},
    "33 views, the finest level alone": {"views__levels": "[1.0]"},
    "11 views, people of 100 px and more": {"views__smallest_person_px": "100"},
}
WARM_UP_FRAMES = 60


def gpu_ms(work: Callable[[int], None], rounds: int = 60, inner: int = 20) -> dict[str, float]:
    """Milliseconds on the GPU of one call of `work(i)`, between events around `inner` of them."""
    import torch

    for i in range(inner):
        work(i)
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for i in range(inner):
            work(i)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / inner)
    return spread(times)


def kernel(sweep: bool = False) -> dict:
    """Several surfaces and tensors in turn, so that no cache holds them; the copy moves as many bytes as the kernel."""
    import torch

    from peoplecounter.services.preprocess import kernels_torch
    from tests.support.kernels import images_call

    random = np.random.default_rng(0)
    surfaces = [torch.from_numpy(random.integers(0, 256, LAYOUT.nbytes, np.uint8)).cuda() for _ in range(4)]
    result: dict = {}
    for dtype in ("float16", "float32"):
        read = Input(640, 640, dtype)
        outs = [torch.zeros((len(ALL), 3, 640, 640), dtype=getattr(torch, dtype), device="cuda") for _ in range(4)]
        moved = LAYOUT.nbytes + outs[0].nbytes
        halves = [torch.zeros(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(8)]

        def calls(views, read=read, outs=outs) -> Callable[[int], None]:
            each = [images_call(surfaces[i], LAYOUT, read, views, outs[i]) for i in range(4)]
            return lambda i: each[i % 4]()

        def copy(i: int, halves=halves) -> None:
            halves[2 * (i % 4)].copy_(halves[2 * (i % 4) + 1])

        if sweep:
            result[f"{dtype} sweep"] = _sweep(lambda calls=calls: calls(ALL))
        graph_fused, graph_copy, graph_finest = _graph(calls(ALL)), _graph(copy), _graph(calls(FINEST))
        row = {
            "views": len(ALL),
            "megabytes": round(moved / 1e6, 1),
            "fused_ms": gpu_ms(partial(_replay, graph_fused), inner=5),
            "copy_ms": gpu_ms(partial(_replay, graph_copy), inner=5),
            "finest_level_ms": gpu_ms(partial(_replay, graph_finest), inner=5),
            "torch_path_ms": gpu_ms(
                lambda i, read=read, outs=outs: kernels_torch.launch(surfaces[i % 4], LAYOUT, read, ALL, outs[i % 4]),
                10, 4,
            ),
            "grid_sample_chain_ms": gpu_ms(lambda i, outs=outs: grid_sample_chain(surfaces[i % 4], outs[i % 4]), 10, 4),
        }  # fmt: skip
        for key in ("fused_ms", "copy_ms", "finest_level_ms"):
            row[key] = {p: round(ms / GRAPHED, 4) for p, ms in row[key].items()}
        row["times_a_copy"] = round(row["fused_ms"]["p50"] / row["copy_ms"]["p50"], 2)
        row["chain_over_fused"] = round(row["grid_sample_chain_ms"]["p50"] / row["finest_level_ms"]["p50"], 1)
        result[dtype] = row
    return result | {"turned": _turned(surfaces)}


def _turned(surfaces: list) -> dict:
    """What the decoder does to pictures that are stored sideways, or with pixels twice as wide as high."""
    import torch

    from peoplecounter.services.decoder.turn import TURN_PLANE, Plane, turn_launch
    from peoplecounter.services.decoder.upright import Upright
    from tests.support.kernels import run

    rows, size = {}, (LAYOUT.width, LAYOUT.height)
    for name, upright in (("a quarter turn", Upright(1)), ("pixels of 2:1", Upright(aspect=Fraction(2)))):
        width, height = upright.size(*size)
        outs = [torch.zeros(width * height * 3 // 2, dtype=torch.uint8, device="cuda") for _ in range(4)]
        moved = LAYOUT.nbytes + outs[0].numel()
        halves = [torch.zeros(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(8)]

        def turned(i: int, upright=upright, outs=outs, width=width, height=height) -> None:
            for part, channels in enumerate((1, 2)):
                planes = []
                for pixels, (w, h) in ((surfaces[i % 4], size), (outs[i % 4], (width, height))):
                    from_ = w * h * part
                    planes.append(Plane(pixels[from_:], w // channels, h // channels, channels, w))
                run(TURN_PLANE, *turn_launch(planes[0], upright, planes[1]))

        def copy(i: int, halves=halves) -> None:
            halves[2 * (i % 4)].copy_(halves[2 * (i % 4) + 1])

        row = {"megabytes": round(moved / 1e6, 1)}
        for key, work in (("turn_ms", turned), ("copy_ms", copy)):
            times = gpu_ms(partial(_replay, _graph(work)), inner=5)
            row[key] = {p: round(ms / GRAPHED, 4) for p, ms in times.items()}
        rows[name] = {**row, "times_a_copy": round(row["turn_ms"]["p50"] / row["copy_ms"]["p50"], 2)}
    return rows


SHAPES = [(2, 128, 64, 1), (2, 128, 128, 2), (4, 128, 64, 2), (4, 128, 128, 2), (4, 128, 256, 2), (8, 128, 256, 4),
          (8, 128, 128, 4), (8, 64, 128, 2), (2, 256, 128, 2), (4, 64, 64, 1)]  # fmt: skip
GRAPHED = 20  # launches in a graph, so that what Python costs stays out of the figure


def _graph(work: Callable[[int], None]):
    """(a graph of GRAPHED launches, the work itself, whose memory must live as long)."""
    import torch

    work(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(GRAPHED):
            work(i)
    return graph, work


def _replay(graph, _: int) -> None:
    graph[0].replay()


def _sweep(calls) -> dict[str, float]:
    """Other block shapes and warps, to tune the kernel for another GPU."""
    from peoplecounter.services.preprocess import launches as module

    kept, found = (module.PAIRS, module.BLOCK_X, module.TAP_BLOCK, module.WARPS), {}
    for shape in SHAPES:
        module.PAIRS, module.BLOCK_X, module.TAP_BLOCK, module.WARPS = shape
        graph = _graph(calls())
        found["x".join(map(str, shape))] = round(gpu_ms(partial(_replay, graph), 20, 5)["p50"] / GRAPHED, 4)
    module.PAIRS, module.BLOCK_X, module.TAP_BLOCK, module.WARPS = kept
    return dict(sorted(found.items(), key=lambda item: item[1]))


def grid_sample_chain(surface, out) -> None:
    """The old approach: convert the frame, then sample the whole and 32 tiles, an operation at a time."""
    import torch
    from torch.nn.functional import grid_sample, interpolate

    rows = surface.view(-1, LAYOUT.pitch)
    luma, chroma = rows[:2160].float(), rows[2160:].view(1080, 1920, 2).float()
    full = interpolate(chroma.permute(2, 0, 1)[None], scale_factor=2, mode="nearest")[0]
    y, u, v = (luma - 16) / 219, (full[0] - 128) / 224, (full[1] - 128) / 224
    rgb = torch.stack([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u]).clamp(0, 1)[None]
    out[0] = 114 / 255
    out[0, :, 140:500] = interpolate(rgb, (360, 640), mode="bilinear")[0]
    step = torch.arange(640, device="cuda", dtype=torch.float32) + 0.5
    for tile, view in enumerate(FINEST[1:], 1):
        xs, ys = (step + view.x) * 2 / 3840 - 1, (step + view.y) * 2 / 2160 - 1
        where = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=2)[None]
        out[tile] = grid_sample(rgb, where, mode="bilinear", align_corners=False)[0]


INNER = 5  # of each step between two events: what the host does in between is then hidden, as it is in the group


def floor(frames: int = 300) -> dict:
    """Each stage alone in this process: decoding each clip live, then for each set of views the kernel and the engine,
    all parts of a frame at once, as two infer_tiles get them. `sum_h264_ms` is with H.264, `sum_hevc_ms` with HEVC, as
    fast as NVDEC goes; at a camera's pace it takes longer, `decode_paced_ms`."""
    import torch

    from peoplecounter.common.cuda import check, cudart
    from peoplecounter.common.engine.tensorrt import TensorRTEngine
    from peoplecounter.common.ipc.memory import Block
    from peoplecounter.services.preprocess import kernels

    work = memory_kind("cuda").work_queue(Loop())
    slot = Block(int(check(cudart.cudaMalloc(LAYOUT.nbytes))), LAYOUT.nbytes)
    found = {clip.stem.rpartition("_")[2]: clip for clip in clips() if "8k" not in clip.stem}
    decode = {codec: _decoded(clip, work, slot, frames) for codec, clip in found.items()}
    paced = {codec: _decoded(clip, work, slot, frames // 2, sleeps=True) for codec, clip in found.items()}
    engine = TensorRTEngine(EngineSettings(model=str(PLAN)), work)
    engine.warm_up()
    run, stream = kernels.load_kernel(work).run, torch.cuda.ExternalStream(work.stream)
    result: dict = {"decode_live_ms": decode, "decode_paced_ms": paced}
    for name, views in (("43", ALL), ("33", FINEST), ("11", table(3840, 2160, (640, 640), smallest_person_px=100))):
        tensor = TensorLayout(len(views), engine.input)
        out = Block(int(check(cudart.cudaMalloc(tensor.nbytes))), tensor.nbytes)
        times = []
        for _ in range(60):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            check(cudart.cudaMemsetAsync(out.address, 0, out.nbytes, work.stream))  # so that the host is ahead
            begin.record(stream)
            for _ in range(INNER):
                run(slot, LAYOUT, tensor, views, out)
            end.record(stream)
            work.finish()
            times.append(begin.elapsed_time(end) / INNER)
        kernel_ms = spread(times[20:])
        parts = [(0, 1), *((1 + first, count) for first, count in groups(len(views) - 1, LARGEST, 2))]
        images_ms = spread(at_once(out, tensor, parts))
        work_ms = kernel_ms["p50"] + images_ms["p50"]
        result[f"{name} views"] = {
            "kernel_ms": kernel_ms, "images_ms": images_ms,
            **{f"sum_{codec}_ms": round(ms["p50"] + work_ms, 3) for codec, ms in decode.items()},
        }  # fmt: skip
        check(cudart.cudaFree(out.address))
    return result


def clips() -> list[Path]:
    """Those that this GPU decodes."""
    import av

    from peoplecounter.common.errors import SourceError
    from peoplecounter.services.decoder.nvdec import refuse_unless_supported

    found = []
    for path in sorted(CLIP.parent.glob("towncentre_4k_mosaic_*.mp4")):
        with av.open(path) as container:
            context = container.streams.video[0].codec_context
            try:
                refuse_unless_supported(context.codec.canonical_name, context.pix_fmt, context.width, context.height)
            except SourceError as error:
                print(f"{path.name}: {error}", flush=True)
                continue
        found.append(path)
    return found


def _decoded(clip: Path, work, slot, frames: int, sleeps: bool = False) -> dict[str, float]:
    """Milliseconds of decoding a frame of a live source; with `sleeps` at its pace, 30 frames/s."""
    from peoplecounter.services.decoder.nvdec import NvdecDecoder
    from peoplecounter.services.decoder.playback import START, Picture, play

    def wait(seconds: float) -> bool:
        time.sleep(seconds if sleeps else 0)
        return False

    source, times = SourceSettings(url=str(clip), loop=True, realtime=True, fps=30), []
    events = play(source, DecoderSettings(), START, wait, partial(NvdecDecoder, cuda_stream=work.stream))
    for event in events:
        if isinstance(event, Picture):
            if event.surface.layout.nbytes <= slot.nbytes:
                event.surface.write(slot)
            times.append((event.decoded_ns - event.decode_ns) / 1e6)
            if len(times) >= frames:
                break
    work.finish()
    events.close()
    return spread(times[20:])


def at_once(out, tensor: TensorLayout, parts: list[tuple[int, int]], rounds: int = 100) -> list[float]:
    """Milliseconds of all parts of a frame, each on a stream: the best this GPU does with this plan."""
    import torch

    from peoplecounter.common.engine.tensorrt import TensorRTEngine

    works = [memory_kind("cuda").work_queue(Loop()) for _ in parts]
    engines = [TensorRTEngine(EngineSettings(model=str(PLAN)), work) for work in works]
    streams = [torch.cuda.ExternalStream(work.stream) for work in works]
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(8_000_000)  # about four milliseconds: the host is ahead when it ends
        begin.record()
        for engine, stream, (first, count) in zip(engines, streams, parts):
            stream.wait_event(begin)
            engine.start(out, tensor, each_alone(engine.input.size, count, first))
        for stream in streams:
            done = torch.cuda.Event()
            done.record(stream)
            torch.cuda.current_stream().wait_event(done)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times[20:]


@contextmanager
def group(sources: dict[str, dict], mps: bool = True, infer_tiles: int = 1, without: str = "", **settings: str):
    """A running group of our own services, under a private MPS daemon or none; `without` an optimization."""
    from peoplecounter.deploy.group import mps as mps_module
    from tests.support.group import Group

    folder = Path(tempfile.mkdtemp(prefix="pc-gpu-", dir="/dev/shm"))
    mode = "auto" if mps else "off"
    wanted = Settings(run_dir=folder, backend="cuda", mps=mode, engine={"model": str(PLAN)})
    with mps_module.daemon(wanted) as found:
        settings |= {"workers__infer_tiles": str(infer_tiles)}
        g = Group(folder, PLAN, sources, backend="cuda", log_level="warning", **settings)
        g.environment |= found
        tiles = [f"infer_tiles.{i}" for i in range(infer_tiles)]
        g.start("fusion.0")
        g.start("infer_global.0", *tiles, without=without if without == "graphs" else "")
        g.start("preprocess.0", without=without if without == "kernel" else "")
        wait_ready(g, ["infer_global.0", *tiles])
        g.start(*(f"decoder.{name}" for name in sources))
        try:
            yield g
        finally:
            g.close()
            g.mps = bool(found)
    shutil.rmtree(folder, ignore_errors=True)


def wait_ready(g, names: list[str]) -> None:
    """Engines are loaded when their processes have reported to fusion."""
    g.wait_for(lambda: all(g.counters(name) or _spoke(g, name) for name in names), "the engines", 120)


def _spoke(g, name: str) -> bool:
    return any(kind == "service" and n == name for kind, n, _ in g.messages)


def stages(counts: list[dict]) -> dict:
    """p50 and p99 of every stage and hop of these counts, and end to end."""
    rows: dict[str, list[float]] = {}
    for c in counts:
        for key, ms in {**c["stages_ms"], **c["hops_ms"], "end_to_end": c["end_to_end_ms"]}.items():
            rows.setdefault(key, []).append(ms)
    return {key: spread(values) for key, values in rows.items()}


SHAPES = {
    "lines": {f"x{x}": {"points": [[x / 4, 0], [x / 4, 1]], "inside": [1, 0.5]} for x in (1, 2, 3)},
    "zones": {"middle": {"points": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]}},
}


def paced(seconds: int, mps: bool, infer_tiles: int, without: str = "", clip: Path = CLIP, **settings: str) -> dict:
    """One camera of 30 frames/s, with three lines and a zone."""
    camera = {"url": str(clip), "loop": True, "realtime": True, "fps": 30, **SHAPES}
    with group({"cam": camera}, mps, infer_tiles, without, **settings) as g:
        g.wait_counts(WARM_UP_FRAMES, 120)
        first, before = len(g.of("counts")), g.totals("cam")
        time.sleep(seconds)
        counts, after, crossings = g.of("counts")[first:], g.totals("cam"), len(g.of("crossings"))
        begin, end = counts[0], counts[-1]
    dropped = Counter(after["dropped"]) - Counter(before["dropped"])
    ms = stages(counts)
    return {
        "mps": mps, "infer_tiles": infer_tiles, "seconds": seconds, "frames": len(counts),
        "dropped": dict(dropped), "incomplete": sum(not c["complete"] for c in counts),
        "frames_per_s": round((len(counts) - 1) / _seconds(begin, end), 2), "ms": ms,
        "people": round(float(np.mean([c["count"] for c in counts])), 2), "crossings": crossings,
        "end_to_end_ms": [c["end_to_end_ms"] for c in counts],
    }  # fmt: skip


def coded(seconds: int, clip: Path, mps: bool, infer_tiles: int) -> dict:
    """One camera with the clip of another codec."""
    return {"codec": clip.stem.rpartition("mosaic_")[2], **paced(seconds, mps, infer_tiles, clip=clip)}


def viewed(seconds: int, name: str, mps: bool, infer_tiles: int) -> dict:
    """One camera with these views; also how many people it counts, to compare with a CPU."""
    row = paced(seconds, mps, infer_tiles, **VIEWS[name])
    return {"views": name, **row}


BEST = {"mps": True, "infer_tiles": 2}
DEAD = {"telemetry__exporter": "otlp", "telemetry__ratio": "1", "telemetry__endpoint": "http://127.0.0.1:9/v1/traces"}
VARIANTS = {  # what is measured in turns with BEST
    "CUDA graphs": {"without": "graphs"},
    "Fused kernel": {"without": "kernel"},
    "MPS": {"mps": False},
    "Two infer_tiles": {"infer_tiles": 1},
    TRACING: TRACED,
    "Tracing of all frames, collector dead": DEAD,
}
COSTS = [name for name, options in VARIANTS.items() if any("telemetry" in key for key in options)]  # on is slower
PATH = "one 4K camera of 30 frames/s, packet to count, p50"


def gains(seconds: int, turns: int, variants: list[str], save: Callable[[dict], None]) -> dict:
    """What is measured within a process; then the variants of the group in turns with the best one, saved meanwhile."""
    within = [*handover(), *kernel_gains(), *engine_gains()]
    for row in within:
        print(f"    {row['optimization']}, {row['what']}: {row['before']} {row['after']} {row['unit']}", flush=True)
    times: dict[str, list[list[float]]] = {name: [] for name in ("best", *variants)}
    stages_of, dropped = {}, Counter()
    for turn in range(turns):
        names = ["best", *variants]
        for name in names if turn % 2 == 0 else reversed(names):
            row = paced(seconds, **{**BEST, **VARIANTS.get(name, {})})
            times[name].append(row["end_to_end_ms"])
            stages_of[name], dropped[name] = row["ms"], dropped[name] + sum(row["dropped"].values())
            print(f"    {name:<40}{row['ms']['end_to_end']['p50']:>9.3f} p50", flush=True)
        rows = []
        for name in variants:
            off, on = (times["best"], times[name]) if name in COSTS else (times[name], times["best"])
            rows.append(gain(name, PATH, "ms", off, on))
        result = {
            "rows": rows + within, "stages_ms": stages_of, "dropped": dict(dropped),
            "distributions_ms": {name: distribution(np.concatenate(of)) for name, of in times.items()},
        }  # fmt: skip
        save(result)
    return result


def handover(turns: int = 10) -> list[dict]:
    """A frame's surface and tensors to the next process: through host memory, or by the fences that IPC needs."""
    import torch

    from peoplecounter.common.cuda import check, cudart, pinned

    tensor = TensorLayout(len(ALL), Input(640, 640))
    nbytes = LAYOUT.nbytes + tensor.nbytes
    device = [int(check(cudart.cudaMalloc(nbytes))) for _ in range(2)]
    host, fence = pinned((nbytes,), "uint8"), int(check(cudart.cudaMalloc(256)))
    check(cudart.cudaMemset(fence, 0, 256))
    work, reader = memory_kind("cuda").work_queue(Loop()), memory_kind("cuda").work_queue(Loop())
    kinds = cudart.cudaMemcpyKind

    def copied() -> None:
        check(cudart.cudaMemcpyAsync(host.ctypes.data, device[0], nbytes, kinds.cudaMemcpyDeviceToHost, work.stream))
        work.finish()  # the other process begins when the bytes are there
        check(cudart.cudaMemcpyAsync(device[1], host.ctypes.data, nbytes, kinds.cudaMemcpyHostToDevice, reader.stream))
        reader.finish()

    generation = 0

    def fenced() -> None:
        nonlocal generation
        for _ in range(2):  # surface, tensors
            generation += 1
            reader.wait_fence(fence, generation)
            work.set_fence(fence, generation)
        work.finish()
        reader.finish()

    rows: dict[str, list[list[float]]] = {"copied": [], "fenced": []}
    for _ in range(turns):
        for name, step in (("copied", copied), ("fenced", fenced)):
            turn = []
            for _ in range(20):
                torch.cuda.synchronize()
                began = time.perf_counter()
                step()
                turn.append((time.perf_counter() - began) * 1000)
            rows[name].append(turn)
    what = f"handing a frame on, {nbytes / 1e6:.0f} MB, without the sockets"
    return [gain("Zero copy", what, "ms", rows["copied"], rows["fenced"])]


def kernel_gains() -> list[dict]:
    """From the section `kernel`: one launch against the old chain, FP16 tensors against FP32."""
    found = kernel()
    chain = [[found[d]["grid_sample_chain_ms"]["p50"]] for d in ("float16", "float32")]
    one = [[found[d]["finest_level_ms"]["p50"]] for d in ("float16", "float32")]
    what = "NV12 to the whole frame and 32 tiles"
    return [
        gain("Fused kernel", f"{what}, FP16, on the GPU", "ms", chain[:1], one[:1]),
        gain("Fused kernel", f"{what}, FP32, on the GPU", "ms", chain[1:], one[1:]),
        gain("FP16 tensors instead of FP32", f"{what}, on the GPU", "ms", one[1:], one[:1]),
    ]


def engine_gains(turns: int = 5) -> list[dict]:
    """Batches of one engine, its launches captured or not."""
    import torch

    from peoplecounter.common.cuda import check, cudart
    from peoplecounter.common.engine.tensorrt import TensorRTEngine
    from peoplecounter.common.ipc.memory import Block

    work = memory_kind("cuda").work_queue(Loop())
    engines = {graphs: TensorRTEngine(EngineSettings(model=str(PLAN)), work, graphs) for graphs in (False, True)}
    tensor = TensorLayout(len(ALL), engines[True].input)
    out = Block(int(check(cudart.cudaMalloc(tensor.nbytes))), tensor.nbytes)
    stream, rows = torch.cuda.ExternalStream(work.stream), []
    for images in (1, 16):
        times: dict[bool, list[list[float]]] = {False: [], True: []}
        for _ in range(turns):
            for graphs, engine in engines.items():
                turn = []
                for _ in range(30):
                    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    begin.record(stream)
                    collect = engine.start(out, tensor, each_alone(engine.input.size, images, 1))
                    end.record(stream)
                    work.finish()
                    collect()
                    turn.append(begin.elapsed_time(end))
                times[graphs].append(turn[5:])
        what = f"a batch of {images}, alone on the GPU, from its first launch to its boxes"
        rows.append(gain("CUDA graphs", what, "ms", times[False], times[True]))
    return rows


def _seconds(begin: dict, end: dict) -> float:
    return (datetime.fromisoformat(end["time"]) - datetime.fromisoformat(begin["time"])).total_seconds()


def flat(seconds: int, mps: bool, infer_tiles: int) -> dict:
    """One file in a loop, lossless, as fast as it goes."""
    with group({"cam": {"url": str(CLIP), "loop": True}}, mps, infer_tiles) as g:
        g.wait_counts(WARM_UP_FRAMES, 120)
        first = len(g.of("counts"))
        time.sleep(seconds)
        counts = g.of("counts")[first:]
    fps = (len(counts) - 1) / _seconds(counts[0], counts[-1])
    return {"mps": mps, "infer_tiles": infer_tiles, "frames_per_s": round(fps, 1), "ms": stages(counts)}


def decoders(number: int, seconds: float = 4) -> dict:
    """Processes that only decode, each flat out."""
    command = [sys.executable, "-m", "tests.bench.decode", str(CLIP), str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    each = [float(process.communicate()[0]) for process in processes]
    return {"decoders": number, "frames_per_s": round(sum(each), 1), "each": each}


def sources(number: int, seconds: int, mps: bool, infer_tiles: int) -> dict:
    """Cameras at 30 frames/s each: does the group hold them?"""
    cameras = {f"cam{i}": {"url": str(CLIP), "loop": True, "realtime": True, "fps": 30} for i in range(number)}
    with group(cameras, mps, infer_tiles) as g:
        g.wait_counts(WARM_UP_FRAMES * number, 120, complete=False)
        before = {name: g.totals(name) for name in cameras}
        first = len(g.of("counts"))
        time.sleep(seconds)
        after = {name: g.totals(name) for name in cameras}
        counts = g.of("counts")[first:]
    dropped = dropped_between(before, after)
    incomplete = sum(after[n]["incomplete"] - before[n]["incomplete"] for n in cameras)
    return {
        "sources": number, "mps": mps, "infer_tiles": infer_tiles, "seconds": seconds, "frames": len(counts),
        "frames_per_s": round((len(counts) - 1) / _seconds(counts[0], counts[-1]), 1),
        "dropped": dict(dropped), "incomplete": incomplete, "ms": stages(counts),
    }  # fmt: skip


def dropped_between(before: dict[str, dict], after: dict[str, dict]) -> Counter[str]:
    """Reason -> frames of all sources; both are source -> totals."""
    dropped: Counter[str] = Counter()
    for name, totals in after.items():
        dropped.update(Counter(totals["dropped"]) - Counter(before[name]["dropped"]))
    return dropped


def machine() -> dict:
    import torch

    from peoplecounter.common.engine.tensorrt import runtime_module

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    import PyNvVideoCodec
    import triton

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "gpu": name,
        "driver": driver,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {
            "tensorrt": runtime_module().__version__, "torch": torch.__version__, "triton": triton.__version__,
            "PyNvVideoCodec": PyNvVideoCodec.__version__,
        },
        "plan": PLAN.name,
        "clip": CLIP.name,
        "command": "python -m tests.bench.gpu " + " ".join(sys.argv[1:]),
    }  # fmt: skip


def lines(ms: dict[str, dict[str, float]]) -> str:
    order = [
        "packet>decode", "decode", "decode>copy", "copy", "copy>preprocess", "preprocess", "preprocess>infer_global",
        "copy>infer_global", "infer_global", "preprocess>infer_tiles", "copy>infer_tiles", "infer_tiles",
        "infer_global>fusion", "infer_tiles>fusion", "fusion",
        "end_to_end",
    ]  # fmt: skip
    rows = [*(k for k in order if k in ms), *(k for k in ms if k not in order)]
    return "\n".join(f"    {key:<26}{ms[key]['p50']:>9.3f} p50 {ms[key]['p99']:>9.3f} p99" for key in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ["kernel", "floor", "paced", "views", "codecs", "flat", "decoders", "sources", "gains"]
    parser.add_argument("section", nargs="+", choices=sections)
    parser.add_argument("--out", type=Path, default=Path(".bench") / "gpu.json")
    parser.add_argument("--seconds", type=int, default=60, help="of each paced run; the others take a quarter")
    parser.add_argument(
        "--number", type=int, nargs="+", default=[6, 7, 8], help="decoders, sources: how many at once, each a run"
    )
    parser.add_argument("--turns", type=int, default=3, help="gains, views: how often each is measured")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="gains: only these"
    )
    parser.add_argument("--sweep", action="store_true", help="kernel: other block shapes too")
    parser.add_argument(
        "--mps", choices=["both", "on", "off"], default="both", help="paced: with MPS, without, or both"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="paced: infer_tiles, each a run")
    args = parser.parse_args()
    result = machine()
    print(json.dumps(result))
    mps = {"both": [True, False], "on": [True], "off": [False]}[args.mps] if backend.mps_binary() else [False]
    variants = [(with_mps, workers) for with_mps in mps for workers in args.workers]
    best = (mps[0], 2)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def save(section: str, rows: list[dict]) -> None:
        args.out.write_text(json.dumps({**result, section: rows}, indent=1) + "\n")

    runs = {
        "kernel": [partial(kernel, args.sweep)],
        "floor": [floor],
        "paced": [partial(paced, args.seconds, *variant) for variant in variants],
        "views": [
            partial(viewed, args.seconds // args.turns, name, *best) for _ in range(args.turns) for name in VIEWS
        ],
        "codecs": [
            partial(coded, args.seconds // 4, clip, *best) for clip in (clips() if "codecs" in args.section else [])
        ],
        "flat": [partial(flat, args.seconds // 4, *best)],
        "decoders": [partial(decoders, number) for number in args.number],
        "sources": [partial(sources, number, args.seconds // 4, *best) for number in args.number],
        "gains": [partial(gains, args.seconds, args.turns, args.variants, lambda part: save("gains", [part]))],
    }
    for section in args.section:
        print(f"\n{section}", flush=True)
        result[section] = []
        for run in runs[section]:
            row = run()
            result[section].append(row)
            row.pop("end_to_end_ms", None)
            print(json.dumps({key: value for key, value in row.items() if key != "ms"}))
            print(lines(row.get("ms", {})), flush=True)
            save(section, result[section])
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
