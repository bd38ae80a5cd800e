"""The empty plaza: camera, paving, buildings, and the things that stand on it and hide people."""

from dataclasses import dataclass

import numpy as np

from peoplecounter.deploy.demo.raster import Canvas

FAR_M = 43.0  # the paving's far edge
WALL_M = 45.0
WALLS = ((188, 160, 128), (170, 164, 156), (150, 120, 100), (196, 184, 160), (140, 144, 150))


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera with a raised lens, looking along +z; x goes right.

    A picture of another width is the same view with other pixels.
    """

    width_px: int
    height_px: int
    height_m: float = 5.0  # above the ground
    horizon: float = 121 / 1920  # from the picture's top, as a share of its width
    nearest_m: float = 9.0  # where people walk, but for those who walk out of the picture at its bottom

    @property
    def focal_px(self) -> float:
        return 1500 / 1920 * self.width_px

    @property
    def horizon_px(self) -> float:
        return self.horizon * self.width_px

    @property
    def near_m(self) -> float:
        """The ground at the bottom of the picture."""
        return self.height_m * self.focal_px / (self.height_px - self.horizon_px)

    def px_per_m(self, z_m: float) -> float:
        return self.focal_px / z_m

    def project(self, x_m: float, up_m: float, z_m: float):
        """(x, y) in picture pixels of a point `up_m` above the ground."""
        scale = self.focal_px / z_m
        return self.width_px / 2 + x_m * scale, self.horizon_px + (self.height_m - up_m) * scale

    def half_width_m(self, z_m: float) -> float:
        """Half of what the picture shows of the ground at depth `z_m`."""
        return 0.5 * self.width_px / self.focal_px * z_m


CAMERAS = {  # what differs from the first: a yard from a first floor, a shop from its ceiling, a door at eye level
    "far": {},
    "middle": {"height_m": 3.0, "horizon": 0.1, "nearest_m": 4.5},
    "near": {"height_m": 1.7, "horizon": 0.17, "nearest_m": 2.0},
}


@dataclass(frozen=True)
class Thing:
    """Something that stands on the plaza: its picture, its depth and the ground it takes."""

    canvas: Canvas
    x_m: float
    z_m: float
    radius_m: float


def background(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3]: sky-lit buildings above, paving with tiles, stains and broad shadows below."""
    picture = np.empty((camera.height_px, camera.width_px, 3), np.uint8)
    edge_px = int(camera.project(0, 0, FAR_M)[1])
    picture[:edge_px] = 150
    stone = np.array([[176, 166, 152], [158, 158, 158], [184, 172, 160], [150, 146, 136]][rng.integers(4)], np.float32)
    stone *= rng.uniform(0.82, 1.1)
    tones = rng.normal(1, 0.035, (64, 64)).astype(np.float32)
    soft = _ground_light(camera, edge_px, rng)
    slab_m, every = float(rng.choice([0.5, 0.6, 0.8])), int(rng.choice([6, 8, 10]))
    for top in range(edge_px, camera.height_px, 256):
        rows = np.arange(top, min(top + 256, camera.height_px), dtype=np.float32)
        z_m = (camera.height_m * camera.focal_px / (rows + 0.5 - camera.horizon_px))[:, None]
        pixel_x_m, pixel_z_m = z_m / camera.focal_px, z_m**2 / (camera.focal_px * camera.height_m)
        x_m = (np.arange(camera.width_px, dtype=np.float32)[None, :] + 0.5 - camera.width_px / 2) * pixel_x_m
        tone = _paving(x_m, z_m, pixel_x_m, pixel_z_m, tones, slab_m, every)
        tone *= soft[top - edge_px : top - edge_px + len(rows)]
        tone += rng.normal(0, 0.022, tone.shape).astype(np.float32)
        picture[top : top + len(rows)] = np.clip(tone[..., None] * stone, 10, 242)
    _buildings(camera, rng, picture)
    _litter(camera, rng, picture)
    return picture


def _paving(x_m, z_m, pixel_x_m, pixel_z_m, tones, slab_m, every):
    """Brightness of slabs with seams, and of dark bands every so many slabs; seams are as strong as pixels resolve."""
    x, z = (x_m + 500) / slab_m, z_m / slab_m
    column, row = np.floor(x).astype(np.int32), np.floor(z).astype(np.int32)
    tone = tones[row % 64, (column + 7 * (row % 2)) % 64]
    fade = np.clip(0.5 * slab_m / pixel_z_m, 0, 1)
    tone = 1 + (tone - 1) * fade
    banded = (column % every == 0) | (row % every == 0)
    tone = np.where(banded, tone * (1 - 0.16 * fade), tone * (1 - 0.03 * (1 - fade)))
    for share, pixel_m in ((x - column, pixel_x_m), (z - row, pixel_z_m)):
        away_m = np.minimum(share, 1 - share) * slab_m
        seam = np.clip((0.009 - away_m) / pixel_m + 0.5, 0, 1) * np.minimum(1, 0.018 / pixel_m)
        tone = tone * (1 - 0.3 * seam)
    return tone.astype(np.float32)


def _ground_light(camera, edge_px, rng):
    """float32 [rows below the far edge, W]: stains, worn patches and broad light, made small and enlarged."""
    rows, columns = camera.height_px - edge_px, camera.width_px
    v = np.linspace(0, 1, 160, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, 320, dtype=np.float32)[None, :]
    z_m = camera.height_m * camera.focal_px / (edge_px + v * rows - camera.horizon_px)
    x_m = x * camera.half_width_m(1.0) * z_m
    light = 0.9 + 0.12 * v + rng.uniform(-0.09, 0.09) * x - 0.08 * x * x
    for _ in range(40):  # stains and worn patches
        spot_z = camera.near_m * (FAR_M / camera.near_m) ** rng.random()
        spot_x, size_m = rng.uniform(-1, 1) * camera.half_width_m(spot_z), rng.uniform(0.25, 2.2)
        squared = ((x_m - spot_x) ** 2 + 0.6 * (z_m - spot_z) ** 2) / size_m**2
        light = light * (1 + rng.normal(-0.03, 0.06) * np.exp(-squared))
    reach_m = rng.uniform(26, 40)  # the buildings' shadow
    light = light * (1 - 0.22 / (1 + np.exp(-(z_m - reach_m - 0.12 * x_m * rng.uniform(-1, 1)) * 1.5)))
    return _enlarge(light.astype(np.float32), rows, columns)


def _enlarge(small, rows, columns):
    """Bilinear enlargement of float32 [h, w] to [rows, columns]."""
    for axis, size in ((0, rows), (1, columns)):
        at = np.linspace(0, small.shape[axis] - 1.001, size)
        low = at.astype(np.int32)
        share = (at - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        small = np.take(small, low, axis) * (1 - share) + np.take(small, low + 1, axis) * share
    return small


def _buildings(camera, rng, picture):
    """House fronts along the far side, from left to right."""
    ground_px = camera.project(0, 0, FAR_M)[1]
    canvas = Canvas(0, 0, camera.width_px, ground_px)
    scale = camera.px_per_m(WALL_M)
    left_m, end_m = -camera.half_width_m(WALL_M), camera.half_width_m(WALL_M)
    while left_m < end_m:
        width_m = rng.uniform(7, 12)
        wall = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.75, 1.05)

        def rect(x0_m, x1_m, low_m, high_m, colour, fall=0.12, left_m=left_m):
            x0, bottom = camera.project(left_m + x0_m, low_m, WALL_M)
            x1, top = camera.project(left_m + x1_m, high_m, WALL_M)
            canvas.quad(x0, top, x1, bottom, colour, fall)

        rect(0, width_m, -2, 12, tuple(wall))
        rect(0, width_m, 3.5, 3.75, tuple(wall * 0.8))
        awning = tuple(rng.uniform(60, 190, 3))
        bays = int(width_m // 2.4)
        for bay in range(bays):
            middle_m = (bay + 0.5) * width_m / bays
            glass = tuple(np.array((70, 84, 96)) * rng.uniform(0.6, 1.3))
            rect(middle_m - 0.95, middle_m + 0.95, 0.5, 2.9, glass, 0.5)
            rect(middle_m - 1.1, middle_m + 1.1, 2.7, 3.2, awning)
            for floor_m in (4.3, 7.2):
                rect(middle_m - 0.62, middle_m + 0.62, floor_m - 0.1, floor_m + 1.9, tuple(wall * 1.12))
                rect(middle_m - 0.5, middle_m + 0.5, floor_m, floor_m + 1.8, glass, 0.5)
        left_m += width_m
    canvas.quad(0, ground_px - 0.5 * scale, camera.width_px, ground_px + 2, (118, 114, 108), 0.3)
    canvas.over(picture)


def _litter(camera, rng, picture):
    """What lies flat or sits on the ground and is no person: drains, chewing gum, pigeons."""
    for kind, count in (("gum", 70), ("drain", 3), ("pigeon", 12)):
        for _ in range(count):
            z_m = camera.near_m * 1.05 * (FAR_M / camera.near_m / 1.1) ** rng.random()
            x_m = rng.uniform(-1, 1) * camera.half_width_m(z_m)
            x, y = camera.project(x_m, 0, z_m)
            scale, squash = camera.px_per_m(z_m), camera.height_m / z_m
            canvas = Canvas(x - scale, y - scale, x + scale, y + scale)
            if kind == "gum":
                canvas.ellipse((x, y), 0.03 * scale, 0.03 * scale * squash, (96, 92, 88))
            elif kind == "drain":
                canvas.ellipse((x, y), 0.36 * scale, 0.36 * scale * squash, (70, 70, 72))
                canvas.ellipse((x, y), 0.31 * scale, 0.31 * scale * squash, (98, 97, 96))
            else:
                side = rng.choice([-1, 1])
                canvas.ellipse((x + 0.05 * scale, y), 0.16 * scale, 0.06 * scale, (78, 74, 70))
                canvas.ellipse((x, y - 0.11 * scale), 0.14 * scale, 0.085 * scale, (104, 108, 118))
                canvas.ellipse((x + side * 0.13 * scale, y - 0.21 * scale), 0.05 * scale, 0.055 * scale, (66, 80, 84))
            canvas.planes *= 0.45 if kind == "gum" else 1.0
            canvas.over(picture)


def furniture(camera: Camera, rng: np.random.Generator) -> list[Thing]:
    """Things on the plaza, at least 2 m apart, with their ground shadow drawn in."""
    kinds = ["planter"] * 3 + ["bench"] * 3 + ["lamp"] * 3 + ["bin"] * 2 + ["bollard"] * 5 + ["tree"] * 2
    things: list[Thing] = []
    for kind in kinds:
        for _ in range(30):
            z_m = 10.5 * (38 / 10.5) ** rng.random()
            x_m = rng.uniform(-0.9, 0.9) * camera.half_width_m(z_m)
            if all(np.hypot(x_m - other.x_m, z_m - other.z_m) > 2 + other.radius_m for other in things):
                things.append(_thing(camera, kind, x_m, z_m, rng))
                break
    return sorted(things, key=lambda thing: -thing.z_m)


def _thing(camera, kind, x_m, z_m, rng):
    x, y = camera.project(x_m, 0, z_m)
    m = camera.px_per_m(z_m)
    squash = camera.height_m / z_m
    reach_m, tall_m, radius_m = {
        "planter": (1.3, 1.9, 0.9),
        "bench": (1.2, 1.1, 0.9),
        "lamp": (0.5, 5.6, 0.3),
        "bin": (0.5, 1.2, 0.4),
        "bollard": (0.4, 1.1, 0.25),
        "tree": (2.2, 6.2, 0.5),
    }[kind]
    canvas = Canvas(x - reach_m * m, y - tall_m * m, x + (reach_m + 0.6) * m, y + 0.7 * m)
    deep_px = max(1.0, (radius_m * 0.55 + 0.1) * m * squash)
    canvas.ellipse((x + 0.3 * m, y), (radius_m + 0.25) * m, deep_px, (24, 24, 28))
    canvas.planes *= 0.5  # the shadow it stands in
    canvas.planes[:3] *= 0.5
    draw = {"planter": _planter, "bench": _bench, "lamp": _lamp, "bin": _bin, "bollard": _bollard, "tree": _tree}[kind]
    draw(canvas, x, y, m, squash, rng)
    return Thing(canvas, x_m, z_m, radius_m)


def _planter(canvas, x, y, m, squash, rng):
    half, high = 0.85 * m, 0.55 * m
    stone = tuple(np.array((150, 140, 128)) * rng.uniform(0.7, 1.1))
    canvas.quad(x - half, y - high, x + half, y + 0.12 * m, stone, 0.3)
    canvas.quad(
        x - half - 0.04 * m,
        y - high - 0.5 * m * squash,
        x + half + 0.04 * m,
        y - high + 0.05 * m,
        tuple(1.1 * value for value in stone),
        0.0,
    )
    _leaves(canvas, x, y - high - 0.35 * m, 0.72 * m, 0.45 * m, rng, 90, 0.9)


def _leaves(canvas, x, y, spread_x, spread_y, rng, count, leaf):
    green = np.array([[62, 96, 48], [84, 110, 52], [52, 84, 58], [110, 104, 48]][rng.integers(4)])
    for step in range(count):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.random() ** 0.5
        spot = x + spread_x * radius * np.cos(angle), y + spread_y * radius * np.sin(angle)
        light = 0.55 + 0.5 * step / count - 0.25 * radius * np.sin(angle) + rng.normal(0, 0.06)
        size = rng.uniform(0.07, 0.17) * (spread_x + spread_y) * leaf
        canvas.ellipse(spot, size, size * rng.uniform(0.6, 0.9), tuple(np.clip(green * light, 12, 220)))


def _bench(canvas, x, y, m, squash, rng):
    wood = tuple(np.array((138, 98, 62)) * rng.uniform(0.7, 1.15))
    for leg in (-0.7, 0.7):
        canvas.quad(x + (leg - 0.04) * m, y - 0.45 * m, x + (leg + 0.04) * m, y + 0.05 * m, (52, 52, 54))
    for slat in range(3):
        low = y - 0.4 * m - slat * 0.2 * m * squash
        canvas.quad(x - 0.9 * m, low - 0.09 * m, x + 0.9 * m, low, wood)
    for slat in range(2):
        low = y - (0.66 + 0.16 * slat) * m
        canvas.quad(x - 0.9 * m, low - 0.11 * m, x + 0.9 * m, low, tuple(0.9 * value for value in wood))


def _lamp(canvas, x, y, m, squash, rng):
    canvas.capsule((x, y), (x, y - 0.4 * m), 0.12 * m, 0.09 * m, (58, 62, 62))
    canvas.capsule((x, y), (x, y - 4.9 * m), 0.065 * m, 0.045 * m, (66, 70, 70))
    canvas.capsule((x, y - 4.85 * m), (x, y - 5.0 * m), 0.14 * m, 0.12 * m, (60, 64, 64))
    canvas.ellipse((x, y - 5.2 * m), 0.24 * m, 0.26 * m, (232, 230, 220), 0.1)


def _bin(canvas, x, y, m, squash, rng):
    colour = [(52, 78, 62), (84, 86, 88), (44, 60, 92), (120, 70, 48)][rng.integers(4)]
    canvas.profile((x, y + 0.05 * m), (x, y - 0.85 * m), [0.24 * m, 0.27 * m, 0.28 * m, 0.28 * m], colour, 0.4)
    canvas.ellipse((x, y - 0.85 * m), 0.3 * m, max(0.06 * m, 0.3 * m * squash), tuple(1.2 * value for value in colour))
    canvas.ellipse((x, y - 0.85 * m), 0.17 * m, max(0.03 * m, 0.17 * m * squash), (26, 26, 28))


def _bollard(canvas, x, y, m, squash, rng):
    canvas.capsule((x, y), (x, y - 0.85 * m), 0.11 * m, 0.1 * m, (78, 78, 80), 0.4)
    canvas.quad(x - 0.105 * m, y - 0.78 * m, x + 0.105 * m, y - 0.68 * m, (206, 200, 186), 0.0)


def _tree(canvas, x, y, m, squash, rng):
    canvas.ellipse((x, y), 0.75 * m, 0.75 * m * squash, (84, 68, 54))
    canvas.capsule((x, y), (x + rng.normal(0, 0.12) * m, y - 3.4 * m), 0.17 * m, 0.1 * m, (94, 76, 60), 0.4)
    _leaves(canvas, x, y - 4.3 * m, 1.6 * m, 1.25 * m, rng, 420, 0.6)
