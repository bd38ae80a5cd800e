"""The demo detector's network: a small stride-4 centre heat map, made of convolutions TensorRT and ONNX Runtime fuse.

Only training needs it (and torch); the pipeline runs the exported ONNX file.
"""

import torch
from torch import nn
from torch.nn import functional

STRIDE_PX = 4
TOP = 300


def conv(inputs, outputs, size=1, stride=1, groups=1, act=True):
    """Convolution and batch normalisation, with a ReLU unless `act` is False."""
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class ConvBlock(nn.Module):
    """Depthwise then pointwise convolution; added to its input where the shape stays."""

    def __init__(self, inputs, outputs, size, stride=1):
        super().__init__()
        self.body = nn.Sequential(conv(inputs, inputs, size, stride, groups=inputs), conv(inputs, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


class Detector(nn.Module):
    """float32 [B, 3, 640, 640] RGB 0..1 -> (heat logits [B, 1, 160, 160], raw distances ltrb [B, 4, 160, 160])."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 6, 4, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.at4 = ConvBlock(32, 32, 3)
        self.at8 = nn.Sequential(ConvBlock(32, 64, 5, 2), ConvBlock(64, 64, 5))
        self.at16 = nn.Sequential(ConvBlock(64, 96, 5, 2), ConvBlock(96, 96, 5), ConvBlock(96, 96, 5))
        self.at32 = nn.Sequential(
            ConvBlock(96, 160, 5, 2), ConvBlock(160, 160, 5), ConvBlock(160, 160, 5), ConvBlock(160, 160, 5)
        )
        self.down32, self.mix16 = conv(160, 96), ConvBlock(96, 96, 5)
        self.down16, self.mix8 = conv(96, 64), ConvBlock(64, 64, 5)
        self.down8, self.mix4 = conv(64, 32), ConvBlock(32, 32, 3)
        self.head = nn.Conv2d(32, 5, 1)
        nn.init.constant_(self.head.bias, -4.0)
        nn.init.constant_(self.head.bias[1:], 0.0)

    def forward(self, images):
        def wide(x):
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")

        x4 = self.at4(self.stem(images))
        x8 = self.at8(x4)
        x16 = self.at16(x8)
        x = self.mix16(wide(self.down32(self.at32(x16))) + x16)
        x = self.mix8(wide(self.down16(x)) + x8)
        x = self.head(self.mix4(wide(self.down8(x)) + x4))
        return x[:, :1], x[:, 1:]


def distances_px(raw):
    """Predicted distances from a cell's centre to the box's edges, in pixels of the input."""
    return torch.exp(raw.clamp(-3, 4.5)) * 8


class Exported(nn.Module):
    """The detector as the pipeline runs it: [B, 3, 640, 640] -> [B, 300, 6] of x1, y1, x2, y2, score, class 0.

    A cell counts only where no neighbour is hotter, so no further suppression is needed. `shift` moves the logits so
    that a score of 0.35 is the best place to count.
    """

    def __init__(self, detector, shift):
        super().__init__()
        self.detector, self.shift = detector, float(shift)
        step = torch.arange(160, dtype=torch.float32) * STRIDE_PX + STRIDE_PX / 2
        x, y = step.repeat(160), step.repeat_interleave(160)
        self.register_buffer("centre", torch.stack([x, y, x, y])[None])
        self.register_buffer("side", torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(1, 4, 1))

    def forward(self, images):
        heat, raw = self.detector(images)
        heat = torch.where(heat >= functional.max_pool2d(heat, 3, 1, 1), heat, -20.0).flatten(1)
        logits, cells = torch.topk(heat, TOP, dim=1)
        boxes = self.centre + self.side * distances_px(raw).flatten(2)
        boxes = boxes.gather(2, torch.stack([cells] * 4, 1)).clamp(0, 640)
        score = torch.sigmoid(logits + self.shift)[:, None]
        return torch.cat([boxes, score, score * 0], 1).transpose(1, 2)
