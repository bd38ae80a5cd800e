// Draws a picture with its boxes, tails, lines, zones, views and heat map into one canvas.
import { number, shortId } from "./format.js";
import { arrowOf } from "./geometry.js";

const COLOURS = { box: "#7dffcf", unsure: "#e9f2ee", line: "#ffc24b", zone: "#9cc4ff", view: "#ff9ce0", dark: "rgb(6 12 16 / 0.72)", ground: "#0d1316", grid: "#1c272c" };
const TAIL_S = 3;

/** Width over height as it is to be shown. */
export const aspectOf = ({ width, height, pixel_aspect }) => (width ? (width * (pixel_aspect || 1)) / height : 16 / 9);

/** How wide a picture a canvas needs, px: in steps, so that it seldom changes. */
export function widthFor(canvas, most = 1920) {
  const px = canvas.clientWidth * Math.min(2, devicePixelRatio);
  return Math.min(most, Math.max(320, Math.ceil(px / 160) * 160));
}

/** Draws one live message. `layers`: { boxes, ids, tails, shapes, labels, views, heat }, each false or what it draws. */
export function paint(canvas, head, picture, layers) {
  const context = canvas.getContext("2d", { alpha: false });
  const view = fitCanvas(canvas, head);
  if (picture) drawPicture(context, view, picture, head.video);
  else drawGrid(context, view, head.video);
  if (layers.heat) drawHeat(context, view, layers.heat);
  if (layers.views) drawViews(context, view, layers.views);
  if (layers.shapes) {
    for (const [name, zone] of Object.entries(head.zones)) drawZone(context, view, name, zone, layers.labels);
    for (const [name, line] of Object.entries(head.lines)) drawLine(context, view, name, line, layers.labels);
  }
  if (layers.tails) drawTails(context, view, layers.tails);
  if (layers.boxes) drawBoxes(context, view, head);
  if (layers.ids) drawIds(context, view, head);
}

/** What drawing needs to know, in px of the canvas: its size, units of stroke and text, and of a px of the frame. */
function fitCanvas(canvas, head) {
  const ratio = Math.min(2, devicePixelRatio);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const unit = ratio * Math.min(2.2, Math.max(0.8, canvas.clientWidth / 760));
  const font = ratio * Math.min(20, Math.max(11, canvas.clientWidth / 80));
  return { width, height, unit, font, x: width / head.width, y: height / head.height };
}

function drawPicture(context, view, picture, video) {
  context.imageSmoothingEnabled = video !== "pixelated";
  context.imageSmoothingQuality = "medium";
  context.drawImage(picture, 0, 0, view.width, view.height);
}

const WITHOUT = { off: "Pictures are off", background: "Learning the place: about two minutes" }; // words on the grid

function drawGrid(context, view, video) {
  const { width, height, unit } = view;
  context.fillStyle = COLOURS.ground;
  context.fillRect(0, 0, width, height);
  context.beginPath();
  for (let i = 1; i < 16; i++) {
    context.moveTo((i * width) / 16, 0);
    context.lineTo((i * width) / 16, height);
    context.moveTo(0, (i * height) / 16);
    context.lineTo(width, (i * height) / 16);
  }
  stroke(context, COLOURS.grid, unit);
  if (video in WITHOUT) drawLabel(context, view, WITHOUT[video], 0, height, COLOURS.unsure);
}

/** Boxes in two strokes: a dark outline makes the bright line visible on any picture. Those without an id are dashed. */
function drawBoxes(context, view, { boxes, ids }) {
  for (const known of [false, true]) {
    context.beginPath();
    boxes.forEach(([x1, y1, x2, y2], i) => {
      if (Boolean(ids[i]) === known) context.rect(x1 * view.x, y1 * view.y, (x2 - x1) * view.x, (y2 - y1) * view.y);
    });
    stroke(context, COLOURS.dark, 3.2 * view.unit);
    if (!known) context.setLineDash([4 * view.unit, 3 * view.unit]);
    stroke(context, known ? COLOURS.box : COLOURS.unsure, 1.4 * view.unit);
    context.setLineDash([]);
  }
}

function drawIds(context, view, { boxes, ids }) {
  boxes.forEach(([x1, y1], i) => {
    if (ids[i]) drawLabel(context, view, shortId(ids[i]), x1 * view.x - view.unit * 0.7, y1 * view.y, COLOURS.box, 0.85);
  });
}

/** Where the feet of each person were in the last seconds. */
export class Tails {
  points = new Map(); // id -> [[s, x, y], …] in frame px

  add({ boxes, ids, time }) {
    const now_s = Date.parse(time) / 1000;
    boxes.forEach(([x1, , x2, y2], i) => {
      if (!ids[i]) return;
      if (!this.points.has(ids[i])) this.points.set(ids[i], []);
      this.points.get(ids[i]).push([now_s, (x1 + x2) / 2, y2]);
    });
    for (const [id, points] of this.points) {
      while (points.length && (points[0][0] < now_s - TAIL_S || points[0][0] > now_s)) points.shift();
      if (!points.length) this.points.delete(id);
    }
  }
}

function drawTails(context, view, tails) {
  for (const points of tails.points.values()) {
    const last_s = points.at(-1)[0];
    for (let i = 1; i < points.length; i++) {
      const [[, ax, ay], [at_s, bx, by]] = [points[i - 1], points[i]];
      context.globalAlpha = Math.max(0.08, 1 - (last_s - at_s) / TAIL_S);
      context.beginPath();
      context.moveTo(ax * view.x, ay * view.y);
      context.lineTo(bx * view.x, by * view.y);
      stroke(context, COLOURS.box, 2 * view.unit);
    }
  }
  context.globalAlpha = 1;
}

function drawLine(context, view, name, line, labels) {
  const points = line.points.map(([x, y]) => [x * view.width, y * view.height]);
  trace(context, points);
  context.lineJoin = "round";
  stroke(context, COLOURS.dark, 4.6 * view.unit);
  stroke(context, COLOURS.line, 2.2 * view.unit);
  const { tip, middle, wings } = arrowOf(line, view.width, view.height, 22 * view.unit);
  trace(context, [middle, tip]);
  context.moveTo(...wings[0]);
  context.lineTo(...tip);
  context.lineTo(...wings[1]);
  stroke(context, COLOURS.dark, 4.6 * view.unit);
  stroke(context, COLOURS.line, 2.2 * view.unit);
  if (labels) drawLabel(context, view, `${name}   in ${number(line.in_today ?? line.in)}   out ${number(line.out_today ?? line.out)}`, points[0][0], points[0][1] - 4 * view.unit, COLOURS.line);
}

function drawZone(context, view, name, zone, labels) {
  const points = zone.points.map(([x, y]) => [x * view.width, y * view.height]);
  trace(context, points);
  context.closePath();
  context.fillStyle = "rgb(120 170 255 / 0.16)";
  context.fill();
  stroke(context, COLOURS.dark, 3.6 * view.unit);
  stroke(context, COLOURS.zone, 1.6 * view.unit);
  if (labels) drawLabel(context, view, `${name}   ${number(zone.people)}`, points[0][0], points[0][1], COLOURS.zone);
}

function drawViews(context, view, views) {
  const levels = [...new Set(views.map(({ level }) => level))].sort((a, b) => a - b);
  for (const { level, x1, y1, x2, y2 } of views) {
    const inset = (2 + 3 * levels.indexOf(level)) * view.unit;
    context.beginPath();
    context.rect(x1 * view.x + inset, y1 * view.y + inset, (x2 - x1) * view.x - 2 * inset, (y2 - y1) * view.y - 2 * inset);
    stroke(context, COLOURS.dark, 2.6 * view.unit);
    context.setLineDash([(levels.indexOf(level) + 1) * 5 * view.unit, 3 * view.unit]);
    stroke(context, COLOURS.view, 1.2 * view.unit);
    context.setLineDash([]);
  }
}

/** A heat map as a small picture that is drawn enlarged: transparent where nobody stood. */
export function heatPicture({ columns, rows, cells }) {
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const most = Math.max(...cells, 1e-9);
  cells.forEach((cell, i) => {
    const share = Math.sqrt(cell / most); // low values stay visible
    image.data.set([...heatColour(share), cell > 0 ? 50 + 170 * share : 0], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

const HEAT = [[38, 44, 140], [150, 40, 150], [236, 84, 84], [255, 190, 70], [255, 250, 190]];

function heatColour(share) {
  const place = Math.min(0.9999, Math.max(0, share)) * (HEAT.length - 1);
  const [low, high] = [HEAT[Math.floor(place)], HEAT[Math.floor(place) + 1]];
  return low.map((value, i) => Math.round(value + (high[i] - value) * (place % 1)));
}

/** The legend's colours, from nothing to the most. */
export function paintLegend(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${heatColour(Math.sqrt(x / canvas.width)).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

function drawHeat(context, view, heat) {
  context.imageSmoothingEnabled = true;
  context.drawImage(heat, 0, 0, view.width, view.height);
}

/** A heat map alone, over a still picture when there is one. */
export function paintHeat(canvas, heat, picture) {
  const context = canvas.getContext("2d", { alpha: false });
  const view = fitCanvas(canvas, { width: 1, height: 1 });
  if (picture) drawPicture(context, view, picture, "on");
  else drawGrid(context, view);
  context.fillStyle = "rgb(6 12 16 / 0.45)";
  context.fillRect(0, 0, view.width, view.height);
  drawHeat(context, view, heat);
}

/** Text in a dark field; its lower left corner is at x, y, but it stays within the picture. */
function drawLabel(context, view, text, x, y, colour, share = 1) {
  const size = view.font * share;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const pad = size * 0.25;
  const width = context.measureText(text).width + 2 * pad;
  const height = size + 2 * pad;
  const left = Math.max(0, Math.min(x, view.width - width));
  const top = Math.max(0, Math.min(y - height, view.height - height));
  context.fillStyle = COLOURS.dark;
  context.fillRect(left, top, width, height);
  context.fillStyle = colour;
  context.textBaseline = "middle";
  context.fillText(text, left + pad, top + height / 2 + view.unit * 0.5);
}

function trace(context, points) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
}

function stroke(context, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
}
