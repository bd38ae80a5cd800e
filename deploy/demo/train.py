"""Train the demo detector from scratch on the plaza's pictures and export it as ONNX.

The committed common/engine/plaza.onnx was made on one NVIDIA H100 with 16 CPU cores by

    TRAIN="python -m peoplecounter.deploy.demo.train"
    $TRAIN first.onnx --scenes 640 --minutes 4.7
    $TRAIN second.onnx --start first.onnx.pt --seed 20000 --scenes 840 --minutes 5.3
    $TRAIN common/engine/plaza.onnx --start second.onnx.pt --seed 30000 --scenes 820 --minutes 5.4

They took 459, 557 and 536 s, two fifths of which were for drawing the scenes. Training for a given time is not
reproducible to the bit. Seeds start at 1000, and the last scenes are used to choose the threshold; seeds below 1000 are
reserved for the demo and the evaluation. Training needs torch and onnx, which are not needed at run time.
"""

import argparse
import copy
import math
import multiprocessing
import time

import numpy as np
import torch
from torch.nn import functional

from peoplecounter.deploy.demo.crowd import VISIBLE_SHARE, Plaza, silhouette_box
from peoplecounter.deploy.demo.network import STRIDE_PX, Detector, Exported, distances_px

SIZE_PX = 640
FIRST_SEED = 1000  # seeds below are for evaluation
MAX_BOXES = 72
PIPELINE_SCORE = 0.35  # between what fusion asks of small and of large people
BATCH = 32
RECALL_WEIGHT = 0.5


def scene_pictures(seed: int):
    """(uint8 [N, 640, 640, 3], float32 [N, 72, 5]) from one scene: views of its frames, the whole and crops of levels.

    Box rows are left, top, right, bottom in pixels and a kind: 1 person, -1 too hidden to say, 0 empty row.
    """
    rng = np.random.default_rng(seed)
    width, height = ((1920, 1080), (3840, 2160))[seed % 2]
    camera = ("far", "middle", "far", "near")[seed // 2 % 4]
    people = int(rng.integers(8, 60 if camera == "far" else 26))
    plaza = Plaza(width, height, seed, people, camera)
    pictures, targets = [], []
    for moment in range(4):
        picture, figures = plaza.render(moment * 4 + rng.uniform(0, 3))
        boxes = np.array([[*silhouette_box(figure.canvas), figure.visible] for figure in figures], np.float32)
        boxes[:, [0, 2]], boxes[:, [1, 3]] = boxes[:, [0, 2]].clip(0, width), boxes[:, [1, 3]].clip(0, height)
        levels = [shrink for shrink in (1, 2, 4) if width // shrink > SIZE_PX]
        for shrink in (width // SIZE_PX, 1, 1, *(levels[nth % len(levels)] for nth in range(2))):
            level, shrunk = _shrunk(picture, shrink), boxes / (shrink, shrink, shrink, shrink, 1)
            rows, columns = (max(0, side - SIZE_PX) for side in level.shape[:2])
            top, left = rng.integers(0, rows + 1), rng.integers(0, columns + 1)
            if rng.random() < 0.5:  # around somebody
                x, y = shrunk[rng.integers(len(shrunk))][:4].reshape(2, 2).mean(0) - rng.uniform(0, SIZE_PX, 2)
                top, left = int(np.clip(y, 0, rows)), int(np.clip(x, 0, columns))
            part = level[top : top + SIZE_PX, left : left + SIZE_PX]
            down = (SIZE_PX - len(part)) // 2 if shrink == width // SIZE_PX else 0  # the whole lies in the middle
            view = np.full((SIZE_PX, SIZE_PX, 3), 114, np.uint8)
            view[down : down + len(part), : part.shape[1]] = part
            pictures.append(view)
            targets.append(_target(shrunk - np.array((left, top - down, left, top - down, 0), np.float32)))
    return np.stack(pictures), np.stack(targets)


def _shrunk(picture, by):
    """The mean of each block of `by` x `by` pixels."""
    height, width, _ = picture.shape
    if by == 1:
        return picture
    blocks = picture[: height // by * by].reshape(height // by, by, width // by, by, 3)
    return (blocks.mean((1, 3), dtype=np.float32) + 0.5).astype(np.uint8)


def _target(boxes):
    """Rows of `scene_pictures` from boxes (l, t, r, b, visible share) in pixels of a 640 x 640 picture."""
    inside = boxes[:, :4].clip(0, SIZE_PX)
    area = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    share = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1]) / np.maximum(area, 1)
    person = (share >= 0.3) & (boxes[:, 4] >= VISIBLE_SHARE)
    unsure = ~person & (share >= 0.15) & (boxes[:, 4] >= 0.15)
    rows = np.concatenate([inside, np.where(person, 1, np.where(unsure, -1, 0))[:, None]], 1)
    rows = rows[np.argsort(-np.abs(rows[:, 4]), kind="stable")][:MAX_BOXES]
    return np.pad(rows, ((0, MAX_BOXES - len(rows)), (0, 0))).astype(np.float32)


def collect(seeds, device):
    """All scenes' pictures as one uint8 tensor [N, 640, 640, 3] and their boxes [N, 72, 5], on the device."""
    pictures, targets = None, []
    with multiprocessing.get_context("forkserver").Pool() as pool:
        for nth, (some, rows) in enumerate(pool.imap_unordered(scene_pictures, seeds)):
            if pictures is None:
                pictures = torch.empty((len(seeds) * len(some), *some.shape[1:]), dtype=torch.uint8, device=device)
            pictures[nth * len(some) : (nth + 1) * len(some)] = torch.from_numpy(some).to(device)
            targets.append(torch.from_numpy(rows))
    return pictures, torch.cat(targets).to(device)


def augment(pictures, boxes):
    """float [B, 3, 640, 640] 0..1 and boxes: mirrored, lit, blurred, coded in blocks and made noisy at random."""
    x, boxes = pictures.permute(0, 3, 1, 2).float() / 255, boxes.clone()
    count, device = len(x), x.device

    def some(low, high, channels=1):
        return torch.empty(count, channels, 1, 1, device=device).uniform_(low, high)

    mirrored = torch.rand(count, device=device) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    boxes[..., [0, 2]] = torch.where(mirrored[:, None, None], SIZE_PX - boxes[..., [2, 0]], boxes[..., [0, 2]])
    x = ((x * some(0.75, 1.25) * some(0.93, 1.07, 3) - 0.5) * some(0.8, 1.2) + 0.5 + some(-0.06, 0.06)).clamp(0.001, 1)
    soft = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + (soft - x) * some(-0.4, 0.9).clamp(min=0)
    x = _code(x, some(-0.02, 0.05).clamp(min=0))
    return (x + torch.randn_like(x) * some(0, 0.02)).clamp(0, 1), boxes


def _code(x, coarse):
    """What a video encoder leaves: half-resolution colour, and 8 x 8 cosine blocks with quantised coefficients."""
    luma = (x * torch.tensor([0.2126, 0.7152, 0.0722], device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    colour = functional.interpolate(functional.avg_pool2d(x - luma, 2), scale_factor=2.0, mode="nearest")
    k = torch.arange(8, device=x.device, dtype=torch.float32)
    basis = torch.cos((k[None, :] + 0.5) * k[:, None] * math.pi / 8) * torch.where(k > 0, 0.5, 8**-0.5)[:, None]
    blocks = luma.view(-1, 80, 8, 80, 8)
    waves = torch.einsum("ui,bricj,vj->brucv", basis, blocks, basis)
    step = coarse.view(-1, 1, 1, 1, 1) * (1 + 0.25 * (k.view(1, 1, 8, 1, 1) + k.view(1, 1, 1, 1, 8))) + 1e-4
    waves = torch.round(waves / step) * step
    return torch.einsum("ui,brucv,vj->bricj", basis, waves, basis).reshape(luma.shape) + colour


def ground_truth(boxes):
    """(heat [B, 160, 160], hottest box [B, 160, 160] as index, unsure [B, 160, 160] bool) of boxes [B, M, 5]."""
    step = torch.arange(160, device=boxes.device).float()
    centre = ((boxes[..., :2] + boxes[..., 2:4]) / 2 / STRIDE_PX).floor().clamp(0, 159)
    spread = ((boxes[..., 2:4] - boxes[..., :2]) / STRIDE_PX * 0.11).clamp(0.6, 6)
    near_x = torch.exp(-0.5 * ((step - centre[..., :1]) / spread[..., :1]) ** 2)
    near_y = torch.exp(-0.5 * ((step - centre[..., 1:]) / spread[..., 1:]) ** 2)
    heat = near_y[..., :, None] * near_x[..., None, :]
    unsure = ((heat > 0.1) & (boxes[..., 4] < 0)[..., None, None]).any(1)
    heat, owner = (heat * (boxes[..., 4] > 0)[..., None, None]).max(1)
    return heat, owner, unsure


def loss_of(detector, images, boxes):
    """Penalty-reduced focal loss of the heat, plus distance and overlap loss of the boxes around each centre."""
    logits, raw = detector(images)
    logits, raw = logits[:, 0].float(), raw.float()
    heat, owner, unsure = ground_truth(boxes)
    positive, score = heat == 1, torch.sigmoid(logits).clamp(1e-5, 1 - 1e-5)
    gain = positive * (1 - score) ** 2 * torch.log(score)
    cost = ~positive * ~unsure * (1 - heat) ** 4 * score**2 * torch.log(1 - score)
    people = positive.sum().clamp(min=1)
    focal = -(gain.sum() + cost.sum()) / people

    b, y, x = torch.where(heat > 0.35)
    weight = heat[b, y, x]
    box = boxes[b, owner[b, y, x], :4]
    at = torch.stack([x, y, x, y], 1).float() * STRIDE_PX + STRIDE_PX / 2
    wanted = ((box - at) * torch.tensor([-1, -1, 1, 1], device=box.device)).clamp(min=0.5)
    found = distances_px(raw[b, :, y, x])
    apart = functional.smooth_l1_loss(found.log(), wanted.log(), reduction="none", beta=0.1).sum(1)
    shared = torch.minimum(found, wanted)
    overlap = (shared[:, 0] + shared[:, 2]) * (shared[:, 1] + shared[:, 3])
    union = _area(found) + _area(wanted) - overlap
    return focal + (weight * (2 * (1 - overlap / union) + 0.3 * apart)).sum() / weight.sum().clamp(min=1)


def _area(distances):
    return (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])


def train(detector, rate, pictures, boxes, minutes):
    """The detector trained for so many minutes; its weights are the running mean of the last steps'."""
    mean = copy.deepcopy(detector).eval()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=rate, weight_decay=1e-3)
    old, new = (
        [value for value in model.state_dict().values() if value.is_floating_point()] for model in (mean, detector)
    )
    begin_s, step, total = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - begin_s) / (60 * minutes)) < 1:
        cosine = 0.5 + 0.5 * math.cos(math.pi * share)
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 300) * cosine + 1e-5
        picked = torch.randint(len(pictures), (BATCH,), device=pictures.device)
        loss = loss_of(detector, *augment(pictures[picked], boxes[picked]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(old, new, 1 - min(0.998, step / (step + 20)))
        total += loss.detach()
        if step % 500 == 0:
            print(f"step {step}, {share:.0%} of the time, loss {float(total) / 500:.3f}", flush=True)
            total = 0.0
    return mean


def best_score(detector, pictures, boxes):
    """(score, F) at which most detections are people and most people are detected, matched at IoU 0.5.

    The pipeline looks at a person through several overlapping tiles, so misses are made up for and false alarms add
    up: precision weighs more here (F-beta with a squared beta of `RECALL_WEIGHT`).
    """
    scores, hits, people = [], [], 0
    exported = Exported(detector, 0.0).to(pictures.device).eval()
    for picture, rows in zip(pictures, boxes):
        with torch.no_grad():
            found = exported(picture.permute(2, 0, 1)[None].float() / 255)[0].cpu().numpy()
        rows = rows[rows[:, 4] != 0].cpu().numpy()
        people += int((rows[:, 4] > 0).sum())
        free = np.ones(len(rows), bool)
        for detection in found[found[:, 4] > 0.02]:
            overlap = _iou(detection[:4], rows) * free
            nearest = int(overlap.argmax()) if len(rows) else -1
            if nearest >= 0 and overlap[nearest] >= 0.5:
                free[nearest] = False
                if rows[nearest, 4] < 0:
                    continue  # neither right nor wrong
            scores.append(detection[4])
            hits.append(nearest >= 0 and overlap[nearest] >= 0.5)
    order = np.argsort(scores)[::-1]
    right = np.cumsum(np.array(hits)[order])
    quality = (1 + RECALL_WEIGHT) * right / (np.arange(1, len(right) + 1) + RECALL_WEIGHT * people)
    best = int(quality.argmax())
    return float(np.array(scores)[order][best]), float(quality[best])


def _iou(box, rows):
    low, high = np.maximum(box[:2], rows[:, :2]), np.minimum(box[2:4], rows[:, 2:4])
    shared = (high - low).clip(0).prod(1)
    return shared / ((box[2:4] - box[:2]).prod() + (rows[:, 2:4] - rows[:, :2]).prod(1) - shared + 1e-6)


def export(detector, shift, path):
    """Write the ONNX file: `images` [B, 3, 640, 640] -> `output0` [B, 300, 6]."""
    model = Exported(detector.cpu().float().eval(), shift).eval()
    torch.onnx.export(
        model,
        torch.zeros(2, 3, SIZE_PX, SIZE_PX),
        path,
        input_names=["images"],
        dynamo=False,
        output_names=["output0"],
        opset_version=17,
        dynamic_axes={"images": {0: "batch"}, "output0": {0: "batch"}},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx", help="the file to write")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes to draw, of 20 pictures each")
    parser.add_argument("--minutes", type=float, default=5.0, help="time to train for")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="the first scene's seed")
    parser.add_argument("--start", help="weights of an earlier run to go on from")
    options = parser.parse_args()
    if options.seed < FIRST_SEED:
        parser.error(f"--seed is {options.seed}, but seeds below {FIRST_SEED} are kept for the evaluation")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    detector, rate = Detector().to(device), 3e-3
    if options.start:
        detector.load_state_dict(torch.load(options.start, map_location=device))
        rate = 1.5e-3
    begin_s = time.monotonic()
    pictures, boxes = collect(range(options.seed, options.seed + options.scenes), device)
    print(f"{len(pictures)} pictures in {time.monotonic() - begin_s:.0f} s", flush=True)
    kept = len(pictures) // options.scenes * max(1, options.scenes // 30)  # whole scenes
    detector = train(detector, rate, pictures[:-kept], boxes[:-kept], options.minutes)
    torch.save(detector.state_dict(), f"{options.onnx}.pt")
    score, quality = best_score(detector, pictures[-kept:], boxes[-kept:])
    shift = math.log(PIPELINE_SCORE / (1 - PIPELINE_SCORE)) - math.log(score / (1 - score))
    print(f"best F {quality:.4f} at score {score:.3f}, shifted to {PIPELINE_SCORE}", flush=True)
    export(detector, shift, options.onnx)


if __name__ == "__main__":
    main()
