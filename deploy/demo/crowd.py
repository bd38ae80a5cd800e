"""The crowd of the plaza and its exact truth: where people walk, and which of them the camera sees.

The rule of truth: a person is in the truth of a frame when at least 30 % of the pixels of its whole silhouette are
visible, that is inside the picture and hidden by no nearer person or thing. Its box encloses the whole silhouette,
hidden parts included, cut at the picture's edge.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from peoplecounter.deploy.demo.figures import Look, draw_figure, random_look, stride_m
from peoplecounter.deploy.demo.raster import Canvas
from peoplecounter.deploy.demo.scene import CAMERAS, FAR_M, Camera, background, furniture

VISIBLE_SHARE = 0.3
EXIT, CLOSEST = 5 / 9, 4 / 9  # of the camera's nearest_m: there people leave the picture; none is drawn nearer


class TruthBox(NamedTuple):
    """A visible person: body box and head box (left, top, right, bottom) in pixels of the picture, cut at its edge.

    `head` is None when the head is outside the picture; `visible` is the share of the silhouette that can be seen.
    """

    person: int
    body: tuple[float, float, float, float]
    head: tuple[float, float, float, float] | None
    visible: float


class Walk(NamedTuple):
    """One crossing of the plaza by one or two people, next to each other as the camera sees them.

    They may stand still for a while on the way.
    """

    begin_s: float
    start: np.ndarray  # (x, z) in metres
    end: np.ndarray
    speed_m_s: float
    pause_at_m: float
    pause_s: float
    people: tuple[tuple[int, Look, float], ...]  # person id, look, offset to the right in metres

    @property
    def end_s(self) -> float:
        return self.begin_s + float(np.hypot(*(self.end - self.start))) / self.speed_m_s + self.pause_s

    def travelled_m(self, t_s: float) -> tuple[float, bool]:
        """(way covered, whether walking) at a time within the walk."""
        ahead_m = (t_s - self.begin_s) * self.speed_m_s
        if ahead_m <= self.pause_at_m:
            return ahead_m, True
        return max(self.pause_at_m, ahead_m - self.pause_s * self.speed_m_s), ahead_m > self.pause_at_m + (
            self.pause_s * self.speed_m_s
        )


@dataclass
class Lane:
    """An endless sequence of walks, one after another, by the same number of people."""

    rng: np.random.Generator
    members: int
    first_person: int
    walks: list[Walk] = field(default_factory=list)

    def at(self, t_s: float, camera: Camera, things) -> Walk:
        while not self.walks or self.walks[-1].end_s <= t_s:
            self.walks.append(self._next_walk(camera, things))
        return next(walk for walk in self.walks if walk.end_s > t_s)

    def _next_walk(self, camera, things):
        speed_m_s = float(np.clip(self.rng.normal(1.25, 0.25), 0.6, 1.9))
        start, end = self._free_way(camera, things)
        way_m = float(np.hypot(*(end - start)))
        pauses = self.rng.random() < 0.2
        number = self.first_person + 1000 * len(self.walks)
        gap_m = self.rng.uniform(0.6, 0.8)
        people = tuple(
            (number + nth, random_look(self.rng), (nth - (self.members - 1) / 2) * gap_m) for nth in range(self.members)
        )
        begin_s = self.walks[-1].end_s if self.walks else -float(self.rng.random()) * way_m / speed_m_s
        return Walk(
            begin_s,
            start,
            end,
            speed_m_s,
            way_m * self.rng.uniform(0.2, 0.7) if pauses else way_m,
            self.rng.uniform(3, 9) if pauses else 0.0,
            people,
        )

    def _free_way(self, camera, things):
        """(start, end) on the ground: in on one side, out on the other or below the picture, past everything."""
        best, best_gap_m = None, -np.inf
        for _ in range(25):
            depths_m = camera.nearest_m * (0.93 * FAR_M / camera.nearest_m) ** self.rng.random(2)
            side = self.rng.choice([-1.0, 1.0])
            start, end = (
                np.array([sign * (camera.half_width_m(z_m) + 0.8), z_m]) for sign, z_m in zip((-side, side), depths_m)
            )
            if self.rng.random() < 0.14:
                exit_m = EXIT * camera.nearest_m
                end = np.array([self.rng.uniform(-1, 1) * camera.half_width_m(exit_m), exit_m])
            if self.rng.random() < 0.5:
                start, end = end, start
            gap_m = min((_clearance_m(thing, start, end) for thing in things), default=np.inf)
            if gap_m > best_gap_m:
                best, best_gap_m = (start, end), gap_m
            if gap_m > 0.5:
                break
        return best


def _clearance_m(thing, start, end):
    way = end - start
    to_thing = np.array([thing.x_m, thing.z_m]) - start
    share = np.clip(way @ to_thing / (way @ way), 0, 1)
    return float(np.hypot(*(to_thing - share * way))) - thing.radius_m


@dataclass
class Figure:
    """One drawn person of one frame; `visible` is filled in once everything nearer is drawn."""

    person: int
    z_m: float
    canvas: Canvas
    shadow: tuple[float, float]
    head: tuple[float, float, float, float]
    visible: float = 0.0


class Plaza:
    """The scene of one seed, as the fixed camera sees it in pictures of `width` x `height` pixels.

    About `people` persons walk it at any time, most of them inside the picture. `camera`: one of scene.CAMERAS.
    """

    def __init__(self, width: int = 1920, height: int = 1080, seed: int = 1, people: int = 22, camera: str = "far"):
        scene_rng = np.random.default_rng([seed, 1])
        self.camera = Camera(width, height, **CAMERAS[camera])
        self.things = furniture(self.camera, np.random.default_rng([seed, 2]))
        self.empty = background(self.camera, scene_rng)
        for thing in self.things:
            thing.canvas.over(self.empty)
        self.lanes, person = [], 0
        crowd_rng = np.random.default_rng([seed, 3])
        while person < people:
            members = min(people - person, 2 if crowd_rng.random() < 0.18 else 1)
            self.lanes.append(Lane(np.random.default_rng([seed, 4, person]), members, person))
            person += members
        self.sun_m = float(scene_rng.uniform(0.7, 1.5)), float(scene_rng.uniform(-0.5, 0.5))  # shadow of 1 m height
        grain = scene_rng.normal(0, 2.2, (256, 256, 1)) + scene_rng.normal(0, 0.9, (256, 256, 3))
        repeats = -(-height // 256) + 1, -(-width // 256) + 1, 1
        self.grain = np.tile(np.clip(np.rint(grain), -7, 7).astype(np.int8).view(np.uint8), repeats)

    def frame(self, t_seconds: float) -> tuple[np.ndarray, list[TruthBox]]:
        """(picture uint8 [H, W, 3] RGB, truth of it, nearest person last) at a time from the clip's start."""
        picture, figures = self.render(t_seconds)
        return picture, [self._truth(figure) for figure in figures if figure.visible >= VISIBLE_SHARE]

    def render(self, t_seconds: float) -> tuple[np.ndarray, list[Figure]]:
        """(picture, every figure drawn whether it can be seen or not), far to near."""
        figures = sorted(self._figures(t_seconds), key=lambda figure: -figure.z_m)
        picture = self.empty.copy()
        for figure in figures:
            x_m, height_m = figure.shadow
            _cast_shadow(self.camera, picture, x_m, height_m, figure.z_m, self.sun_m)
        owner = np.zeros(picture.shape[:2], np.uint16)  # 0: nobody, k: figure k - 1
        waiting = list(self.things)
        for number, figure in enumerate(figures, start=1):
            while waiting and waiting[0].z_m > figure.z_m:
                self._stand(waiting.pop(0), picture, owner)
            figure.canvas.over(picture)
            _own(owner, figure.canvas, number)
        for thing in waiting:
            self._stand(thing, picture, owner)
        for number, figure in enumerate(figures, start=1):
            figure.visible = _visible_share(owner, figure.canvas, number)
        rng = np.random.default_rng(round(t_seconds * 1000))
        down, right = rng.integers(0, 256, 2)
        np.clip(picture, 8, 247, out=picture)
        # The grain is signed and kept as uint8: the sum wraps to the right value.
        picture += self.grain[down : down + picture.shape[0], right : right + picture.shape[1]]
        return picture, figures

    @staticmethod
    def _stand(thing, picture, owner):
        """Draws a thing again over the people it hides; otherwise it is in the background already."""
        window = thing.canvas.clipped(picture.shape)
        if window and owner[window[0]].any():
            thing.canvas.over(picture)
            _own(owner, thing.canvas, 0)

    def _figures(self, t_s):
        for lane in self.lanes:
            walk = lane.at(t_s, self.camera, self.things)
            way_m, walking = walk.travelled_m(t_s)
            heading = (walk.end - walk.start) / np.hypot(*(walk.end - walk.start))
            for person, look, offset_m in walk.people:
                x_m, z_m = walk.start + heading * way_m + np.array([1.0, 0.35]) * offset_m
                z_m = max(float(z_m), CLOSEST * self.camera.nearest_m)
                phase_rad = 2 * np.pi * way_m / stride_m(look, walk.speed_m_s) + person
                canvas, head = draw_figure(
                    self.camera,
                    look,
                    float(x_m),
                    z_m,
                    float(np.arctan2(*heading)),
                    phase_rad,
                    walk.speed_m_s if walking else 0.0,
                )
                yield Figure(person, z_m, canvas, (float(x_m), look.height_m), head)

    def _truth(self, figure):
        width_px, height_px = self.camera.width_px, self.camera.height_px
        left, top, right, bottom = silhouette_box(figure.canvas)
        body = max(left, 0), max(top, 0), min(right, width_px), min(bottom, height_px)
        left, top, right, bottom = figure.head
        head = max(left, 0), max(top, 0), min(right, width_px), min(bottom, height_px)
        inside = head[0] < head[2] and head[1] < head[3]
        return TruthBox(figure.person, body, head if inside else None, figure.visible)


def silhouette_box(canvas: Canvas) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in picture pixels of what the canvas covers, outside the picture too."""
    solid = canvas.planes[3] > 0.5
    columns, rows = np.flatnonzero(solid.any(0)), np.flatnonzero(solid.any(1))
    return (
        canvas.left_px + int(columns[0]),
        canvas.top_px + int(rows[0]),
        canvas.left_px + int(columns[-1]) + 1,
        canvas.top_px + int(rows[-1]) + 1,
    )


def _own(owner, canvas, number):
    window = canvas.clipped(owner.shape)
    if window:
        owner[window[0]][canvas.planes[3][window[1]] > 0.5] = number


def _visible_share(owner, canvas, number):
    window = canvas.clipped(owner.shape)
    if window is None:
        return 0.0
    seen, drawn = owner[window[0]] == number, canvas.planes[3] > 0.5
    return float(seen.sum()) / max(1.0, float(drawn.sum()))


def _cast_shadow(camera, picture, x_m, height_m, z_m, sun_m):
    """Darken the ground from the feet along the sun's direction, softer and fainter with the distance."""
    x, y = camera.project(x_m, 0, z_m)
    scale, squash = camera.px_per_m(z_m), camera.height_m / z_m
    reach_x, reach_z = height_m * sun_m[0], height_m * sun_m[1]
    left, right = int(x - 0.6 * scale), int(x + (reach_x + 0.6) * scale) + 1
    top = int(y - (max(reach_z, 0) + 0.5) * scale * squash)
    bottom = int(y + (max(-reach_z, 0) + 0.5) * scale * squash) + 1
    left, right, top, bottom = max(left, 0), min(right, camera.width_px), max(top, 0), min(bottom, camera.height_px)
    if left >= right or top >= bottom:
        return
    ground_x = ((np.arange(left, right, dtype=np.float32) + 0.5 - x) / scale)[None, :]
    ground_z = ((y - np.arange(top, bottom, dtype=np.float32) - 0.5) / (scale * squash))[:, None]
    share = np.clip((ground_x * reach_x + ground_z * reach_z) / (reach_x**2 + reach_z**2), 0, 1)
    away_m = np.hypot(ground_x - share * reach_x, ground_z - share * reach_z)
    blur_m = 0.1 + 0.25 * share
    dark = 0.42 * (1 - 0.55 * share) * np.clip((0.24 + blur_m - away_m) / (2 * blur_m), 0, 1)
    region = picture[top:bottom, left:right]
    np.multiply(region, (1 - dark)[..., None], out=region, casting="unsafe")
