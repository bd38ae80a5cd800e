"""Anti-aliased shapes in small premultiplied canvases, drawn with NumPy and laid over an RGB picture.

Every shape is a signed distance in pixels, turned into coverage by a one pixel wide ramp, and shaded as a rounded body
lit from `LIGHT`. A canvas covers only the box of what is drawn on it, so the cost follows the figure, not the picture.
"""

import numpy as np

LIGHT = (-0.75, -0.65)  # towards the light, in picture axes (x right, y down)


class Canvas:
    """A box of the picture: `planes` float32 [4, H, W] holds R, G, B (0..255, premultiplied) and alpha (0..1).

    The box may reach outside the picture; `left_px`, `top_px` place it.
    """

    def __init__(self, left_px: float, top_px: float, right_px: float, bottom_px: float):
        self.left_px, self.top_px = int(np.floor(left_px)), int(np.floor(top_px))
        width_px = max(1, int(np.ceil(right_px)) - self.left_px)
        height_px = max(1, int(np.ceil(bottom_px)) - self.top_px)
        self.planes = np.zeros((4, height_px, width_px), np.float32)

    def capsule(self, start, end, start_radius_px, end_radius_px, colour, sheen=0.28):
        """A limb from `start` to `end` (x, y in picture pixels) whose radius changes linearly."""
        (ax, ay), (bx, by) = start, end
        radius_px = max(start_radius_px, end_radius_px) + 1
        window = self._window(
            min(ax, bx) - radius_px, min(ay, by) - radius_px, max(ax, bx) + radius_px, max(ay, by) + radius_px
        )
        if window is None:
            return
        box, x, y = window
        x, y = x - np.float32(ax), y - np.float32(ay)
        along_x, along_y = np.float32(bx - ax), np.float32(by - ay)
        share = np.clip((x * along_x + y * along_y) / max(along_x**2 + along_y**2, 1e-3), 0, 1)
        radius = start_radius_px + np.float32(end_radius_px - start_radius_px) * share
        x, y = x - share * along_x, y - share * along_y
        distance = np.sqrt(x * x + y * y)
        shade = 1 + np.float32(sheen) * (x * LIGHT[0] + y * LIGHT[1]) / radius
        self._lay(box, np.clip(radius - distance + 0.5, 0, 1), colour, shade)

    def ellipse(self, centre, radius_x_px, radius_y_px, colour, sheen=0.22):
        """An upright ellipse around `centre` (x, y in picture pixels)."""
        cx, cy = centre
        window = self._window(cx - radius_x_px - 1, cy - radius_y_px - 1, cx + radius_x_px + 1, cy + radius_y_px + 1)
        if window is None:
            return
        box, x, y = window
        x, y = (x - np.float32(cx)) / np.float32(radius_x_px), (y - np.float32(cy)) / np.float32(radius_y_px)
        distance = np.sqrt(x * x + y * y)
        coverage = np.clip((1 - distance) * np.float32(min(radius_x_px, radius_y_px)) + 0.5, 0, 1)
        self._lay(box, coverage, colour, 1 + np.float32(sheen) * (x * LIGHT[0] + y * LIGHT[1]))

    def profile(self, start, end, half_widths_px, colour, sheen=0.26, stripes=0.0):
        """A body turned on the axis `start`..`end`: `half_widths_px` are its half widths, evenly spaced along the axis.

        `stripes` draws that many darker bands across it.
        """
        (ax, ay), (bx, by) = start, end
        reach_px = max(half_widths_px) + 2
        window = self._window(min(ax, bx) - reach_px, min(ay, by) - 2, max(ax, bx) + reach_px, max(ay, by) + 2)
        if window is None:
            return
        box, x, y = window
        length_px = max(float(np.hypot(bx - ax, by - ay)), 1e-3)
        ux, uy = np.float32((bx - ax) / length_px), np.float32((by - ay) / length_px)
        x, y = x - np.float32(ax), y - np.float32(ay)
        along, across = x * ux + y * uy, y * ux - x * uy
        steps = max(8, int(length_px * 2))
        table = np.interp(np.linspace(0, len(half_widths_px) - 1, steps), range(len(half_widths_px)), half_widths_px)
        share = along / np.float32(length_px)
        half = table.astype(np.float32)[np.clip(share * steps, 0, steps - 1).astype(np.int32)]
        ends = np.clip(np.minimum(along, length_px - along) + 0.5, 0, 1)
        coverage = np.clip(half - np.abs(across) + 0.5, 0, 1) * ends
        turn = np.clip(across / np.maximum(half, 1), -1, 1)
        side = np.float32(np.sign(uy) * -LIGHT[0])  # which flank faces the light
        shade = 1 + np.float32(sheen) * (turn * side - np.float32(0.35) * turn * turn + np.float32(0.12))
        if stripes:
            shade = shade * np.where(np.sin(share * np.float32(stripes * 2 * np.pi)) > 0.2, np.float32(0.62), 1)
        self._lay(box, coverage, colour, shade)

    def quad(self, left_px, top_px, right_px, bottom_px, colour, fall=0.15):
        """An upright rectangle that gets darker by `fall` towards its bottom."""
        window = self._window(left_px - 1, top_px - 1, right_px + 1, bottom_px + 1)
        if window is None:
            return
        box, x, y = window
        cover_x = np.clip(np.minimum(x - left_px, right_px - x) + 0.5, 0, 1)
        cover_y = np.clip(np.minimum(y - top_px, bottom_px - y) + 0.5, 0, 1)
        shade = 1 + fall / 2 - fall * (y - top_px) / max(bottom_px - top_px, 1)
        self._lay(box, (cover_x * cover_y).astype(np.float32), colour, shade.astype(np.float32))

    def over(self, picture):
        """Lay the canvas over `picture` (uint8 [H, W, 3]), in place."""
        window = self.clipped(picture.shape)
        if window is None:
            return
        (rows, columns), (own_rows, own_columns) = window
        planes = self.planes[:, own_rows, own_columns]
        keep = 1 - planes[3]
        for channel in range(3):
            target = picture[rows, columns, channel]
            np.add(target * keep, planes[channel], out=target, casting="unsafe")

    def clipped(self, shape):
        """((rows, columns) of the picture, (rows, columns) of the canvas) where both are, or None."""
        _, height_px, width_px = self.planes.shape
        top, bottom = max(self.top_px, 0), min(self.top_px + height_px, shape[0])
        left, right = max(self.left_px, 0), min(self.left_px + width_px, shape[1])
        if top >= bottom or left >= right:
            return None
        own = slice(top - self.top_px, bottom - self.top_px), slice(left - self.left_px, right - self.left_px)
        return (slice(top, bottom), slice(left, right)), own

    def _window(self, left_px, top_px, right_px, bottom_px):
        """(box of the planes, pixel centres x [1, w], y [h, 1]) for a box given in picture pixels, or None."""
        _, height_px, width_px = self.planes.shape
        left, right = max(int(left_px) - self.left_px - 1, 0), min(int(right_px) - self.left_px + 2, width_px)
        top, bottom = max(int(top_px) - self.top_px - 1, 0), min(int(bottom_px) - self.top_px + 2, height_px)
        if left >= right or top >= bottom:
            return None
        x = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(self.left_px + 0.5)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(self.top_px + 0.5)
        return self.planes[:, top:bottom, left:right], x, y

    @staticmethod
    def _lay(box, coverage, colour, shade):
        box *= 1 - coverage
        lit = coverage * np.minimum(shade, 245 / max(*colour, 1))
        for channel in range(3):
            box[channel] += lit * np.float32(colour[channel])
        box[3] += coverage
