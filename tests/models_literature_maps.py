"""Networks whose output is a picture, and detectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from models_literature import cbr, work
from torch import Tensor, nn


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(cbr(inputs, outputs), cbr(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, inputs: int, skip: int, outputs: int, bilinear: bool) -> None:
        super().__init__()
        self.up = (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            if bilinear
            else nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)
        )
        self.conv = DoubleConv(skip + (inputs if bilinear else inputs // 2), outputs)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        x1 = self.up(x1)
        dy, dx = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


@work((2, 3, 18, 22))
class UNet(nn.Module):
    """Ronneberger et al. 2015, pictures whose halves are odd."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = DoubleConv(3, 6), DoubleConv(6, 10), DoubleConv(10, 14)
        self.up1, self.up2 = Up(14, 10, 8, bilinear=False), Up(8, 6, 6, bilinear=True)
        self.outc = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(F.max_pool2d(x1, 2))
        x3 = self.down2(F.max_pool2d(x2, 2))
        return torch.sigmoid(self.outc(self.up2(self.up1(x3, x2), x1)))


@work((2, 3, 16, 16))
class UNetPlusPlus(nn.Module):
    """Zhou et al. 2018: nested skips in a dictionary, deep supervision averaged."""

    def __init__(self) -> None:
        super().__init__()
        widths = (6, 8, 10)
        self.blocks = nn.ModuleDict()
        for i, width in enumerate(widths):
            self.blocks[f"x{i}_0"] = cbr(3 if i == 0 else widths[i - 1], width)
        for j in (1, 2):
            for i in range(3 - j):
                self.blocks[f"x{i}_{j}"] = cbr(widths[i] * j + widths[i + 1], widths[i])
        self.heads = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        found: dict[str, Tensor] = {}
        for i in range(3):
            found[f"x{i}_0"] = self.blocks[f"x{i}_0"](x if i == 0 else F.max_pool2d(found[f"x{i - 1}_0"], 2))
        for j in (1, 2):
            for i in range(3 - j):
                below = F.interpolate(found[f"x{i + 1}_{j - 1}"], scale_factor=2, mode="nearest")
                found[f"x{i}_{j}"] = self.blocks[f"x{i}_{j}"](
                    torch.cat([found[f"x{i}_{k}"] for k in range(j)] + [below], 1)
                )
        return sum(head(found[f"x0_{n + 1}"]) for n, head in enumerate(self.heads)) / len(self.heads)


@work((2, 3, 32, 32))
class FeaturePyramid(nn.Module):
    """Lin et al. 2017 with the shared heads of RetinaNet (2017): all levels go through the same convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([cbr(3, 8, stride=2), cbr(8, 10, stride=2), cbr(10, 14, stride=2)])
        self.lateral = nn.ModuleList(nn.Conv2d(c, 12, 1) for c in (8, 10, 14))
        self.output = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(cbr(12, 12), nn.Conv2d(12, 2 * 7, 3, padding=1))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top, results = None, []
        for lateral, output, level in list(zip(self.lateral, self.output, levels, strict=True))[::-1]:
            inner = lateral(level)
            top = inner if top is None else inner + F.interpolate(top, size=inner.shape[-2:], mode="nearest")
            results.insert(0, output(top))
        scores = []
        for level in results:
            y = self.tower(level)
            n, _, h, w = y.shape
            scores.append(y.view(n, -1, 7, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 7))
        return {"scores": scores, "all": [torch.cat(scores, dim=1)]}


@work((2, 3, 32, 32))
class BiFpn(nn.Module):
    """Tan et al. 2020: fast normalised fusion with learned weights of one number a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.c3, self.c4 = cbr(3, 8, stride=2), cbr(8, 12, stride=2)
        self.p3, self.p4 = nn.Conv2d(8, 10, 1), nn.Conv2d(12, 10, 1)
        self.w1, self.w2 = nn.Parameter(torch.ones(2)), nn.Parameter(torch.rand(3))
        self.conv3, self.conv4 = cbr(10, 10, groups=10), cbr(10, 10)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        p3, p4 = self.p3(c3), self.p4(c4)
        w = F.relu(self.w1)
        w = w / (torch.sum(w, dim=0) + 1e-4)
        out3 = self.conv3(w[0] * p3 + w[1] * F.interpolate(p4, scale_factor=2))
        w = F.relu(self.w2)
        w = w / (w.sum() + 1e-4)
        stacked = torch.stack([p4, F.max_pool2d(out3, 2), F.avg_pool2d(p3, 2)], dim=-1)
        out4 = self.conv4((stacked * w).sum(-1))
        return self.head(out3), self.head(out4)


class HighResolution(nn.Module):
    """Sun et al. 2019: every resolution gets the sum of all."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.fuse = nn.ModuleList()
        for i, to in enumerate(widths):
            row = nn.ModuleList()
            for j, of in enumerate(widths):
                if j > i:
                    row.append(
                        nn.Sequential(nn.Conv2d(of, to, 1), nn.BatchNorm2d(to), nn.Upsample(scale_factor=2 ** (j - i)))
                    )
                elif j == i:
                    row.append(nn.Identity())
                else:
                    steps = [cbr(of, to if k == i - j - 1 else of, stride=2) for k in range(i - j)]
                    row.append(nn.Sequential(*steps))
            self.fuse.append(row)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        fused = []
        for i in range(len(xs)):
            y = xs[0] if i == 0 else self.fuse[i][0](xs[0])
            for j in range(1, len(xs)):
                y = y + xs[j] if i == j else y + self.fuse[i][j](xs[j])
            fused.append(F.relu(y))
        return fused


@work((2, 3, 16, 16))
class HrNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([cbr(3, 6), cbr(6, 8, stride=2), cbr(8, 10, stride=2)])
        self.stages, self.head = (
            nn.Sequential(HighResolution((6, 8, 10)), HighResolution((6, 8, 10))),
            nn.Conv2d(24, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        xs = []
        for part in self.stem:
            x = part(x)
            xs.append(x)
        xs = self.stages(xs)
        size = (xs[0].size(2), xs[0].size(3))
        return self.head(torch.cat([xs[0]] + [F.interpolate(one, size=size, mode="bilinear") for one in xs[1:]], 1))


class Csp(nn.Module):
    """C2f: the list grows by what each bottleneck makes of the last one."""

    def __init__(self, inputs: int, outputs: int, count: int = 2) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = cbr(inputs, 2 * self.c, 1, act=nn.SiLU), cbr((2 + count) * self.c, outputs, 1, act=nn.SiLU)
        self.m = nn.ModuleList(nn.Sequential(cbr(self.c, self.c), cbr(self.c, self.c)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) + y[-1] for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Sppf(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = cbr(width, width // 2, 1), cbr(width // 2 * 4, width, 1)
        self.m = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class Detect(nn.Module):
    """Distribution focal head: boxes are expectations over bins, made by a fixed convolution."""

    def __init__(self, classes: int, widths: tuple[int, ...], bins: int = 4) -> None:
        super().__init__()
        self.nc, self.bins, self.no = classes, bins, classes + 4 * bins
        self.cv2 = nn.ModuleList(nn.Sequential(cbr(c, 8), nn.Conv2d(8, 4 * bins, 1)) for c in widths)
        self.cv3 = nn.ModuleList(nn.Sequential(cbr(c, 10), nn.Conv2d(10, classes, 1)) for c in widths)
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        shape = x[0].shape
        for i in range(len(x)):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        box, scores = torch.cat([xi.view(shape[0], self.no, -1) for xi in x], 2).split((4 * self.bins, self.nc), 1)
        b, _, a = box.shape
        box = self.dfl(box.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        return torch.cat((box, scores.sigmoid()), 1), x


@work((2, 3, 32, 32), share=0.85)
class Yolo(nn.Module):
    """Backbone, path aggregation and head, run as a list of layers that name where their inputs come from."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([
            cbr(3, 8, stride=2, act=nn.SiLU), cbr(8, 12, stride=2, act=nn.SiLU), Csp(12, 12), cbr(12, 16, stride=2),
            Csp(16, 16), Sppf(16), nn.Upsample(None, 2, "nearest"), Csp(28, 12), cbr(12, 12, stride=2), Csp(28, 16),
        ])  # fmt: skip
        self.detect = Detect(3, (12, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        kept = {}
        for i, layer in enumerate(self.model):
            x = torch.cat([x, kept[2]], 1) if i == 7 else torch.cat([x, kept[5]], 1) if i == 9 else x
            x = layer(x)
            kept[i] = x
        return self.detect([kept[7], kept[9]])


class Boxes(NamedTuple):
    location: Tensor
    confidence: Tensor


@work((2, 3, 32, 32), share=0.2, meets=True)
class Ssd(nn.Module):
    """Liu et al. 2016: L2-normalised features with a learned scale, heads of uneven widths."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(cbr(3, 10, stride=2), cbr(10, 12))
        self.extra = cbr(12, 14, stride=2)
        self.scale = nn.Parameter(torch.full((1, 12, 1, 1), 20.0))
        self.loc = nn.ModuleList([nn.Conv2d(12, 4 * 4, 3, padding=1), nn.Conv2d(14, 6 * 4, 3, padding=1)])
        self.conf = nn.ModuleList([nn.Conv2d(12, 4 * 3, 3, padding=1), nn.Conv2d(14, 6 * 3, 3, padding=1)])

    def forward(self, x: Tensor) -> Boxes:
        x = self.features(x)
        sources = [F.normalize(x, p=2, dim=1) * self.scale, self.extra(x)]
        loc, conf = [], []
        for x, left, right in zip(sources, self.loc, self.conf, strict=True):
            loc.append(left(x).permute(0, 2, 3, 1).contiguous())
            conf.append(right(x).permute(0, 2, 3, 1).contiguous())
        loc = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        conf = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        return Boxes(loc.view(loc.size(0), -1, 4), F.softmax(conf.view(conf.size(0), -1, 3), dim=-1))
