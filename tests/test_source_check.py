"""A model.py from a stranger: whatever fxprune would not have written is refused, and nothing of it has run by then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import NETWORKS

import fxprune
from fxprune.emit.source_check import LONGEST, check_source
from fxprune.emit.source_parts import PARTS
from fxprune.emit.source_run import network_from
from fxprune.errors import LoadError, UntrustedError


@pytest.fixture(scope="module")
def done() -> fxprune.Compiled:
    case = NETWORKS["residual"]
    return fxprune.compile(case.model(), case.example(), sparsity=0.5, proof=False)


@pytest.fixture(scope="module")
def text(done: fxprune.Compiled) -> str:
    return done.to_source().source.text


CLASS, INIT, FORWARD = "class Net(nn.Module):\n", "        super().__init__()\n", "        x = self.a(x)\n"
IMPORTS = "import torch\n"
TOUCH = "__import__('pathlib').Path('touched').touch()"
# (where it is planted, after which line of the honest text; what is planted)
HOSTILE = {
    "statement at the top": (IMPORTS, f"{TOUCH}\n"),
    "import": (IMPORTS, "import os\n"),
    "import of a submodule": (IMPORTS, "import torch.hub\n"),
    "import from": (IMPORTS, "from os import system\n"),
    "import under the name of torch": (IMPORTS, "import os as torch\n"),
    "import in forward": ("    def forward(self, x):\n", "        import os\n"),
    "default of an argument": ("    def forward(self, x", f", y={TOUCH}"),
    "annotation": ("    def forward(self, x", f": {TOUCH}"),
    "annotation of the result": ("    def forward(self, x)", f" -> {TOUCH}"),
    "decorator of a method": (CLASS, f"    @{TOUCH}\n"),
    "class body": (CLASS, f"    x = {TOUCH}\n"),
    "second base": ("class Net(nn.Module", f", {TOUCH}"),
    "keyword of the class": ("class Net(nn.Module", f", metaclass={TOUCH}"),
    "nested class": (CLASS, "    class Inner:\n        pass\n"),
    "another method": (CLASS, "    def __del__(self):\n        pass\n"),
    "getattr hook": (CLASS, "    def __getattr__(self, name):\n        return name\n"),
    "async method": (CLASS, "    async def forward(self, x):\n        return x\n"),
    "code in __init__": (INIT, f"        {TOUCH}\n"),
    "code in an argument of a layer": (INIT, f"        self.z = nn.Linear(3, {TOUCH})\n"),
    "code in a keyword of a layer": (INIT, f"        self.z = nn.Linear(3, 3, bias={TOUCH})\n"),
    "hub": (INIT, "        self.z = torch.hub.load('a/b', 'c')\n"),
    "load": (INIT, "        self.z = torch.load('evil.pt')\n"),
    "layer that is none": (INIT, "        self.z = nn.init.zeros_(3)\n"),
    "layer that takes a function": (
        INIT,
        "        self.z = nn.TripletMarginWithDistanceLoss(distance_function=print)\n",
    ),
    "layer that takes its time": (INIT, "        self.z = nn.LSTM(3, 3, num_layers=1000000000)\n"),
    "layer that takes its time, by position": (INIT, "        self.z = nn.LSTM(3, 3, 1000000000)\n"),
    "keywords from a dictionary": (INIT, "        self.z = nn.Linear(**{'in_features': 3, 'out_features': 3})\n"),
    "dunder of a layer": (INIT, "        self.__class__ = self.a\n"),
    "hook": (INIT, "        self.a.register_forward_hook(print)\n"),
    "loop": (INIT, "        while True:\n            pass\n"),
    "call in forward": (FORWARD, f"        {TOUCH}\n"),
    "builtin in forward": (FORWARD, "        eval('1')\n"),
    "load in forward": (FORWARD, "        x = torch.load('evil.pt')\n"),
    "file in forward": (FORWARD, "        x = torch.from_file('touched', shared=True, size=4)\n"),
    "file by an operator": (FORWARD, "        torch.ops.aten.from_file.out('touched', True, 4, out=x)\n"),
    "file by an operator without out": (FORWARD, "        torch.ops.aten.from_file.default('touched', True, 4)\n"),
    "operator of another namespace": (FORWARD, "        torch.ops.prim.RaiseException('x')\n"),
    "library": (FORWARD, "        torch.ops.load_library('evil.so')\n"),
    "way through classes": (FORWARD, "        x = x.__class__.__mro__\n"),
    "way through globals": (FORWARD, "        x = self.forward.__globals__\n"),
    "way through the module": (FORWARD, "        x = self.a.load_state_dict(x)\n"),
    "way through a layer's attribute": (FORWARD, "        x = self.a._forward_hooks\n"),
    "way through getattr": (FORWARD, "        x = getattr(x, '__class__')\n"),
    "way through getattr of self": (FORWARD, "        x = getattr(self, '__class__')\n"),
    "name put together": (FORWARD, "        x = getattr(self, '__cla' + 'ss__')\n"),
    "function as a value": (FORWARD, "        x = x.apply_(torch.load)\n"),
    "method that takes a function": (FORWARD, "        x = x.map_(x, x)\n"),
    "method with an address": (FORWARD, "        x = x.data_ptr()\n"),
    "format of a text": (FORWARD, "        x = '{0.__class__}'.format(x)\n"),
    "f-string": (FORWARD, "        x = f'{x.__class__}'\n"),
    "lambda": (FORWARD, "        x = (lambda: x)()\n"),
    "comprehension": (FORWARD, "        x = [y for y in (x,)]\n"),
    "walrus": (FORWARD, "        x = self.b((y := x))\n"),
    "star": (FORWARD, "        x = self.b(*x)\n"),
    "double star": (FORWARD, "        x = self.b(x, **x)\n"),
    "self as a value": (FORWARD, "        x = self\n"),
    "layer as a value": (FORWARD, "        x = self.b\n"),
    "change of self": (FORWARD, "        self.training = x\n"),
    "change of torch": (FORWARD, "        torch = x\n"),
    "change of an attribute of torch": (FORWARD, "        torch.relu = x\n"),
    "deletion of a layer": (FORWARD, "        del self.a\n"),
    "global": (FORWARD, "        global x\n"),
    "with": (FORWARD, "        with x:\n            pass\n"),
    "operator that takes a name": (FORWARD, "        x = operator.attrgetter('__class__')(x)\n"),
    "operator that calls": (FORWARD, "        x = operator.methodcaller('numpy')(x)\n"),
    "function of fbgemm": (FORWARD, "        x = torch.fbgemm_linear_fp16_weight(x, x, x)\n"),
    "private function": (FORWARD, "        x = torch._C._nn.gelu(x)\n"),
}


def planted(text: str, name: str) -> str:
    after, evil = HOSTILE[name]
    assert after in text
    return text.replace(after, after + evil, 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_source_is_refused_before_anything_runs(
    name: str, text: str, done: fxprune.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fxprune.emit.source_run.copied", lambda *_: pytest.fail("a network was made"))
    with pytest.raises(UntrustedError, match="was not run") as caught:
        network_from(planted(text, name), done.state_dict(), "theirs/model.py")
    assert "\n" not in str(caught.value) and "theirs/model.py" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_honest_text_passes_and_evil_does_run_when_it_is_trusted(
    text: str, done: fxprune.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    network_from(text, done.state_dict(), "model.py")
    assert not Path("touched").exists()
    network_from(planted(text, "code in __init__"), done.state_dict(), "model.py", trust=True)
    assert Path("touched").exists()


@pytest.mark.parametrize("name", PARTS)
def test_small_classes_count_word_for_word(name: str, text: str) -> None:
    whole = text.replace(CLASS, f"{PARTS[name]}\n\n{CLASS}")
    assert check_source(whole, "model.py").class_name == "Net"
    evil = PARTS[name].replace("super().__init__", f"{TOUCH}; super().__init__")
    changed = text.replace(CLASS, f"{evil}\n\n{CLASS}")
    with pytest.raises(UntrustedError, match="does something else than import torch or define a layer"):
        check_source(changed, "model.py")


@pytest.mark.parametrize(
    ("after", "evil", "complaint"),
    [
        (FORWARD, "x = Part(a=x)", "calls Part"),  # layers are made in __init__, and nowhere else
        (FORWARD, "x = Part(__dict__=x)", "calls Part"),
        (INIT, "self.z = Part(__class__=nn.ReLU())", "gives a part of the network a name in a way"),
        (INIT, "self.z = Part(**{'__class__': nn.ReLU()})", "gives a part of the network a name in a way"),
        (INIT, "self.z = Part(**self.a)", "gives a part of the network a name in a way"),
        (INIT, "self.z = Part(a=nn.ReLU())", ""),
    ],
    ids=range(6),
)
def test_small_classes_are_used_as_fxprune_uses_them(after: str, evil: str, complaint: str, text: str) -> None:
    whole = text.replace(after, f"{after}        {evil}\n", 1).replace(CLASS, f"{PARTS['Part']}\n\n{CLASS}")
    if not complaint:
        assert check_source(whole, "model.py").class_name == "Net"
        return
    with pytest.raises(UntrustedError, match=complaint):
        check_source(whole, "model.py")


@pytest.mark.parametrize(
    "bad",
    [
        "", "x", "class Net(nn.Module:", "\0", "pass", "class Part(nn.Module):\n    pass", "(" * 500,
        "-" * 200_000 + "1", "x = " + "+".join("1" * 100_000), "[" * 5000 + "]" * 5000, "\ud800",
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_network_is_refused_in_one_line(bad: str) -> None:
    with pytest.raises(UntrustedError) as caught:
        check_source(bad, "model.py")
    assert len(str(caught.value).splitlines()) == 1


def test_endless_text_is_refused_without_reading_it() -> None:
    with pytest.raises(UntrustedError, match="characters"):
        check_source("#" * (LONGEST + 1), "model.py")


def test_network_that_claims_more_than_it_brings_is_refused_without_memory(
    text: str, done: fxprune.Compiled
) -> None:  # fmt: skip
    huge = text.replace("nn.Linear(", "nn.Linear(10000000000000, ", 1) if "MaskedLinear(" not in text else text
    huge = huge.replace("MaskedLinear(6,", "MaskedLinear(6000000000000,", 1)
    assert huge != text
    with pytest.raises(LoadError, match="do not fit|does not make a network"):
        network_from(huge, done.state_dict(), "model.py")


def test_numbers_of_another_type_are_refused(text: str, done: fxprune.Compiled) -> None:
    state = done.state_dict()
    state["a.weight"] = state["a.weight"].half()
    with pytest.raises(LoadError, match=r"float64 as a\.weight and the weights have \(.*\) float16: they do not fit"):
        network_from(text, state, "model.py")


def test_torch_is_all_that_a_network_can_reach(text: str, done: fxprune.Compiled) -> None:
    """The second line of defence: even unchecked code finds no builtins to work with."""
    network = network_from(text, done.state_dict(), "model.py")
    reach = type(network).forward.__globals__["__builtins__"]
    assert not {"eval", "exec", "open", "compile", "globals", "vars", "input", "type"} & set(reach)
    with pytest.raises(ImportError, match="os is out of reach"):
        reach["__import__"]("os")
    assert reach["__import__"]("torch") is torch
