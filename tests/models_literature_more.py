"""Generators, sequences of pixels, geometry, attention by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from models_literature import cbr, work
from torch import Tensor, nn


@work((2, 20))
class DcganGenerator(nn.Module):
    """Radford et al. 2016: noise to a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(20, 16 * 4 * 4)
        self.main = nn.Sequential(
            nn.BatchNorm2d(16), nn.ReLU(True), nn.ConvTranspose2d(16, 10, 4, 2, 1, bias=False), nn.BatchNorm2d(10),
            nn.LeakyReLU(0.2), nn.ConvTranspose2d(10, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.main(self.project(z).view(-1, 16, 4, 4))


@work((2, 1, 16, 16), share=0.4)
class ConvVae(nn.Module):
    """Kingma and Welling 2014: means and log-variances, a sample in training, the mean otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mu, self.logvar = nn.Linear(12 * 16, 7), nn.Linear(12 * 16, 7)
        self.decode, self.unflatten = nn.Linear(7, 12 * 16), nn.Unflatten(1, (12, 4, 4))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(12, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 1, 2, 2), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if self.training else mu
        return self.decoder(self.unflatten(self.decode(z))), mu, logvar


@work((2, 3, 12, 12), (2, 3, 12, 12), meets=True)
class Siamese(nn.Module):
    """Koch et al. 2015: one encoder for two pictures, the distance weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(cbr(3, 10), nn.MaxPool2d(2), cbr(10, 12), nn.Flatten(), nn.Linear(12 * 36, 14))
        self.out = nn.Linear(14, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = self.encoder(left), self.encoder(right)
        return {"same": torch.sigmoid(self.out(torch.abs(a - b))), "cosine": F.cosine_similarity(a, b)}


@work((2, 1, 16, 40), share=0.4, frozen=("LSTM",))
class Crnn(nn.Module):
    """Shi et al. 2015: columns of the features are steps of two directions of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            cbr(1, 10), nn.MaxPool2d(2), cbr(10, 12), nn.MaxPool2d((2, 1)), cbr(12, 8), nn.MaxPool2d((4, 1))
        )
        self.rnn, self.fc = nn.LSTM(8, 6, bidirectional=True, num_layers=2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.cnn(x)
        b, c, h, w = features.size()
        assert h == 1, "the height must be one"
        steps, _ = self.rnn(features.squeeze(2).permute(2, 0, 1))
        t, n, width = steps.size()
        return F.log_softmax(self.fc(steps.view(t * n, width)).view(t, n, -1), dim=2)


@work((2, 1, 16, 16))
class SpatialTransformer(nn.Module):
    """Jaderberg et al. 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.localization = nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2, stride=2), nn.ReLU(True))
        self.fc_loc = nn.Sequential(nn.Linear(8 * 6 * 6, 14), nn.ReLU(True), nn.Linear(14, 3 * 2))
        self.conv, self.fc = nn.Conv2d(1, 10, 3), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localization(x).view(-1, 8 * 6 * 6)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.fc(F.max_pool2d(F.relu(self.conv(x)), 14).squeeze())


class BlurPool(nn.Module):
    """Zhang 2019: a fixed filter, repeated for each channel, as a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (a[:, None] * a[None, :] / 16)[None, None].repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


@work()
class AntiAliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.blur, self.b, self.fc = cbr(3, 10), BlurPool(10), cbr(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.blur(self.a(x))).mean((2, 3)))


@work((2, 3, 16, 16), statistic="layer normalisation over channels")
class TokensWithPositions(nn.Module):
    """Patches with learned places and a class token, attention by hand (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.patch = heads, nn.Conv2d(3, width, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
        )
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.places
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)).softmax(dim=-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(b, n, c))
        return self.head((x + self.mlp(x))[:, 0])


@work((2, 3, 12, 12))
class FoldUnfold(nn.Module):
    """Involution (Li et al. 2021): kernels made from the pixels, applied to unfolded neighbourhoods."""

    def __init__(self, width: int = 12, groups: int = 3) -> None:
        super().__init__()
        self.stem, self.groups = cbr(3, width), groups
        self.reduce, self.span = nn.Conv2d(width, 6, 1), nn.Conv2d(6, 9 * groups, 1)
        self.unfold, self.out = nn.Unfold(3, padding=1), nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weight = self.span(self.reduce(x))
        b, c, h, w = weight.shape
        weight = weight.view(b, self.groups, 9, h, w).unsqueeze(2)
        out = self.unfold(x).view(b, self.groups, 4, 9, h, w)
        return self.out((weight * out).sum(dim=3).view(b, 12, h, w))


@work((2, 3, 12, 12), statistic="a mean over channels")
class SpectralDiscriminator(nn.Module):
    """Miyato et al. 2018, with the deviation over the batch beside the features (Karras et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        sn = nn.utils.parametrizations.spectral_norm
        self.a, self.b = sn(nn.Conv2d(3, 10, 3, padding=1)), sn(nn.Conv2d(10, 12, 4, 2, 1))
        self.c, self.out = sn(nn.Conv2d(13, 14, 3, padding=1)), sn(nn.Linear(14, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.b(F.leaky_relu(self.a(x), 0.1)), 0.1)
        spread = torch.sqrt(x.var(0, unbiased=False) + 1e-8).mean().view(1, 1, 1, 1).expand(x.size(0), 1, *x.shape[2:])
        x = F.leaky_relu(self.c(torch.cat([x, spread], 1)), 0.1)
        return self.out(torch.sum(x, dim=(2, 3)))
