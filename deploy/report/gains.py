"""optimization_gains.html: the JSON files of the benchmarks as a page, one section for each kind of result.

Every file names its machine and its command, and so does every row made from it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from peoplecounter.common.errors import BAD_DATA, NO_INPUT, AppError
from peoplecounter.deploy.report.charts import Bar, pairs, quantiles, waterfall
from peoplecounter.deploy.report.page import STAGES, cards, figure, page, section, table

CURVES = ("after", "infer_tiles", "preprocess", "fusion", "infer_global", "copy", "before")  # colours
TITLES = ("optimization", ">before", ">after", ">before / after")
READY = {"copy": "decode", "preprocess": "copy"}  # stage -> the one it follows


@dataclass(frozen=True)
class BenchResult:
    """One JSON file."""

    content: dict

    @property
    def machine(self) -> str:
        """The machine of the measurement, in a few words."""
        c, versions = self.content, self.content.get("versions", {})
        if "gpu" in c:
            runtime = f", TensorRT {versions['tensorrt']}" if "tensorrt" in versions else ""
            return f"{c['gpu']}, driver {c.get('driver', '?')}{runtime}"
        if "cpu" in c:
            return f"{c['cores']} cores of {c['cpu']}, Python {c['python']}"
        return str(c.get("machine", "unknown machine"))

    def where(self, of: dict | None = None) -> str:
        """The small print below a table: machine, date, command."""
        command = (of or {}).get("command", self.content.get("command", ""))
        words = ", ".join(filter(None, (self.machine, str(self.content.get("date", "")))))
        return f"<small>{escape(words)}<br><code>{escape(command)}</code></small>"

    def sections(self, name: str) -> list[dict]:
        """The sections of this name: one or several."""
        found = self.content.get(name, [])
        return found if isinstance(found, list) else [found]


def read(paths: Iterable[Path]) -> list[BenchResult]:
    """The results of these files and folders, oldest first. Raises AppError for a file that is not a result."""
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    results = []
    for file in files:
        try:
            content = json.loads(file.read_text())
        except OSError as error:
            raise AppError(f"The results {file} cannot be read: {error.strerror}.", NO_INPUT) from None
        except ValueError:
            raise AppError(f"{file} is not JSON: expected what `make bench` writes.", BAD_DATA) from None
        if not isinstance(content, dict) or "command" not in str(content):
            raise AppError(f"{file} is not the result of a benchmark: it contains no command.", BAD_DATA)
        results.append(BenchResult(content))
    if not results:
        raise AppError("No results: run `make bench`, then name .bench.", NO_INPUT)
    return sorted(results, key=lambda result: str(result.content.get("date", "")))


def build(results: list[BenchResult]) -> str:
    """The page. Raises AppError when the results contain nothing for it, or are damaged."""
    made = [(title, about, _made(make, results)) for title, about, make in SECTIONS]
    sections = [section(title, about, *parts) for title, about, parts in made if parts]
    if not sections:
        raise AppError("These results contain nothing for the report: use those of `make bench`.", BAD_DATA)
    machines = dict.fromkeys(r.content.get("gpu", r.machine) for r in results)
    lead = f"Each optimization off and on. Measured on {'; '.join(machines)}."
    return page("What each optimization gained", lead, [*_headlines(results), *sections])


def _made(make: Callable[[list[BenchResult]], list[str]], results: list[BenchResult]) -> list[str]:
    try:
        return make(results)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        what = make.__name__.strip("_")
        raise AppError(f"A result is damaged: {what}, {type(error).__name__}: {error}.", BAD_DATA) from None


def _measured(results: list[BenchResult]) -> Iterator[tuple[BenchResult, dict]]:
    """(result, run) of everything that was measured in turns, or measured again."""
    return ((r, run) for r in results for key in ("gains", "again") for run in r.sections(key))


def _runs(results: list[BenchResult]) -> list[tuple[BenchResult, dict, list[dict]]]:
    """(result, run, its rows) of every run of optimizations. Of a row that was measured again, only the later one."""
    runs = [(r, run) for r, run in _measured(results) if "rows" in run]
    runs += [(r, _built(r.content["build"])) for r in results if "build" in r.content]
    last = {(r.machine, row["optimization"], row["what"]): run for r, run in runs for row in run["rows"]}
    found = []
    for r, run in runs:
        rows = [row for row in run["rows"] if last[r.machine, row["optimization"], row["what"]] is run]
        found += [(r, run, rows)] if rows else []
    return found


def _built(build: dict) -> dict:
    """A run about the timing cache: a plan that was built twice."""
    row = {
        "optimization": "Timing cache", "what": f"building a plan again, level {build['first']['level']}", "unit": "s",
        "before": build["first"]["build_s"], "after": build["second"]["build_s"], "turns": 1,
        "ratio": build["first"]["build_s"] / build["second"]["build_s"],
    }  # fmt: skip
    return {"rows": [row], "command": build["command"]}


def _headlines(results: list[BenchResult]) -> list[str]:
    """The most important figures."""
    shown: list[tuple[str, str]] = []
    best: dict[str, dict] = {}  # optimization -> its row with the largest ratio
    for result, run, rows in _runs(results):
        if "stages_ms" in run:
            p50 = run["stages_ms"]["best"]["end_to_end"]["p50"]
            shown.append((f"{p50:.1f} ms", f"packet to count, one 4K camera at 30 frames/s, p50, {_short(result)}"))
        for row in rows:
            if row["ratio"] and row["ratio"] > best.get(row["optimization"], {"ratio": 1.05})["ratio"]:
                best[row["optimization"]] = row
    for row in sorted(best.values(), key=lambda row: -row["ratio"])[:4]:
        shown.append((f"{row['ratio']:.3g} ×", f"{row['optimization']}: {row['what']}"))
    return [cards(shown[-5:])] if shown else []


def _optimizations(results: list[BenchResult]) -> list[str]:
    parts = []
    for result, run, rows in _runs(results):
        cells, drawn = [], []
        for row in rows:
            shown = [f"{_number(row[key])} {row['unit']}" for key in ("before", "after")]
            before, after = (f"{text}{_spread(row, key)}" for text, key in zip(shown, ("before", "after")))
            name = f"<b>{escape(row['optimization'])}</b><small>{escape(row['what'])}</small>"
            cells.append([name, before, after, _ratio(row)])
            drawn.append((row["optimization"], row["what"], row["before"], row["after"], *shown))
        again = f"<p>Measured again: {escape(run['why again'])}.</p>" if "why again" in run else ""
        parts += [f"<h3>{escape(_short(result))}</h3>", again, table(TITLES, cells), f"<p>{result.where(run)}</p>"]
        if len(drawn) > 2:
            parts.append(figure(pairs(drawn), "As bars: grey before, blue after, each pair with its own scale."))
    return parts


def _stages(results: list[BenchResult]) -> list[str]:
    parts = []
    for result in sorted(results, key=lambda result: "gpu" not in result.content):
        for run in result.sections("gains"):
            if "stages_ms" in run:
                bars = timeline(run["stages_ms"]["best"])
                parts.append(figure(waterfall(bars), f"One 4K camera, the best variant.{result.where()}"))
        if "group" in result.content and "stages_ms" in result.content["group"]:
            ms = {key: value for key, value in result.content["group"]["stages_ms"].items() if key in STAGES}
            parts.append(figure(waterfall(timeline(ms)), f"Demo model, 1080p, flat out.{result.where()}"))
    return parts


def timeline(ms: dict[str, dict]) -> list[Bar]:
    """The stages of a run at their medians. Each starts after the hop before it, if the hop is known."""
    at = {key: value["p50"] for key, value in ms.items()}
    bars, ends = [], {"packet": 0.0}
    ready = {"decode": "packet", **READY}
    for stage in ("infer_global", "infer_tiles"):
        ready[stage] = "copy" if f"copy>{stage}" in at else "preprocess"
    for stage in STAGES[:-1]:
        if stage in at:
            early = stage == "preprocess" and "copy>infer_tiles" in at  # runs while the frame is decoded
            begin = 0.0 if early else ends[ready[stage]] + at.get(f"{ready[stage]}>{stage}", 0.0)
            ends[stage] = begin + at[stage]
            note = f"{at[stage]:.2f}" + (", queued in advance" if early else "")
            bars.append(Bar(stage, begin, ends[stage], stage, note))
    begin = max(ends[s] + at.get(f"{s}>fusion", 0.0) for s in ("infer_global", "infer_tiles") if s in ends)
    bars.append(Bar("fusion", begin, begin + at["fusion"], "fusion"))
    if "end_to_end" in at:
        bars.append(Bar("packet to count", 0.0, at["end_to_end"], "wait", f"{at['end_to_end']:.2f}"))
    return bars


def _distributions(results: list[BenchResult]) -> list[str]:
    parts = []
    for result, run in _measured(results):
        if curves := run.get("distributions_ms"):
            drawn = [(_curve(name), ms, CURVES[i % len(CURVES)]) for i, (name, ms) in enumerate(curves.items())]
            parts.append(figure(quantiles(drawn), f"Share of frames counted within a time.{result.where(run)}"))
    return parts


def _curve(name: str) -> str:
    return name if name in ("best", "without") or "racing" in name or "traced" in name else f"without {name}"


def _engines(results: list[BenchResult]) -> list[str]:
    parts = []
    for result in results:
        content = result.content.get("bench", result.content)
        if "engines" not in content:
            continue
        batches = sorted({batch for engine in content["engines"] for batch in engine["ms"]}, key=int)
        counted = [engine.get("mae") is not None for engine in content["engines"]]
        titles = ["model", ">MB", *(f">batch {batch}, ms" for batch in batches), ">people a frame"]
        titles += [">MAE"] if all(counted) else []
        rows = []
        for engine in content["engines"]:
            cells = [f"{engine['ms'][b]['p50']:.2f}" if b in engine["ms"] else "" for b in batches]
            plain = engine.get("ms_without_graphs", {})
            cells = [
                c + (f"<small>{plain[b]['p50']:.2f} plain</small>" if b in plain else "")
                for c, b in zip(cells, batches)
            ]
            built = f"<small>built in {engine['build_s']:.0f} s</small>" if "build_s" in engine else ""
            runs = f"<small>{escape(engine['engine'])}</small>" if "engine" in engine else ""
            row = [
                escape(engine["model"]) + runs + built,
                f"{engine['megabytes']:.1f}",
                *cells,
                f"{engine['people']:.2f}",
            ]
            rows.append([*row, f"{engine['mae']:.2f}"] if all(counted) else row)
        shown = BenchResult({**result.content, **content})
        parts += [table(titles, rows), f"<p>{shown.where()}</p>"]
    return parts


def _merging(results: list[BenchResult]) -> list[str]:
    parts = []
    for result in results:
        if not (clips := result.content.get("merge")):
            continue
        titles = [
            "clip",
            "levels or rule",
            ">images",
            ">MAE",
            ">bias",
            ">matched",
            ">duplicates, parts",
            ">without truth",
        ]
        rows = []
        for name, clip in clips.items():
            for rule, f in clip["rules"].items():
                boxes = f["matched"], f["duplicate"] + f["part"], f["without_truth"]
                title = f"{escape(name)}, {f['people']:.1f} people" if rule == next(iter(clip["rules"])) else ""
                cells = [str(f["images"]), f"{f['mae']:.2f}", f"{f['bias']:+.2f}", *(f"{value:.2f}" for value in boxes)]
                rows.append([title, escape(rule), *cells])
        parts += [table(titles, rows), f"<p>{result.where()}</p>"]
    return parts


def _soaks(results: list[BenchResult]) -> list[str]:
    parts = []
    for result in results:
        if "killed" not in result.content:
            continue
        c = result.content
        totals = [(b["frames"], b["counted"], sum(b["dropped"].values())) for b in c["books"].values()]
        frames, counted, dropped = map(sum, zip(*totals))
        books = f"{frames} frames = {counted} counted + {dropped} dropped with a reason."
        keys = [("rss_mb", "memory, MB"), ("fds", "descriptors"), ("threads", "threads")]
        rows = [
            [escape(name), *(f"{t[k]['early']:g} → {t[k]['late']:g}" if k in t else "" for k, _ in keys)]
            for name, t in c["levels"].items()
            if name != "all"
        ]
        gpu = c["levels"]["all"].get("gpu_mb")
        gpu_words = f" GPU memory {gpu['early']:g} → {gpu['late']:g} MB." if gpu else ""
        parts += [
            f"<h3>{c['minutes']:g} minutes, {sum(c['killed'].values())} processes killed</h3><p>{books}{gpu_words}</p>",
            table(["process", *(f">{title}, early → late" for _, title in keys)], rows),
            f"<p>{result.where()}</p>",
        ]
    return parts


SECTIONS = (  # title, what it is about, what makes its parts
    (
        "Optimizations, off and on",
        "Before and after: medians of several turns' medians, measured in turns within one run. Small print: minimum "
        "and maximum of the turns. A ratio of 1 is no gain. For tracing, 'after' is with tracing: a cost.",
        _optimizations,
    ),
    (
        "Where the milliseconds go",
        "Median milliseconds of a frame: each stage's work, starting after the stage before it.",
        _stages,
    ),
    (
        "Latency distributions",
        "A curve further left is faster, a steeper one is steadier. Its name says which optimization is off (for "
        "tracing: on). The axis ends at the 95th percentile of the slowest curve.",
        _distributions,
    ),
    (
        "Engines",
        "Medians. Small print: without CUDA graphs. People: counted per frame. MAE: mean absolute error.",
        _engines,
    ),
    (
        "Merging rules",
        "The same boxes of the same model, of sets of levels, and merged by plain rules. MAE: mean absolute error.",
        _merging,
    ),
    (
        "Soak tests",
        "More frames than the machine can count, and a process killed every five seconds.",
        _soaks,
    ),
)


def _short(result: BenchResult) -> str:
    return result.content["gpu"].removeprefix("NVIDIA ") if "gpu" in result.content else "CPU"


def _number(value: float) -> str:
    return f"{value:.{3 if value < 1 else 2 if value < 100 else 1}f}"


def _spread(row: dict, key: str) -> str:
    if row["turns"] < 2:
        return ""
    smallest, largest = row[f"{key}_spread"]
    return f"<small>{_number(smallest)} … {_number(largest)}</small>"


def _ratio(row: dict) -> str:
    """The ratio, coloured when the turns do not overlap."""
    if not row["ratio"]:
        return ""
    before, after = (row.get(f"{key}_spread", [row[key]] * 2) for key in ("before", "after"))
    kind = "good" if before[0] > after[1] else "bad" if before[1] < after[0] else ""
    return f"<span class='{kind}'>{row['ratio']:.{2 if row['ratio'] < 10 else 0}f}</span>"
