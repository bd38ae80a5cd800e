"""What each level of views costs and finds: `peoplecounter views` and `peoplecounter tune`."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from peoplecounter.common import cores
from peoplecounter.common.boxes import iou_matrix
from peoplecounter.common.engine.base import Engine
from peoplecounter.common.engine.loading import load_engine
from peoplecounter.common.errors import NO_INPUT, AppError
from peoplecounter.common.ipc.messages import SurfaceLayout
from peoplecounter.common.settings import Settings, SourceSettings, ViewSettings, section_settings
from peoplecounter.common.sources import absolute_url, is_missing
from peoplecounter.common.views import SMALLEST_SEEN_PX, View, by_level, overlap_px
from peoplecounter.deploy.cli.display import aligned
from peoplecounter.deploy.engine import calibration
from peoplecounter.deploy.engine.bench import EngineBench
from peoplecounter.deploy.report.evaluate import read_truth
from peoplecounter.deploy.report.pictures import Colour, outline, rgb_of, save, shrunk
from peoplecounter.services.fusion.merge import CUT, VIEW

COLOURS: list[tuple[str, Colour]] = [  # of levels, the whole first
    ("red", (235, 50, 50)), ("orange", (245, 160, 30)), ("green", (60, 190, 80)), ("blue", (60, 130, 240)),
    ("violet", (180, 90, 230)), ("white", (255, 255, 255)),
]  # fmt: skip
PANEL_PX, PICTURE_PX = 800, 1920  # width of a level's picture, of a frame
LIVE_STEP = 5  # a camera's frames that are looked at: every fifth
SAME_IOU = 0.5  # of a level's box and the person that all levels found
ENOUGH = 0.05  # a choice of levels is good enough when it misses the counts of all levels by this share


@dataclass(frozen=True)
class Level:
    """A level of a frame and its views; `name` is its scale in words."""

    name: str
    scale: float
    views: tuple[View, ...]
    first: int  # of its views in the table


@dataclass
class Choice:
    """Some levels for images of one size, and what they count."""

    levels: tuple[Level, ...]
    size: tuple[int, int]  # width, height of an image
    model: str = ""  # empty: the one that all are compared with
    counts: list[int] = field(default_factory=list)
    before: np.ndarray | None = None  # the persons of the frame before

    @property
    def name(self) -> str:
        levels = " + ".join(level.name for level in self.levels)
        return f"{levels} of {self.size[0]}x{self.size[1]}" if self.model else levels

    @property
    def images(self) -> int:
        return sum(len(level.views) for level in self.levels)

    @property
    def megapixels(self) -> float:
        """What is inferred for a frame: about what it costs."""
        return self.images * self.size[0] * self.size[1] / 1e6

    @property
    def views(self) -> list[int]:
        return [i for level in self.levels for i in range(level.first, level.first + len(level.views))]


def show_views(name: str, model: str | None, out: Path, settings: Settings) -> list[str]:
    """Draws the views of a source's first frame into `out`; returns a table of its levels as lines of text.

    Raises AppError for a source or a model that cannot be read.
    """
    source = _source(name, settings)
    wanted = source.views.within(settings.views)
    with loaded(model, settings) as (bench, engine):
        layout, surface = _first(source, name)
        size = engine.input.size
        levels = levels_of(wanted.table(layout.width, layout.height, size, engine.input.corner), layout.height)
        images = sum(len(level.views) for level in levels)
        rows = [("LEVEL", "FRAME", "VIEWS", "PEOPLE SEEN WHOLE", "SHARE", "MS HERE", "COLOUR")]
        for level, (colour, _) in zip(levels, _colours()):
            ms = _ms(lambda level=level: bench.rows(engine, layout, surface, level.views))
            largest = overlap_px(size, wanted.overlap) / level.scale  # that is whole in a tile, wherever it is
            most = layout.height if level is levels[0] else min(layout.height, largest)
            seen = f"{SMALLEST_SEEN_PX / level.scale:.0f} to {most:.0f} px"
            width, height = level.views[0].level
            share = f"{100 * len(level.views) / images:.0f} %"
            rows.append((level.name, f"{width}x{height}", str(len(level.views)), seen, share, f"{ms:.0f}", colour))
    save(_panels(rgb_of(layout, surface), levels, size), out)
    total = sum(float(row[5]) for row in rows[1:])
    return [
        f"{name}: {layout.width}x{layout.height}, {images} images a frame, about {total:.0f} ms here",
        *aligned(rows),
        f"The views are drawn in {out}.",
    ]


def tune(
    name: str,
    model: str | None,
    others: list[str],
    frames: int,
    truth: Path | None,
    out: Path,
    settings: Settings,
) -> list[str]:
    """Looks at some frames of a source with every level; returns tables and a recommendation as lines of text.

    `others`: the same model made for images of other sizes. `out` gets the frame with the most people, each in the
    colour of the level that saw them best. `truth`: a CSV as for `eval`. Raises AppError for a source, a truth or a
    model that cannot be read.
    """
    source = _source(name, settings)
    step = LIVE_STEP if source.live else max(1, calibration.length(source) // frames)
    true = read_truth(truth) if truth else None
    numbers: list[int] = []
    heights: list[np.ndarray] = []
    best: tuple[int, np.ndarray] = (-1, np.zeros(0))
    choices: list[Choice] = []
    everything = settings.views.model_copy(update={"smallest_person_px": None, "levels": None})
    with ExitStack() as opened:
        main, *larger = [
            _Counted(path if i else "", *opened.enter_context(loaded(path, settings)))
            for i, path in enumerate([model, *others])
        ]
        for number, (layout, surface) in enumerate(islice(calibration.surfaces(source, step), frames)):
            rows = main.count(everything, layout, surface)
            if not numbers:
                choices, size = main.choices, (layout.width, layout.height)
                levels = list(choices[-1].levels)
                found, alone = np.zeros(len(levels)), np.zeros(len(levels))
            elif (layout.width, layout.height) != size:
                raise AppError(f"The frames of {name} change their size: tune looks at one size only.")
            for other in larger:
                other.count(everything, layout, surface)
            persons = choices[-1].before  # of all levels
            assert persons is not None
            seen = np.array([_sees(rows, level, persons) for level in levels]).reshape(len(levels), -1)
            found += seen.sum(axis=1)
            alone += (seen & (seen.sum(axis=0) == 1)).sum(axis=1)
            heights.append(persons[:, 3] - persons[:, 1])
            numbers.append(number * step)
            if len(persons) > best[0]:
                best = len(persons), _drawn(rgb_of(layout, surface), persons, levels)
            if number % 10 == 9:
                print(f"{number + 1} of at most {frames} frames", file=sys.stderr, flush=True)
    if not choices:
        raise AppError(f"{name} gave no picture.", NO_INPUT)
    save(shrunk(best[1], PICTURE_PX), out)
    tall = np.concatenate(heights)
    if not len(tall):
        return [f"{name}: nobody was seen in {len(numbers)} frames: look at a time when people are there."]
    p5, p50, p95 = np.percentile(tall, [5, 50, 95])
    table = [("LEVEL", "VIEWS", "PEOPLE A FRAME", "ONLY THERE", "COLOUR")]
    for level, many, only, (colour, _) in zip(levels, found / len(numbers), alone / len(numbers), _colours()):
        table.append((level.name, str(len(level.views)), f"{many:.1f}", f"{only:.1f}", colour))
    counts = np.array(choices[-1].counts, float)
    every = choices + [choice for other in larger for choice in other.choices]
    chosen = _cheapest(every, counts)
    rows_of = [("LEVELS", "IMAGES", "MPX", "PEOPLE", "FROM ALL LEVELS", *(["FROM THE TRUTH"] if true else []), "")]
    for choice in every:
        here = np.array(choice.counts, float)
        errors = [f"{np.abs(here - counts).mean():.2f}"]
        if true:
            errors.append(f"{np.abs(here - [true.get(n, 0) for n in numbers]).mean():.2f}")
        mark = "<- recommended" if choice is chosen else ""
        cost = str(choice.images), f"{choice.megapixels:.1f}"
        rows_of.append((choice.name, *cost, f"{here.mean():.1f}", *errors, mark))
    return [
        f"{name}: {len(numbers)} frames of {size[0]}x{size[1]}, {counts.mean():.1f} people a frame",
        f"heights: {p5:.0f} px (5 %), {p50:.0f} px (50 %), {p95:.0f} px (95 %)",
        "",
        *aligned(table),
        "",
        *aligned(rows_of),
        "",
        f"The frame with the most people is drawn in {out}.",
        f"Recommended: {chosen.megapixels:.1f} of {choices[-1].megapixels:.1f} megapixels a frame, the fewest whose "
        f"counts differ from those of all levels by at most {100 * ENOUGH:.0f} %.",
        "",
        *(
            [f"[engine]  # of the whole group, without sha256\nmodel = {json.dumps(chosen.model)}\n"]
            if chosen.model
            else []
        ),
        f"[sources.{name if name in settings.sources else 'NAME'}.views]",
        _toml(chosen, max((c.levels for c in every if c.model == chosen.model), key=len)),
    ]


class _Counted:
    """A model, and what its levels count."""

    def __init__(self, path: str | None, bench: EngineBench, engine: Engine):
        self._path, self._bench, self._engine = path or "", bench, engine
        self.choices: list[Choice] = []

    def count(self, wanted: ViewSettings, layout: SurfaceLayout, surface: np.ndarray) -> np.ndarray:
        """Counts one more frame with each choice; returns the boxes of all levels, see EngineBench.rows()."""
        size = self._engine.input.size
        views = wanted.table(layout.width, layout.height, size, self._engine.input.corner)
        self.choices = self.choices or choices_of(levels_of(views, layout.height), size, self._path)
        rows = self._bench.rows(self._engine, layout, surface, views)
        for choice in self.choices:
            choice.before = self._bench.merged(rows[np.isin(rows[:, VIEW], choice.views)], choice.before)
            choice.counts.append(len(choice.before))
        return rows


def _source(name: str, settings: Settings) -> SourceSettings:
    """A source of the settings, or a file or URL; a file is played as fast as it goes, once."""
    source = settings.sources.get(name) or section_settings(SourceSettings, url=absolute_url(name, Path()))
    if is_missing(source):
        raise AppError(f"{name} is neither a source of the settings nor a file.", NO_INPUT)
    return source.model_copy(update={"realtime": False, "loop": False})


@contextmanager
def loaded(model: str | None, settings: Settings) -> Iterator[tuple[EngineBench, Engine]]:
    """A model, or that of the settings, and what runs it on images."""
    if model:
        engine_settings = settings.engine.model_copy(update={"model": model, "sha256": ""})
        settings = settings.model_copy(update={"engine": engine_settings})
    bench = EngineBench(settings)
    engine = load_engine(settings, cores.threads(settings), bench.work)
    try:
        yield bench, engine
    finally:
        engine.close()


def _first(source: SourceSettings, name: str):
    for frame in calibration.surfaces(source):
        return frame
    raise AppError(f"{name} gave no picture.", NO_INPUT)


def levels_of(views: tuple[View, ...], height: int) -> list[Level]:
    """The levels of a table of views, in its order: the whole first."""
    levels: list[Level] = []
    for (_, level_height), of_level in by_level(views):
        scale = level_height / height
        name = f"{scale:.3g}" if levels else "whole"
        levels.append(Level(name, scale, tuple(view for _, view in of_level), of_level[0][0]))
    return levels


def choices_of(levels: list[Level], size: tuple[int, int], model: str = "") -> list[Choice]:
    """The whole with every run of neighbouring levels, fewest images first; all levels last."""
    whole, tiles = levels[0], levels[1:]
    runs = [tiles[i:j] for i in range(len(tiles)) for j in range(i + 1, len(tiles) + 1)]
    found = [Choice(run, size, model) for run in ((whole,), *((whole, *run) for run in runs))]
    return sorted(found, key=lambda choice: (len(choice.levels) == len(levels), choice.images))


def _cheapest(choices: list[Choice], counts: np.ndarray) -> Choice:
    allowed = ENOUGH * max(1.0, float(counts.mean()))
    enough = [choice for choice in choices if np.abs(np.array(choice.counts) - counts).mean() <= allowed]
    return min(enough, key=lambda choice: choice.megapixels)


def _sees(rows: np.ndarray, level: Level, persons: np.ndarray) -> np.ndarray:
    """bool [k]: which persons a level has a box of that no edge cuts."""
    first, end = level.first, level.first + len(level.views)
    boxes = rows[(rows[:, CUT] == 0) & (rows[:, VIEW] >= first) & (rows[:, VIEW] < end)]
    if not len(boxes) or not len(persons):
        return np.zeros(len(persons), bool)
    return iou_matrix(persons[:, :4], boxes[:, :4]).max(axis=1) > SAME_IOU


def _drawn(rgb: np.ndarray, persons: np.ndarray, levels: list[Level]) -> np.ndarray:
    """The frame with each person in the colour of the level that saw them best."""
    nearest = np.abs(persons[:, 5:6] - [level.scale for level in levels]).argmin(axis=1)
    for i, (_, colour) in zip(range(len(levels)), _colours()):
        outline(rgb, persons[nearest == i], colour)
    return rgb


def _panels(rgb: np.ndarray, levels: list[Level], size: tuple[int, int]) -> np.ndarray:
    """The frame once for each level, with the level's views, two side by side."""
    small = shrunk(rgb, PANEL_PX)
    panels = []
    for level, (_, colour) in zip(levels, _colours()):
        panel = small // 2  # darker, so that lines stand out
        share = small.shape[1] / level.views[0].width
        boxes = np.array([(v.x, v.y, v.x + size[0], v.y + size[1]) for v in level.views], float) * share
        bright = boxes[len(boxes) // 2].round().astype(int).clip(0)
        panel[bright[1] : bright[3], bright[0] : bright[2]] = small[bright[1] : bright[3], bright[0] : bright[2]]
        outline(panel, boxes, colour)
        panels.append(panel)
    if len(panels) % 2:
        panels.append(np.zeros_like(small))
    return np.vstack([np.hstack(panels[i : i + 2]) for i in range(0, len(panels), 2)])


def _colours() -> Iterator[tuple[str, Colour]]:
    while True:
        yield from COLOURS


def _ms(work) -> float:
    """Milliseconds of the second of two calls: the first warms up."""
    work()
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _toml(choice: Choice, levels: tuple[Level, ...]) -> str:
    """The choice as a line of settings: by the smallest person where its levels are those that auto takes."""
    tiles = choice.levels[1:]
    if tiles and tiles == levels[1 : 1 + len(tiles)]:
        return f"smallest_person_px = {SMALLEST_SEEN_PX / tiles[-1].scale:.0f}"
    return f"levels = {[round(level.scale, 4) for level in tiles]}"
