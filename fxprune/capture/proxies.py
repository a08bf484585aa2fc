"""Stand-ins for tensors while a network is traced: they record writes, and answer Python code that asks for sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.capture.sizes import NotASizeError, SizeReader


class AskingProxy(fx.Proxy):
    """A proxy that answers what shapes alone can tell. What it is made of, as `x.shape`, answers too."""

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return AskingAttribute(self, name)

    @property
    def ndim(self) -> Any:
        """A plain number, as code wants it that looks something up by it."""
        try:
            return self._asked().read(self.tracer.create_proxy("call_function", getattr, (self, "ndim"), {}).node)
        except NotASizeError:
            return AskingAttribute(self, "ndim")

    @property
    def requires_grad(self) -> bool:
        """As it would be: in training what is computed has gradients, in inference nothing has."""
        training = bool(self.tracer.root.training)  # type: ignore[attr-defined]  # who asks wants both modes
        return training and torch.is_grad_enabled() and self.node.op != "placeholder"

    def __contains__(self, item: object) -> bool:
        return item in self._asked().read(self.node)

    def __len__(self) -> int:
        return int(self._asked().count(self.node))

    def __index__(self) -> int:
        return operator.index(self._asked().read(self.node))

    def __int__(self) -> int:
        return int(self._asked().read(self.node))

    def __float__(self) -> float:
        return float(self._asked().read(self.node))

    def _asked(self) -> SizeReader:
        sizes: SizeReader = self.tracer.sizes  # type: ignore[attr-defined]
        return sizes


class AskingAttribute(AskingProxy, fx.proxy.Attribute):
    """An attribute of a proxy; its node is made when somebody asks for it, a method call makes none."""


class WritingProxy(AskingProxy):
    """A proxy that keeps `x += y` what it is: a write into x, which everybody who holds x sees.

    Plain proxies have no in-place operators, so Python makes a new value of it and the write is lost.
    """

    def _write(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._write(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._write(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._write(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._write(operator.itruediv, other)

    def __ifloordiv__(self, other: Any) -> Any:
        return self._write(operator.ifloordiv, other)

    def __ipow__(self, other: Any) -> Any:
        return self._write(operator.ipow, other)

    @property
    def data(self) -> Any:
        """The same numbers without gradients, under the name that can be written down."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        """`x.data = y` gives x the numbers of y, and the gradients go where they went."""
        self.node = (self + (value - self).detach()).node

    def __setitem__(self, index: Any, value: Any) -> None:
        """`x[:, :4] = y` writes into a part of x, found by an index of plain numbers, slices and sizes."""
        entries = index if isinstance(index, tuple) else (index,)
        if not all(entry is None or entry is Ellipsis or isinstance(entry, int | slice) for entry in entries):
            raise TypeError("assigned to places that are found while the network runs")
        part = operator.getitem(self, index)
        part.fill_(value) if isinstance(value, int | float) else part.copy_(value)


class HeldProxy(WritingProxy):
    """A tensor that the network holds: what is written into it is there at the next call."""

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        """`x.data = y` writes y into x."""
        self.detach().copy_(value)


class SizedParameterProxy(HeldProxy, fx.proxy.ParameterProxy):
    """Knows its own sizes, one by one as well."""

    ndim = fx.proxy.ParameterProxy.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.param.size() if dim is None else self.param.size(dim)
