"""Ways to damage a file, from a flipped bit to a file that calls os.system. Every choice comes from one generator."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]
MARKER = "fuzz-canary"  # what hostile contents would make if they ran
_EDGES = (0, 1, 2, 7, 8, 13, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64)
_TEXTS = ("", "x", "a.b", "../../x", "nan", "torch.os.system", "builtins.eval", "\x00", "é", "class", "A" * 5000)
_CODE = f"__import__('os').system('touch {MARKER}')"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0.5, float("nan"), float("inf"), [], {}, [[]], [0] * 1000, _CODE, f"x = {_CODE}; x"),
    *({"as_int": 3}, {"as_expr": {"expr_str": _CODE}}, {"as_string": _CODE}, {"use_pickle": True}),
    *_EDGES,
    *_TEXTS,
)  # fmt: skip
_GLOBALS = (
    *("os system", "posix system", "builtins exec", "builtins eval", "builtins getattr", "io open", "sys exit"),
    *("torch.fx.graph_module reduce_graph_module", "torch.hub load", "torch.nn.modules.linear Linear"),
    *("torch.nn.modules.conv ConvTranspose2d", "collections OrderedDict", "torch Size", "functools partial"),
)
_NAMES = (
    "weight",
    "bias",
    "training",
    "_modules",
    "forward",
    "stride",
    "groups",
    "padding",
    "kernel_size",
    "num_features",
)


def mutate(content: bytes, draw: Random, ways: tuple[Mutation, ...]) -> bytes:
    """One to three mutations after another."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(ways)(content, draw)
    return content


# ---- bytes


def flip(content: bytes, draw: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 8, 64))):
        if changed:
            changed[_place(changed, draw)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _place(content: bytes | bytearray, draw: Random) -> int:
    """Anywhere, but more often near the ends, where headers and directories are."""
    near = min(len(content), 2000)
    start = draw.choice((0, len(content) - near, None))
    return draw.randrange(len(content)) if start is None else start + draw.randrange(near)


def overwrite(content: bytes, draw: Random) -> bytes:
    if len(content) < 9:
        return content
    place, new = draw.randrange(len(content) - 8), _number(draw)
    return content[:place] + new + content[place + len(new) :]


def _number(draw: Random) -> bytes:
    value, width = draw.choice(_EDGES), draw.choice((1, 2, 4, 8))
    return (value % 256**width).to_bytes(width, draw.choice(("little", "big")))


def truncate(content: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def insert(content: bytes, draw: Random) -> bytes:
    place, new = draw.randrange(len(content) + 1), draw.randbytes(draw.choice((1, 4, 100, 5000)))
    return content[:place] + draw.choice((new, bytes(len(new)), content[:100])) + content[place:]


def remove(content: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + content[place + draw.choice((1, 4, 100, 5000)) :]


def swap(content: bytes, draw: Random) -> bytes:
    first, second = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return content[second:] + content[first:second] + content[:first]


BYTES: tuple[Mutation, ...] = (flip, flip, overwrite, truncate, insert, remove, swap)

# ---- archives


def within(name_part: str, ways: tuple[Mutation, ...]) -> Mutation:
    """Apply one of these to a member of a zip archive, and write its checksum anew."""

    def change(content: bytes, draw: Random) -> bytes:
        members = _members(content)
        names = [name for name in members if name_part in name]
        if not names:
            return content
        name = draw.choice(names)
        return _zipped({**members, name: draw.choice(ways)(members[name], draw)})

    return change


def _members(content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist() if info.filename}
    except Exception:  # an earlier mutation has broken it
        return {}


def _zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            # a ZipInfo of its own is dated 1980, not now: the same seed gives the same bytes at any time
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def members(content: bytes, draw: Random) -> bytes:
    """Drop, copy, rename, empty, add or compress members."""
    found = _members(content)
    if not found:
        return content
    name, folder = draw.choice(list(found)), next(iter(found)).partition("/")[0]
    added = draw.choice(
        ("constants.pkl", "models/model.json", "data.pkl", "archive_format", "data/weights/weight_0", "x")
    )
    ways: tuple[Callable[[], object], ...] = (
        lambda: found.pop(name),
        lambda: found.update({f"{folder}/{added}": found[name]}),
        lambda: found.update({draw.choice(("x", "../../x", "a/data.pkl", "é/version", "A" * 5000)): found.pop(name)}),
        lambda: found.update({name: b""}),
        lambda: found.update({name: bytes(10**7)}),
        lambda: found.update({draw.choice(list(found)): found[name]}),
    )
    draw.choice(ways)()
    return _zipped(found, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def edit_pickle(content: bytes, draw: Random) -> bytes:
    """Change instructions of a pickle: numbers, texts and names become others, any may go, come twice or be a call."""
    try:
        places = [position for _, _, position in pickletools.genops(content) if position is not None]
    except Exception:  # an earlier mutation has broken it
        return content
    parts = [content[start:end] for start, end in pairwise([*places, len(content)])]
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(1, len(parts))
        parts[place] = _instruction(parts[place], draw)
    return b"".join(parts)


def _instruction(part: bytes, draw: Random) -> bytes:
    kind = part[:1]
    if kind in b"KMJ" and draw.random() < 0.8:
        return draw.choice((b"J" + _number(draw)[:1] * 4, b"\x8a\x09" + b"\xff" * 8 + b"\0", b"G" + bytes(8), b"N"))
    if kind == b"X" and draw.random() < 0.8:
        return _text(draw.choice((*_TEXTS, *_NAMES, _CODE, f'x", {_CODE}, "')))
    if kind == b"c" and draw.random() < 0.8:
        return _name(draw)
    return draw.choice((b"", part * 2, part[::-1], call(draw), call(draw)))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _name(draw: Random) -> bytes:
    return b"c" + draw.choice(_GLOBALS).replace(" ", "\n").encode() + b"\n"


def call(draw: Random) -> bytes:
    """Instructions that call a function and leave its result where a value stood."""
    return _name(draw) + _text(draw.choice((f"touch {MARKER}", _CODE, MARKER))) + b"\x85R"


def foreign_pickle(_content: bytes, draw: Random) -> bytes:
    """A whole archive of torch.save's with a call in it, for the place where a .pt2 keeps its example inputs."""
    return _zipped({"a/data.pkl": b"\x80\x02" + call(draw) + b".", "a/version": b"3\n", "a/byteorder": b"little"})


PICKLE: tuple[Mutation, ...] = (flip, overwrite, *[edit_pickle] * 6)

# ---- JSON


def edit_json(content: bytes, draw: Random) -> bytes:
    try:
        document = json.loads(content)
    except ValueError:
        return content
    for _ in range(draw.choice((1, 1, 2, 5))):
        draw.choice((_edit, _exchange))(document, draw)
    return json.dumps(document).encode()


def _exchange(document: Any, draw: Random) -> None:
    """Two values of the same type change places: a name, a size, an operator, a record that stands elsewhere."""
    places = list(_leaves(document))
    holder, key = draw.choice(places) if places else ([0], 0)
    alike = [place for place in places if type(place[0][place[1]]) is type(holder[key])] or [(holder, key)]
    other, place = draw.choice(alike)
    holder[key], other[place] = other[place], holder[key]


def _leaves(document: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value that holds no others."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
                if not isinstance(value, dict | list):
                    yield holder, key
                waiting.append(value)


def _edit(document: Any, draw: Random) -> None:
    """Change one value, at a depth that is drawn on the way down."""
    holder = document
    while isinstance(holder, dict | list) and holder:
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.85:
            holder = holder[key]
            continue
        _change(holder, key, draw)
        return


def _change(holder: Any, key: Any, draw: Random) -> None:
    kind = draw.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.extend([holder[key]] * draw.choice((1, 3, 1000)))
    elif kind == 1:
        holder[draw.choice(_TEXTS)] = holder.pop(key)
    elif kind == 2 and isinstance(holder[key], int):
        holder[key] = draw.choice((holder[key] + 1, -holder[key], holder[key] * 1000, *_EDGES))
    else:
        holder[key] = draw.choice(_VALUES)


def safetensors_header(content: bytes, draw: Random) -> bytes:
    """Edit the JSON in front of the tensors, its length with it or not."""
    if len(content) < 8:
        return content
    (length,) = struct.unpack("<Q", content[:8])
    header = edit_json(content[8 : 8 + length], draw)
    told = draw.choice((*[len(header)] * 8, length, draw.choice(_EDGES) % 2**64))
    return struct.pack("<Q", told) + header + content[8 + length :]


KINDS: dict[str, tuple[Mutation, ...]] = {
    "whole.pt": (*BYTES, members, *[within("data.pkl", PICKLE)] * 20),
    "state.pt": (*BYTES, members, *[within("data.pkl", PICKLE)] * 20),
    "weights.safetensors": (*BYTES, *[safetensors_header] * 15),
    "exported.pt2": (
        *BYTES,
        members,
        within("sample_inputs", (foreign_pickle, flip)),
        *[within("weights_config", (edit_json,))] * 4,
        *[within("model.json", (*[edit_json] * 8, flip, remove))] * 16,
    ),
    "recipe.json": (*BYTES, *[edit_json] * 20),
}
