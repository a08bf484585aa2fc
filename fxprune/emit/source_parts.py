"""Small classes that a source file defines where its network needs them, word for word."""

from __future__ import annotations

PARTS = {
    "Part": '''
class Part(nn.Module):
    """Layers and numbers under their names; the network below calls them."""

    def __init__(self, /, **members):
        super().__init__()
        for name, member in members.items():
            if isinstance(member, torch.Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)
''',
    "DropPath": '''
class DropPath(nn.Module):
    """In training, zeroes what it is given with probability p: each image for itself ("row") or the whole batch."""

    def __init__(self, p, mode="row", scale=True):
        super().__init__()
        self.p, self.mode, self.scale = p, mode, scale

    def forward(self, input):
        if not self.training or self.p == 0:
            return input
        keep = 1 - self.p
        rows = input.shape[0] if self.mode == "row" else 1
        shape = [rows] + [1] * (input.ndim - 1)
        noise = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(keep)
        return input * (noise / keep if self.scale and keep > 0 else noise)
''',
}  # fmt: skip

_MASKED = '''
class Masked{name}(nn.{name}):
    """Weights where the mask is 0 have no effect and get no gradient, so that training leaves them at zero."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("weight_mask", torch.ones_like(self.weight, dtype=torch.bool))

    def forward(self, input):
        return {call}
'''
_CONVOLUTION = "self._conv_forward(input, self.weight * self.weight_mask, self.bias)"
_TRANSPOSED = """F.conv_transpose{dim}d(
            input, self.weight * self.weight_mask, self.bias, self.stride, self.padding, self.output_padding,
            self.groups, self.dilation,
        )"""
_CALLS = {"Linear": "F.linear(input, self.weight * self.weight_mask, self.bias)"}
_CALLS |= {f"Conv{dim}d": _CONVOLUTION for dim in (1, 2, 3)}
_CALLS |= {f"ConvTranspose{dim}d": _TRANSPOSED.format(dim=dim) for dim in (1, 2, 3)}
MASKABLE = tuple(_CALLS)
PARTS |= {f"Masked{name}": _MASKED.format(name=name, call=call) for name, call in _CALLS.items()}
