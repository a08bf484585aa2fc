"""Networks whose blocks meet: shortcuts, joined and parted features, gates, groups, shared parameters, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import IMAGE, Net, conv, network, pooled
from torch import Tensor, nn


@network({"a.weight": (3, 3, 3, 3), "b.weight": (3, 3, 3, 3), "bn.weight": (3,), "fc.weight": (5, 3)})
def residual() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        return s.fc(pooled((x + s.bn(s.b(x))).relu()))

    return Net(run, a=conv(3, 6), b=conv(6, 6), bn=nn.BatchNorm2d(6), fc=nn.Linear(6, 5))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 3, 3), "c.weight": (5, 3, 1, 1), "fc.weight": (4, 5)})
def projection_shortcut() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        y = s.one(s.b(x))
        y += s.two(s.c(x))
        return s.fc(pooled(y.relu()))

    return Net(
        run, a=conv(3, 6), b=conv(6, 10, stride=2), one=nn.BatchNorm2d(10), c=conv(6, 10, 1, stride=2),
        two=nn.BatchNorm2d(10), fc=nn.Linear(10, 4),
    )  # fmt: skip


@network(
    {"a.weight": (3, 3, 3, 3), "b.weight": (3, 1, 3, 3), "b.bias": (3,), "bn.bias": (3,), "c.weight": (5, 3, 1, 1)}
)
def depthwise() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.bn(s.b(F.relu6(s.a(x)))))

    return Net(run, a=conv(3, 6), b=conv(6, 6, groups=6), bn=nn.BatchNorm2d(6), c=conv(6, 5, 1))


@network(
    {"a.weight": (3, 3, 3, 3), "b.weight": (6, 1, 3, 3), "b.bias": (6,), "bn.weight": (6,), "c.weight": (5, 6, 1, 1)}
)
def depthwise_multiplier() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.bn(s.b(s.a(x))).relu())

    return Net(run, a=conv(3, 6), b=conv(6, 12, groups=6), bn=nn.BatchNorm2d(12), c=conv(12, 5, 1))


@network({"a.weight": (4, 3, 3, 3), "b.weight": (6, 2, 3, 3), "bn.running_var": (6,), "c.weight": (5, 6, 1, 1)})
def grouped() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.bn(s.b(s.a(x).relu())).relu())

    return Net(run, a=conv(3, 8), b=conv(8, 12, groups=2), bn=nn.BatchNorm2d(12), c=conv(12, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 3, 3), "bn.weight": (8,), "c.weight": (7, 8, 1, 1)})
def concat() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.bn(torch.cat([s.a(x), s.b(x).relu()], 1)))

    return Net(run, a=conv(3, 6), b=conv(3, 10), bn=nn.BatchNorm2d(16), c=conv(16, 7, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 3, 3), "c.weight": (2, 8, 3, 3), "d.weight": (5, 10, 1, 1)})
def nested_concat() -> nn.Module:
    """Dense blocks: what has been joined is joined again."""

    def run(s: Net, x: Tensor) -> Tensor:
        inner = torch.cat((s.a(x), s.b(x)), dim=-3)
        return s.d(torch.concat([inner, s.c(inner.relu())], 1))

    return Net(run, a=conv(3, 6), b=conv(3, 10), c=conv(16, 4), d=conv(20, 5, 1))


@network({"a.weight": (8, 3, 3, 3), "b.weight": (7, 3, 3, 3), "c.weight": (5, 5, 3, 3)})
def split() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        left, right = s.a(x).split([6, 10], 1)
        return s.b(left).mean((2, 3)), s.c(right)

    return Net(run, a=conv(3, 16), b=conv(6, 7), c=conv(10, 5))


@network({"a.weight": (8, 3, 3, 3), "b.weight": (7, 4, 3, 3), "c.weight": (5, 4, 3, 3)})
def chunk() -> nn.Module:
    """Two halves, cut alike because the one is added to what comes from the other."""

    def run(s: Net, x: Tensor) -> Tensor:
        left, right = torch.chunk(s.a(x), 2, dim=1)
        return s.b(left), s.c(left * right.sigmoid())

    return Net(run, a=conv(3, 16), b=conv(8, 7), c=conv(8, 5))


@network(
    {"a.weight": (4, 3, 3, 3), "squeeze.weight": (2, 4, 1, 1), "excite.weight": (4, 2, 1, 1), "c.weight": (5, 4, 1, 1)}
)
def gate() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        weights = s.excite(s.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return s.c(x * weights)

    return Net(run, a=conv(3, 8), squeeze=conv(8, 4, 1), excite=conv(4, 8, 1), c=conv(8, 5, 1))


@network({"a.weight": (8, 3, 3, 3), "a.bias": (8,), "c.weight": (5, 4, 1, 1)})
def glu() -> nn.Module:
    return Net(lambda s, x: s.c(F.glu(s.a(x), dim=1)), a=conv(3, 16), c=conv(8, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (3, 3, 3, 3), "fc.weight": (5, 3)})
def shared() -> nn.Module:
    """One module called twice: what goes in has the width of what comes out."""
    return Net(lambda s, x: s.fc(pooled(s.b(s.b(s.a(x)).relu()))), a=conv(3, 6), b=conv(6, 6), fc=nn.Linear(6, 5))


@network(
    {"a.weight": (3, 3, 3, 3), "kernel": (5, 3, 3, 3), "offset": (5,), "c.weight": (4, 5, 1, 1)},
    consumers={"kernel": 1},
)
def functional_conv() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(F.conv2d(s.a(x).relu(), s.kernel, s.offset, padding=1))

    kernel, offset = nn.Parameter(torch.randn(10, 6, 3, 3) / 7), nn.Parameter(torch.zeros(10))
    return Net(run, a=conv(3, 6), kernel=kernel, offset=offset, c=conv(10, 4, 1))


@network({"a.weight": (3, 3, 3, 3), "gamma": (3, 1, 1), "b.weight": (3, 3, 3, 3), "c.weight": (5, 3, 1, 1)})
def layer_scale() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.c(x + s.gamma * s.b(x))

    return Net(run, a=conv(3, 6), gamma=nn.Parameter(torch.randn(6, 1, 1)), b=conv(6, 6), c=conv(6, 5, 1))


@network(
    {"a.weight": (4, 3, 1, 1), "q.weight": (6, 4), "k.weight": (6, 4), "v.weight": (10, 4), "c.weight": (5, 10)},
    silenced=("q.weight", "q.bias"),
)
def attention_fused() -> nn.Module:
    """Two heads of 6 for queries and keys, two of 10 for values."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).flatten(2).transpose(1, 2)
        q, k = (part(x).reshape(2, -1, 2, 6).transpose(1, 2) for part in (s.q, s.k))
        v = s.v(x).reshape(2, -1, 2, 10).transpose(1, 2)
        return s.c(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, -1, 20))

    return Net(run, a=conv(3, 8, 1), q=nn.Linear(8, 12), k=nn.Linear(8, 12), v=nn.Linear(8, 20), c=nn.Linear(20, 5))


@network(
    {"q.weight": (6, 3, 1, 1), "k.weight": (6, 3, 1, 1), "v.weight": (10, 3, 1, 1), "c.weight": (5, 10)},
    silenced=("q.weight", "q.bias"),
)
def attention_explicit() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        batch = x.shape[0]
        q, k = (part(x).view(batch, 2, 6, -1) for part in (s.q, s.k))
        v = s.v(x).view(batch, 2, 10, -1)
        scores = torch.softmax(q.transpose(-2, -1) @ k / 6**0.5, dim=-1)
        return s.c(torch.matmul(scores, v.transpose(-2, -1)).permute(0, 2, 1, 3).flatten(2))

    return Net(run, q=conv(3, 12, 1), k=conv(3, 12, 1), v=conv(3, 20, 1), c=nn.Linear(20, 5))


@network({"a.weight": (3, 3, 3, 3), "mix": (5, 3), "c.weight": (4, 5, 1, 1)}, consumers={"mix": 1})
def einsum() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(torch.einsum("bchw,oc->bohw", s.a(x), s.mix))

    return Net(run, a=conv(3, 6), mix=nn.Parameter(torch.randn(10, 6) / 3), c=conv(10, 4, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (3, 2, 3, 3), "c.weight": (5, 3, 1, 1)}, IMAGE, (2, 2, 8, 6))
def several_inputs() -> nn.Module:
    return Pair(a=conv(3, 6), b=conv(2, 6), c=conv(6, 5, 1))


@network(
    {"a.weight": (3, 3, 3, 3), "b.weight": (3, 2, 3, 3), "c.weight": (5, 3, 1, 1)},
    named={"right": (2, 2, 8, 6), "left": IMAGE},
)
def keyword_input() -> nn.Module:
    return Pair(a=conv(3, 6), b=conv(2, 6), c=conv(6, 5, 1))


class Pair(nn.Module):
    """Two inputs that are added after a convolution each; the third argument keeps its default."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, left: Tensor, right: Tensor, scale: float = 2.0) -> Tensor:
        return self.c(self.a(left) + scale * self.b(right))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 3, 3), "c.weight": (4, 5, 1, 1)})
def dict_output() -> nn.Module:
    def run(s: Net, x: Tensor) -> dict[str, object]:
        middle = s.b(s.a(x).relu())
        return {"map": s.c(middle), "more": (s.fc(x.mean((2, 3))),)}

    return Net(run, a=conv(3, 6), b=conv(6, 10), c=conv(10, 4, 1), fc=nn.Linear(3, 2))


@network({"a.weight": (3, 3, 1, 1), "b.weight": (3, 3, 1, 1), "c.weight": (3, 3, 1, 1), "fc.weight": (5, 3)})
def tied_weights() -> nn.Module:
    """Two convolutions share one weight and have each its own bias."""
    net = Net(
        lambda s, x: s.fc(pooled(s.c(s.b(s.a(x)).relu()))),
        a=conv(3, 6, 1),
        b=conv(6, 6, 1),
        c=conv(6, 6, 1),
        fc=nn.Linear(6, 5),
    )
    net.c.weight = net.b.weight
    return net
