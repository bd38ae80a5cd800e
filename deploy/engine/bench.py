"""Measures engines: speed, size and counts, as a table in JSON, Markdown and HTML."""

import html
import time
from pathlib import Path

import numpy as np

from peoplecounter.common import backend, cores
from peoplecounter.common.engine.base import Engine
from peoplecounter.common.engine.loading import load_engine
from peoplecounter.common.engine.placing import Placing, each_alone
from peoplecounter.common.engine.sidecar import read_sidecar
from peoplecounter.common.ipc.loop import Loop
from peoplecounter.common.ipc.memory import KINDS, Block, memory_kind
from peoplecounter.common.ipc.messages import ROW_VALUES, SurfaceLayout, TensorLayout
from peoplecounter.common.settings import Settings
from peoplecounter.common.views import View
from peoplecounter.deploy.engine import calibration
from peoplecounter.services.fusion.merge import hysteresis, merge

BATCHES = (1, 8, 16, 32)
ROUNDS, WARM_UP, TURNS = 60, 3, 3
# trtexec, batch 8, median GPU ms / engine MB, yolo26n-seg on an RTX 5060 Ti: figures of the original pipeline
ROADMAP = {"FP32": (5.17, 7.8), "FP16": (4.89, 7.9), "FP8 Q/DQ": (5.10, 6.5), "weight-stripped": (5.17, 4.1)}


class EngineBench:
    """Measures the engines of one backend on the same images."""

    def __init__(self, settings: Settings):
        self.settings, self.kind = settings, KINDS[backend.resolve(settings)]
        self.work = memory_kind(self.kind).work_queue(Loop())

    def counts(self, engine: Engine, surfaces: list) -> list[int]:
        """The people in each of these frames, merged as fusion does."""
        persons, counts = None, []
        for layout, surface in surfaces:
            persons = self.persons(engine, layout, surface, persons)
            counts.append(len(persons))
        return counts

    def persons(
        self, engine: Engine, layout: SurfaceLayout, surface: np.ndarray, before: np.ndarray | None = None
    ) -> np.ndarray:
        """The persons in a frame, float32 [k, 6], merged as fusion does; `before`: those in the frame before it."""
        views = self.settings.views.table(layout.width, layout.height, engine.input.size, engine.input.corner)
        return self.merged(self.rows(engine, layout, surface, views), before)

    def merged(self, rows: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """What fusion makes of the boxes [n, 8] of a frame, float32 [k, 6]."""
        fusion = self.settings.fusion
        previous = np.zeros((0, 6), np.float32) if before is None else before
        persons = merge(rows, fusion.same_iou, fusion.same_ios)
        return persons[hysteresis(persons, previous, fusion.new_score)[1]]

    def rows(self, engine: Engine, layout: SurfaceLayout, surface: np.ndarray, views: tuple[View, ...]) -> np.ndarray:
        """The boxes that an engine finds in these views of a frame, float32 [n, 8], see messages.Detections."""
        images = calibration.tensor(surface, layout, engine.input, views)
        tensor, frame = TensorLayout(len(images), engine.input), (layout.width, layout.height)
        whole, boxes = Placing(views, 0, engine.input.size, frame, self.settings.fusion.edge_px), b""
        with self._slot(images) as slot:
            for placing in whole.batches(engine.batch):
                job = engine.start(slot, tensor, placing)
                self.work.finish()
                boxes += job()[0]
        return np.frombuffer(boxes, np.float32).reshape(-1, ROW_VALUES)

    def times(self, engine: Engine, rounds: int) -> dict[int, list[float]]:
        """Milliseconds of each batch that the engine takes: GPU time on a GPU, otherwise wall time."""
        tensor, times = TensorLayout(max(BATCHES), engine.input), {}
        images = np.random.default_rng(0).random(tensor.shape, np.float32).astype(tensor.dtype)
        with self._slot(images) as slot:
            for batch in BATCHES:
                if engine.batch(batch) != batch:
                    continue
                taken = []
                for _ in range(WARM_UP + rounds):
                    began_ns = time.perf_counter_ns()
                    job = engine.start(slot, tensor, each_alone(engine.input.size, batch))
                    self.work.finish()
                    gpu_ns = job()[1]
                    taken.append((gpu_ns or time.perf_counter_ns() - began_ns) / 1e6)
                times[batch] = taken[WARM_UP:]
        return times

    def _slot(self, images: np.ndarray):
        return _GpuImages(images) if self.kind == "cuda" else _HostImages(images)


class MeasuredEngine:
    """One row of the table: a model in a runtime of its own backend."""

    def __init__(self, settings: Settings):
        path = Path(settings.engine.model)
        self.bench = EngineBench(settings)
        began_s = time.perf_counter()
        self._engines = {"ms": load_engine(settings, cores.threads(settings), self.bench.work)}
        self._engines["ms"].warm_up()
        load_s = time.perf_counter() - began_s
        if self.bench.kind == "cuda":
            self._engines["ms_without_graphs"] = load_engine(settings, 1, self.bench.work, graphs=False)
            self._engines["ms_without_graphs"].warm_up()
        engine, sidecar = self._engines["ms"], read_sidecar(path) if path.is_file() else None
        self.row: dict = {
            "model": path.name, "engine": engine.about, "megabytes": round(path.stat().st_size / 1e6, 2),
            "load_s": round(load_s, 2), "input": str(engine.input),
        }  # fmt: skip
        if sidecar:
            self.row |= {"tensorrt": sidecar.builder, "build_s": sidecar.build_s, "stripped": sidecar.stripped}
        self._times: dict[str, dict[int, list[float]]] = {key: {} for key in self._engines}

    def take_turn(self, rounds: int) -> None:
        """Measures its batches once more."""
        for key, engine in self._engines.items():
            for batch, taken in self.bench.times(engine, rounds).items():
                self._times[key].setdefault(batch, []).extend(taken)

    def finish(self, surfaces: list) -> dict:
        """The row: ms and ms_without_graphs {batch: {"p50", "p99"}}, counts; frees the engines."""
        for key, times in self._times.items():
            percentiles = {batch: np.percentile(taken, [50, 99]) for batch, taken in times.items()}
            self.row[key] = {
                str(batch): {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
                for batch, (p50, p99) in percentiles.items()
            }
        self.row["counts"] = self.bench.counts(self._engines["ms"], surfaces)
        for engine in self._engines.values():
            engine.close()
        return self.row


def in_turns(engines: list[MeasuredEngine], surfaces: list, rounds: int) -> list[dict]:
    """The rows of these engines, measured in TURNS turns, so that what else a machine does falls on all of them."""
    for _ in range(TURNS):
        for engine in engines:
            engine.take_turn(-(-rounds // TURNS))
    return [engine.finish(surfaces) for engine in engines]


class _HostImages:
    """Images in memory, as a slot for the CPU engine."""

    def __init__(self, images: np.ndarray):
        self._bytes = np.ascontiguousarray(images).reshape(-1).view(np.uint8)

    def __enter__(self) -> np.ndarray:
        return self._bytes

    def __exit__(self, *_: object) -> None:
        pass


class _GpuImages:
    """Images in GPU memory, as a slot for TensorRT."""

    def __init__(self, images: np.ndarray):
        self._images = np.ascontiguousarray(images)

    def __enter__(self):
        from peoplecounter.common.cuda import check, cudart

        self._address = int(check(cudart.cudaMalloc(self._images.nbytes)))
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpy(self._address, self._images.ctypes.data, self._images.nbytes, kind))
        return Block(self._address, self._images.nbytes)

    def __exit__(self, *_: object) -> None:
        from peoplecounter.common.cuda import check, cudart

        check(cudart.cudaFree(self._address))


def machine(kinds: set[str]) -> str:
    """The machine, for the table's title: its GPU where one is used, and its cores where they are."""
    parts = []
    if "cuda" in kinds:
        from peoplecounter.common.cuda import device

        parts.append(f"{device().name.decode()}, ms on the GPU")
    if "shm" in kinds:
        parts.append(f"CPU, {cores.threads(Settings())} threads, ms on the clock")
    return "; ".join(parts)


def compare(rows: list[dict], truth: dict[int, int] | None = None) -> list[dict]:
    """Adds to each row its mean count, and its difference from the first row: mean absolute, and in % of the mean.

    With a truth (frame -> people) also `mae`, the mean absolute error, and `bias`, the mean error.
    """
    first = np.array(rows[0]["counts"], float)
    for row in rows:
        counts = np.array(row["counts"], float)
        row["people"] = round(float(counts.mean()), 2)
        row["difference"] = round(float(np.abs(counts - first).mean()), 3)
        if truth is not None:
            true = np.array([truth[frame] for frame in range(len(counts))], float)
            row["mae"] = round(float(np.abs(counts - true).mean()), 3)
            row["bias"] = round(float((counts - true).mean()), 3)
        row["difference_pct"] = round(100 * float(counts.sum() - first.sum()) / max(1.0, float(first.sum())), 2)
    return rows


def tables(rows: list[dict], machine: str) -> list[tuple[str, list[list[str]]]]:
    """(title, cells with a header row) of these engines and of the roadmap's; empty columns are left out."""
    header = ["model", "engine", "MB"]
    columns = [[row["model"] for row in rows], [row["engine"] for row in rows]]
    columns.append([f"{row['megabytes']:.1f}" for row in rows])
    for key, what in (("ms", ""), ("ms_without_graphs", " without graphs")):
        for batch in map(str, BATCHES):
            times = [row.get(key, {}).get(batch) for row in rows]
            if any(times):
                header.append(f"batch {batch}{what}, ms p50 / p99")
                columns.append([f"{t['p50']:.2f} / {t['p99']:.2f}" if t else "–" for t in times])
    header += ["people a frame", "against the first"]
    columns.append([f"{row['people']:.2f}" for row in rows])
    columns.append([f"{row['difference_pct']:+.1f} %, {row['difference']:.2f} a frame" for row in rows])
    if "mae" in rows[0]:
        header.append("error, bias against truth")
        columns.append([f"{row['mae']:.2f}, {row['bias']:+.2f}" for row in rows])
    roadmap = [["engine", "MB", "batch 8, ms p50"], *([k, f"{mb:.1f}", f"{ms:.2f}"] for k, (ms, mb) in ROADMAP.items())]
    return [
        (machine, [header, *map(list, zip(*columns))]),
        ("the original pipeline: yolo26n-seg on an RTX 5060 Ti, trtexec", roadmap),
    ]


def markdown(rows: list[dict], machine: str) -> str:
    out = []
    for title, (header, *body) in tables(rows, machine):
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body)]
        out.append(f"**{title}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(out)


def page(rows: list[dict], machine: str) -> str:
    parts = []
    for title, (header, *body) in tables(rows, machine):
        cells = ["".join(f"<th>{html.escape(c)}</th>" for c in header)]
        cells += ["".join(f"<td>{html.escape(c)}</td>" for c in row) for row in body]
        inner = "\n".join(f"<tr>{c}</tr>" for c in cells)
        parts.append(f"<h2>{html.escape(title)}</h2>\n<table>\n{inner}\n</table>")
    style = (
        "body{font:15px system-ui;margin:2rem}table{border-collapse:collapse}"
        "td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:right}"
        "td:first-child,th:first-child{text-align:left}"
    )
    content = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Engines</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en">{head}\n{content}\n</html>\n'
