"""People of the plaza: what one looks like, how one walks, and the drawing of it.

A figure is posed in body axes (metres: forward, sideways, up), turned by its heading, and each joint is projected
through the camera: feet nearer to it stand lower in the picture and limbs hide each other in the right order.
"""

from dataclasses import dataclass

import numpy as np

from peoplecounter.deploy.demo.raster import Canvas

SKIN = ((236, 196, 168), (222, 176, 142), (198, 146, 108), (160, 110, 78), (118, 78, 54), (84, 56, 42))
HAIR = ((28, 24, 22), (52, 36, 26), (92, 62, 38), (150, 112, 66), (196, 168, 116), (150, 146, 142), (104, 46, 26))
CLOTH = (
    (34, 38, 48),
    (58, 62, 70),
    (104, 108, 112),
    (196, 196, 190),
    (232, 228, 220),
    (30, 52, 96),
    (62, 98, 150),
    (120, 30, 36),
    (186, 52, 44),
    (44, 84, 60),
    (108, 128, 74),
    (206, 166, 62),
    (222, 116, 52),
    (126, 84, 120),
    (224, 168, 176),
    (140, 106, 72),
    (96, 66, 46),
    (52, 120, 126),
    (176, 150, 118),
)
TROUSERS = (
    (32, 36, 46),
    (44, 58, 92),
    (70, 92, 132),
    (92, 90, 86),
    (150, 132, 104),
    (186, 176, 158),
    (52, 44, 40),
    (28, 28, 30),
    (74, 78, 58),
)
SHOES = ((34, 30, 28), (84, 56, 38), (214, 212, 208), (120, 40, 38), (64, 70, 82))


@dataclass(frozen=True)
class Look:
    """One person's body and clothes; colours are RGB 0..255."""

    height_m: float
    build: float
    skin: tuple
    hair: tuple
    top: tuple
    bottom: tuple
    shoes: tuple
    bag: tuple
    garment: str  # "shirt", "coat" or "dress"
    carries: str  # "nothing", "backpack", "handbag" or "tote"
    hair_style: str  # "short", "long", "bun", "hat" or "bald"
    bare: tuple  # (forearms, shins) uncovered
    stripes: float


def random_look(rng: np.random.Generator) -> Look:
    """A person drawn from the town's mix: adults mostly, some children."""
    child = rng.random() < 0.08
    height_m = rng.uniform(1.08, 1.45) if child else rng.normal(1.71, 0.085)
    dye = rng.uniform(0.8, 1.15)
    return Look(
        height_m=float(np.clip(height_m, 1.05, 1.98)),
        build=float(np.clip(rng.normal(1.02, 0.1), 0.84, 1.32)),
        skin=SKIN[rng.integers(len(SKIN))],
        hair=HAIR[rng.integers(len(HAIR))],
        top=tuple(min(238.0, dye * value) for value in CLOTH[rng.integers(len(CLOTH))]),
        bottom=TROUSERS[rng.integers(len(TROUSERS))],
        shoes=SHOES[rng.integers(len(SHOES))],
        bag=CLOTH[rng.integers(len(CLOTH))],
        garment=str(rng.choice(["shirt", "coat", "dress"], p=[0.62, 0.24, 0.14])),
        carries=str(rng.choice(["nothing", "backpack", "handbag", "tote"], p=[0.5, 0.2, 0.16, 0.14])),
        hair_style=str(rng.choice(["short", "long", "bun", "hat", "bald"], p=[0.42, 0.3, 0.1, 0.12, 0.06])),
        bare=(bool(rng.random() < 0.4), bool(rng.random() < 0.3)),
        stripes=float(rng.integers(4, 9)) if rng.random() < 0.14 else 0.0,
    )


def stride_m(look: Look, speed_m_s: float) -> float:
    """Ground covered by one whole gait cycle (two steps), so that feet do not slide."""
    return 4 * 0.49 * look.height_m * np.sin(_swing_rad(speed_m_s))


def _swing_rad(speed_m_s: float) -> float:
    return 0.2 + 0.17 * min(speed_m_s, 1.9) / 1.4


def _pose(look: Look, phase_rad: float, speed_m_s: float) -> dict:
    """Joints in body axes, metres: name -> (forward, sideways, up); sides are -1 and +1."""
    tall = look.height_m
    swing = _swing_rad(speed_m_s) if speed_m_s > 0 else 0.03
    joints: dict = {}
    for side in (-1, 1):
        phase = phase_rad + (0 if side < 0 else np.pi)
        thigh = swing * np.sin(phase) + 0.04
        shin = thigh - 0.06 - 1.5 * swing * max(0.0, np.cos(phase))
        knee = np.array([np.sin(thigh), 0, -np.cos(thigh)]) * 0.245 * tall
        ankle = knee + np.array([np.sin(shin), 0, -np.cos(shin)]) * 0.245 * tall
        toe = ankle + np.array([np.cos(shin), 0.1 * side, np.sin(shin) - 0.12]) * 0.1 * tall
        hip = np.array([0, side * 0.05 * tall * look.build, 0.0])
        joints |= {("hip", side): hip, ("knee", side): hip + knee}
        joints |= {("ankle", side): hip + ankle, ("toe", side): hip + toe}
    lift = 0.035 * tall - min(joints["ankle", -1][2], joints["ankle", 1][2])
    for joint in joints.values():
        joint[2] += lift
    lean = 0.025 * tall * min(speed_m_s, 1.5)
    for side in (-1, 1):
        arm = -0.85 * swing * np.sin(phase_rad + (0 if side < 0 else np.pi))
        fore = arm + 0.22 + 0.5 * max(0.0, arm)
        shoulder = np.array([lean, side * 0.097 * tall * look.build**0.5, lift + 0.272 * tall])
        elbow = shoulder + np.array([np.sin(arm), side * 0.12, -np.cos(arm)]) * 0.168 * tall
        hand = elbow + np.array([np.sin(fore), -side * 0.04, -np.cos(fore)]) * 0.15 * tall
        joints |= {("shoulder", side): shoulder, ("elbow", side): elbow, ("hand", side): hand}
    joints["seat"] = np.array([0, 0, lift - 0.02 * tall])
    joints["chest"] = np.array([lean, 0, lift + 0.31 * tall])
    joints["hem"] = np.array([0, 0, lift - 0.2 * tall])
    joints["neck"] = np.array([lean * 1.1, 0, lift + 0.33 * tall])
    joints["head"] = np.array([lean * 1.3 + 0.012 * tall, 0, lift + 0.405 * tall])
    joints["back"] = np.array([lean - 0.09 * tall * look.build, 0, lift + 0.2 * tall])
    return joints


def draw_figure(camera, look: Look, x_m: float, z_m: float, heading_rad: float, phase_rad: float, speed_m_s: float):
    """(canvas, head box (l, t, r, b) in picture pixels) of a person standing at `x_m`, `z_m` on the ground.

    Heading 0 walks away from the camera, a quarter turn walks to the right.
    """
    forward = np.array([np.sin(heading_rad), np.cos(heading_rad)])
    sideways = np.array([np.cos(heading_rad), -np.sin(heading_rad)])
    joints = _pose(look, phase_rad, speed_m_s)
    spots, depths_m = {}, {}
    for name, (ahead, beside, up) in joints.items():
        dx_m, dz_m = ahead * forward + beside * sideways
        spots[name] = camera.project(x_m + dx_m, up, z_m + dz_m)
        depths_m[name] = dz_m
    unit_px = camera.px_per_m(z_m) * look.height_m
    xs, ys = np.array(list(spots.values())).T
    pad_px = 0.12 * unit_px * max(1.0, look.build) + 2
    canvas = Canvas(xs.min() - pad_px, ys.min() - pad_px, xs.max() + pad_px, ys.max() + pad_px)
    parts = _legs(look, spots, depths_m, unit_px) + _arms(look, spots, depths_m, unit_px)
    parts += _body(look, spots, depths_m, unit_px, abs(sideways[0]), abs(forward[0]))
    for _, draw in sorted(parts, key=lambda part: -part[0]):
        draw(canvas)
    return canvas, _head(canvas, look, spots, unit_px, forward)


def _dim(colour, share):
    return tuple(share * value for value in colour)


def _legs(look, spots, depths_m, unit_px):
    """[(depth in m, draw(canvas))] of both legs, the far one darker."""
    parts = []
    far_side = 1 if depths_m["knee", 1] > depths_m["knee", -1] else -1
    thick = unit_px * look.build
    for side in (-1, 1):
        light = 0.8 if side == far_side else 1.0
        thigh = look.skin if look.garment == "dress" and look.bare[1] else look.bottom
        shin = look.skin if look.bare[1] else look.bottom

        def draw(canvas, side=side, light=light, thigh=thigh, shin=shin):
            ankle, toe = spots["ankle", side], spots["toe", side]
            canvas.capsule(spots["knee", side], ankle, 0.031 * thick, 0.021 * thick, _dim(shin, light))
            canvas.capsule(
                (ankle[0], ankle[1] + 0.012 * unit_px), toe, 0.024 * unit_px, 0.018 * unit_px, _dim(look.shoes, light)
            )
            canvas.capsule(spots["hip", side], spots["knee", side], 0.049 * thick, 0.034 * thick, _dim(thigh, light))

        parts.append((max(0.005, 0.04 + 0.2 * depths_m["knee", side]), draw))  # between the far arm and the torso
    return parts


def _arms(look, spots, depths_m, unit_px):
    """[(depth in m, draw(canvas))] of both arms, with what the right hand carries."""
    parts = []
    thick = unit_px * look.build**0.5 * (1.15 if look.garment == "coat" else 1)
    far_side = 1 if depths_m["shoulder", 1] > depths_m["shoulder", -1] else -1
    for side in (-1, 1):
        sleeve = _dim(look.top, 0.8 if side == far_side else 0.94)
        fore = look.skin if look.bare[0] and look.garment != "coat" else sleeve

        def draw(canvas, side=side, sleeve=sleeve, fore=fore):
            elbow, hand = spots["elbow", side], spots["hand", side]
            if side > 0 and look.carries in ("handbag", "tote"):
                size = 0.075 if look.carries == "handbag" else 0.1
                bag = (hand[0], hand[1] + 0.9 * size * unit_px)
                canvas.capsule(hand, bag, 0.006 * unit_px, 0.006 * unit_px, _dim(look.bag, 0.6))
                canvas.profile(
                    (bag[0], bag[1] - 0.3 * size * unit_px),
                    (bag[0], bag[1] + size * unit_px),
                    [size * unit_px * share for share in (0.55, 0.72, 0.8, 0.8, 0.7)],
                    look.bag,
                )
            canvas.ellipse(hand, 0.02 * unit_px, 0.025 * unit_px, look.skin)
            canvas.capsule(elbow, hand, 0.025 * thick, 0.018 * thick, fore)
            canvas.capsule(spots["shoulder", side], elbow, 0.032 * thick, 0.026 * thick, sleeve)

        parts.append((depths_m["elbow", side] - 0.01, draw))
    return parts


def _body(look, spots, depths_m, unit_px, across, along):
    """[(depth in m, draw(canvas))] of torso, coat or dress, and backpack; `across`, `along` say how it is turned."""

    def widths(sideways, deep):
        return [unit_px * look.build * float(np.hypot(s * across, d * along)) for s, d in zip(sideways, deep)]

    def torso(canvas):
        canvas.capsule(spots["chest"], spots["neck"], 0.034 * unit_px, 0.03 * unit_px, _dim(look.skin, 0.85))
        if look.garment == "dress":
            canvas.profile(
                spots["seat"],
                spots["hem"],
                widths((0.086, 0.1, 0.115, 0.13), (0.07, 0.09, 0.11, 0.12)),
                look.top,
                stripes=look.stripes * 0.6,
            )
        if look.garment == "coat":
            canvas.profile(
                spots["seat"],
                spots["hem"],
                widths((0.1, 0.104, 0.108, 0.112), (0.082, 0.088, 0.094, 0.1)),
                _dim(look.top, 0.94),
            )
        canvas.capsule(spots["shoulder", -1], spots["shoulder", 1], 0.034 * unit_px, 0.034 * unit_px, look.top)
        bulk = 1.12 if look.garment == "coat" else 1.0
        shape = widths(
            (0.085, 0.088, 0.08, 0.078, 0.088, 0.1, 0.112, 0.116, 0.095, 0.045),
            (0.062, 0.07, 0.066, 0.06, 0.062, 0.068, 0.068, 0.06, 0.048, 0.035),
        )
        canvas.profile(spots["seat"], spots["chest"], [bulk * width for width in shape], look.top, stripes=look.stripes)

    parts = [(0.0, torso)]
    if look.carries == "backpack":
        x, y = spots["back"]

        def pack(canvas):
            shape = widths((0.06, 0.085, 0.09, 0.088, 0.085, 0.065), (0.05, 0.062, 0.06, 0.055, 0.05, 0.035))
            canvas.profile((x, y + 0.11 * unit_px), (x, y - 0.11 * unit_px), shape, look.bag)

        parts.append((depths_m["back"] * 1.5, pack))
    return parts


def _head(canvas, look, spots, unit_px, forward):
    """Draw the head and return its box (l, t, r, b) in picture pixels."""
    x, y = spots["head"]
    toward = -forward[1]  # 1 looks into the camera, -1 away from it
    shift_px = -0.02 * unit_px * forward[0]
    width_px, height_px = 0.047 * unit_px * (1 + 0.1 * abs(forward[0])), 0.062 * unit_px

    def long_hair():
        canvas.profile(
            (x + shift_px, y - 0.03 * unit_px),
            (x + shift_px, y + 0.1 * unit_px),
            [unit_px * share for share in (0.045, 0.055, 0.056, 0.052, 0.035)],
            look.hair,
        )

    if look.hair_style == "long" and toward > 0:
        long_hair()
    canvas.ellipse((x, y), width_px, height_px, look.skin)
    if look.hair_style == "bald":
        return x - width_px, y - height_px, x + width_px, y + height_px
    crown = _dim(look.bag, 0.9) if look.hair_style == "hat" else look.hair
    drop = 0.020 - 0.014 * toward  # how far the hair comes down, most seen from behind
    canvas.ellipse((x + shift_px, y - (0.028 - drop * 0.6) * unit_px), width_px * 1.1, (0.04 + drop) * unit_px, crown)
    if toward > -0.35:
        canvas.ellipse(
            (x + 0.9 * width_px * forward[0] * 0.45, y + 0.012 * unit_px),
            width_px * (0.62 + 0.2 * toward),
            0.042 * unit_px,
            look.skin,
        )
    if look.hair_style == "bun":
        canvas.ellipse((x + 1.9 * shift_px, y - 0.06 * unit_px), 0.026 * unit_px, 0.024 * unit_px, look.hair)
    if look.hair_style == "long" and toward <= 0:
        long_hair()
    if look.hair_style == "hat":
        canvas.capsule(
            (x - 1.25 * width_px, y - 0.022 * unit_px),
            (x + 1.25 * width_px, y - 0.022 * unit_px),
            0.009 * unit_px,
            0.009 * unit_px,
            _dim(crown, 0.85),
        )
    return x - 1.1 * width_px, y - 0.07 * unit_px, x + 1.1 * width_px, y + height_px
