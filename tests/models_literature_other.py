"""Super-resolution, sequences, video, points, pyramids of windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models_literature import cbr, work
from torch import Tensor, nn


@work((2, 3, 8, 8), share=0.8)
class Edsr(nn.Module):
    """Lim et al. 2017: fixed mean shift, residual scaling, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Conv2d(3, 3, 1)
        self.shift.weight.data = torch.eye(3).view(3, 3, 1, 1)
        for parameter in self.shift.parameters():
            parameter.requires_grad = False
        self.head = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(True), nn.Conv2d(12, 12, 3, padding=1))
            for _ in range(2)
        )
        self.tail = nn.Sequential(nn.Conv2d(12, 48, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(12, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = res = self.head(self.shift(x))
        for block in self.body:
            res = res + block(res).mul(0.1)
        return self.tail(res + x)


@work((2, 1, 8, 8), share=0.6)
class Espcn(nn.Module):
    """Shi et al. 2016: the shuffled channels are the output's pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 12, 3, padding=1)
        self.conv3, self.shuffle = nn.Conv2d(12, 9, 3, padding=1), nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv3(torch.tanh(self.conv2(torch.tanh(self.conv1(x))))))


@work((2, 4, 40))
class WaveNet(nn.Module):
    """van den Oord et al. 2016: dilated causal convolutions, tanh times sigmoid, residual and skip."""

    def __init__(self, width: int = 10, skip: int = 14) -> None:
        super().__init__()
        self.causal = nn.Conv1d(4, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(3))
        self.end1, self.end2 = nn.Conv1d(skip, 12, 1), nn.Conv1d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.causal(x), 0
        for i, (dilated, residual, skip) in enumerate(zip(self.dilated, self.residual, self.skips, strict=True)):
            y = dilated(F.pad(x, (2**i, 0)))
            filter_, gate = torch.chunk(y, 2, dim=1)
            y = torch.tanh(filter_) * torch.sigmoid(gate)
            total = total + skip(y)[:, :, -20:]
            x = x + residual(y)
        return self.end2(F.relu(self.end1(F.relu(total))))


@work((2, 4, 40))
class TemporalConvNet(nn.Module):
    """Bai et al. 2018: weight norm, the causal padding chomped off, the last step read."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.conv1 = norm(nn.Conv1d(4, 10, 3, padding=2))
        self.conv2 = norm(nn.Conv1d(10, 12, 3, padding=4, dilation=2))
        self.down, self.linear = nn.Conv1d(4, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv1(x)[:, :, :-2].contiguous())
        out = F.relu(self.conv2(out)[:, :, :-4].contiguous())
        return self.linear(F.relu(out + self.down(x))[:, :, -1])


class Conv2Plus1D(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        mid = (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)
        self.spatial = nn.Conv3d(inputs, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.bn = nn.BatchNorm3d(mid)
        self.temporal = nn.Conv3d(mid, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal(F.relu(self.bn(self.spatial(x))))


@work((2, 3, 6, 10, 10))
class VideoResNet(nn.Module):
    """Tran et al. 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = Conv2Plus1D(3, 8), Conv2Plus1D(8, 12, 2), Conv2Plus1D(12, 12)
        self.bn1, self.bn2 = nn.BatchNorm3d(12), nn.BatchNorm3d(12)
        self.down, self.fc = nn.Conv3d(8, 12, 1, 2, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn2(self.b(F.relu(self.bn1(self.a(x))))) + self.down(x))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))


@work((2, 3, 30), share=0.5)
class PointNet(nn.Module):
    """Qi et al. 2017: a learned 3 x 3 transform of the points, a maximum over them, global beside local features."""

    def __init__(self) -> None:
        super().__init__()
        self.t1, self.t2, self.t3 = nn.Conv1d(3, 8, 1), nn.Linear(8, 12), nn.Linear(12, 9)
        self.c1, self.c2, self.c3 = nn.Conv1d(3, 10, 1), nn.Conv1d(10, 14, 1), nn.Conv1d(24, 5, 1)
        self.bn = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(2)
        t = torch.max(F.relu(self.t1(x)), 2, keepdim=True)[0].view(-1, 8)
        t = self.t3(F.relu(self.t2(t))) + torch.eye(3, dtype=x.dtype, device=x.device).flatten().repeat(x.size(0), 1)
        x = torch.bmm(x.transpose(2, 1), t.view(-1, 3, 3)).transpose(2, 1)
        local = F.relu(self.bn(self.c1(x)))
        whole = torch.max(self.c2(local), 2, keepdim=True)[0].view(-1, 14, 1).repeat(1, 1, n)
        return self.c3(torch.cat([whole, local], 1)).transpose(2, 1).contiguous()


@work()
class CoordConv(nn.Module):
    """Liu et al. 2018: the pixel's place as two more channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.coord, self.fc = cbr(3, 10), nn.Conv2d(12, 14, 3, padding=1), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).expand(b, 1, h, w)
        xs = torch.arange(w, device=x.device).to(x.dtype).div(w - 1).mul(2).sub(1).view(1, 1, 1, w).repeat(b, 1, h, 1)
        return self.fc(self.coord(torch.cat([x, ys, xs], dim=1)).relu().mean((2, 3)))


class Hour(nn.Module):
    """Newell et al. 2016: an hourglass made of hourglasses."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.skip, self.low1, self.low3 = cbr(width, width), cbr(width, width), cbr(width, width)
        self.low2 = Hour(depth - 1, width) if depth > 1 else cbr(width, width)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(F.max_pool2d(x, 2, stride=2))))
        return self.skip(x) + F.interpolate(low, scale_factor=2)


@work()
class StackedHourglass(nn.Module):
    """Each stack's heat maps go back in."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = cbr(3, 10)
        self.hours, self.features = nn.ModuleList([Hour(2, 10), Hour(2, 10)]), nn.ModuleList([cbr(10, 10), cbr(10, 10)])
        self.outs = nn.ModuleList(nn.Conv2d(10, 4, 1) for _ in range(2))
        self.merge_features, self.merge_outs = nn.Conv2d(10, 10, 1), nn.Conv2d(4, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, combined = self.pre(x), []
        for i in range(2):
            feature = self.features[i](self.hours[i](x))
            combined.append(self.outs[i](feature))
            if i == 0:
                x = x + self.merge_outs(combined[-1]) + self.merge_features(feature)
        return torch.stack(combined, 1)


@work((2, 3, 24, 24))
class DeepLab(nn.Module):
    """Chen et al. 2017: atrous pyramid with a pooled branch; low-level features join in the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = cbr(3, 8, stride=2), cbr(8, 14, stride=2)
        self.rates = nn.ModuleList(nn.Conv2d(14, 6, 3, padding=r, dilation=r, bias=False) for r in (1, 2, 3))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(14, 6, 1), nn.ReLU())
        self.project, self.reduce, self.head = cbr(24, 10, 1), cbr(8, 4, 1), nn.Conv2d(14, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        low = self.low(x)
        x = self.high(low)
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.project(torch.cat([*(conv(x) for conv in self.rates), pooled], dim=1))
        x = torch.cat([self.reduce(low), F.interpolate(x, size=low.shape[-2:], mode="bilinear")], 1)
        return {"out": F.interpolate(self.head(x), size=size, mode="bilinear", align_corners=False)}


@work(meets=True)
class NonLocal(nn.Module):
    """Wang et al. 2018: theta, phi and g, a softmax over pixels, written with einsum and matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 12)
        self.theta, self.phi, self.g = (nn.Conv2d(12, 8, 1) for _ in range(3))
        self.w, self.bn, self.fc = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        theta, phi, g = (part(x).view(b, 8, -1) for part in (self.theta, self.phi, self.g))
        attention = F.softmax(torch.einsum("bci,bcj->bij", theta, F.max_pool1d(phi, 2)), dim=-1)
        y = torch.matmul(attention, F.max_pool1d(g, 2).permute(0, 2, 1)).permute(0, 2, 1).contiguous().view(b, 8, h, w)
        return self.fc((self.bn(self.w(y)) + x).mean((2, 3)))
