// Where points lie at lines. Points are [x, y]; y grows downwards.

export const rounded = (value) => Math.round(value * 10_000) / 10_000;

/** A point of the picture, as shares of its width and height, moved into it. */
export const intoFrame = (point) => point.map((value) => rounded(Math.min(1, Math.max(0, value))));

const inFrame = (point) => point.every((value) => value >= 0 && value <= 1);

/** The nearest point of a line to p, and on which side p lies: 1 right of the line's direction (y down), -1 left, 0 on it. */
export function sideOf(points, [px, py]) {
  let best = { distance: Infinity };
  for (let i = 1; i < points.length; i++) {
    const [[ax, ay], [bx, by]] = [points[i - 1], points[i]];
    const [dx, dy] = [bx - ax, by - ay];
    const length = Math.hypot(dx, dy);
    if (!length) continue;
    const share = Math.min(1, Math.max(0, ((px - ax) * dx + (py - ay) * dy) / length ** 2));
    const foot = [ax + share * dx, ay + share * dy];
    const distance = Math.hypot(px - foot[0], py - foot[1]);
    const across = (dx * (py - foot[1]) - dy * (px - foot[0])) / length;
    // at a corner two segments are equally near: the one that sees the point at the larger angle decides
    const nearer = distance < best.distance - 1e-9 || (distance < best.distance + 1e-9 && Math.abs(across) > Math.abs(best.across));
    if (nearer) best = { distance, across, foot, segment: i - 1 };
  }
  return { ...best, side: Math.abs(best.across) < 1e-9 ? 0 : Math.sign(best.across) };
}

/** An arrow from the middle of a line's longest segment to its inside, in px of a picture of width x height. */
export function arrowOf({ points, inside }, width, height, length) {
  const px = points.map(([x, y]) => [x * width, y * height]);
  let longest = 1;
  const size = (i) => Math.hypot(px[i][0] - px[i - 1][0], px[i][1] - px[i - 1][1]);
  for (let i = 2; i < px.length; i++) if (size(i) > size(longest)) longest = i;
  const [[ax, ay], [bx, by]] = [px[longest - 1], px[longest]];
  const scale = (sideOf(points, inside).side || 1) / (size(longest) || 1);
  const [nx, ny] = [-(by - ay) * scale, (bx - ax) * scale];
  const middle = [(ax + bx) / 2, (ay + by) / 2];
  const tip = [middle[0] + nx * length, middle[1] + ny * length];
  const wing = (turn) => [tip[0] - (nx + ny * turn) * length * 0.32, tip[1] - (ny - nx * turn) * length * 0.32];
  return { middle, tip, wings: [wing(0.8), wing(-0.8)] };
}

/** Where a point is added without a pointer: beyond the last one, within the picture. */
export function nextPoint(points) {
  if (!points.length) return [0.3, 0.6];
  const [x, y] = points.at(-1);
  return [x < 0.8 ? x + 0.15 : x - 0.15, points.length > 1 && y < 0.85 ? y + 0.1 : y].map(rounded);
}

/** A point beside the middle of a line: below it when the picture has space there. */
export function beside(points) {
  const { middle, tip } = arrowOf({ points, inside: [0.5, 9] }, 1, 1, 0.12);
  const other = [2 * middle[0] - tip[0], 2 * middle[1] - tip[1]];
  return (inFrame(tip) ? tip : other).map(rounded);
}

/** The point mirrored at the line; when that is outside the picture, one close to the line. */
export function otherSide(points, inside) {
  const { foot, side } = sideOf(points, inside);
  for (const share of [1, 0.5, 0.2, 0.05]) {
    const point = foot.map((value, i) => rounded(value - (inside[i] - value) * share));
    if (inFrame(point) && sideOf(points, point).side === -side) return point;
  }
  return inside;
}
