"""Labelled pictures for criteria that look at gradients and for training: a folder, an .npz file, digits, or noise."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fxprune.capture.inputs import run_on_meta
from fxprune.errors import OptionError, first_line
from fxprune.program import Inputs
from fxprune.quiet import quiet
from fxprune.saliency.trial import Data, first_tensor

Shape = tuple[int, int, int]
_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
BATCH = 32  # pictures in one batch, where nobody says
_BATCHES = 4  # what ProsPr takes with its three steps; other criteria take one
_CLASSES = {"digits": 10, "synthetic": None}
_WHITE, _MIDDLE = 255, 0.5  # pixels up to 255 become [0, 1], and those [-1, 1]


def open_data(source: str, shape: Sequence[int], classes: int, *, seed: int = 0, count: int = 1024) -> Dataset[Any]:
    """(picture, label) pairs.

    source   a folder with one folder of pictures a class, the path of an .npz file with arrays x and y,
             "digits" (the 8 x 8 digits that come with scikit-learn) or "synthetic" (noise and random labels)
    shape    channels, height, width of a picture; folders and digits are brought to it, arrays must have it
    classes  outputs of the network; labels lie below it
    seed     of synthetic data
    count    pictures of synthetic data

    Pixels, whole numbers from 0 to 255, are scaled to [-1, 1]; floating-point arrays are taken as they are. Raises
    OptionError.
    """
    if len(shape) != 3:
        raise OptionError(
            f"data are pictures (channels x height x width); this network takes {'x'.join(map(str, shape))}"
        )
    size: Shape = (shape[0], shape[1], shape[2])
    if source == "synthetic":
        return synthetic(size, classes, count, seed)
    if source == "digits":
        return _checked(_digits(size), classes, source)
    path = Path(source)
    if path.is_dir():
        return _folder(path, size, classes)
    if path.suffix == ".npz" and path.is_file():
        return _checked(_arrays(path, size), classes, source)
    raise _unknown(source)


def _unknown(source: str) -> OptionError:
    return OptionError(
        f"--data {source}: give a folder with one folder of pictures for each class, an .npz file with arrays x and y, "
        "digits, or synthetic"
    )


def labelled(source: str, model: nn.Module, inputs: Inputs, batch: int, seed: int) -> Data:
    """The first batches of `open_data` for a network, always the same ones: as many as any criterion looks at.

    model   is run once on the inputs, which tell the size of a picture, to see how many classes it tells apart
    """
    real = inputs.with_storage()
    pictures = [one for one in pytree.tree_leaves((real.args, dict(real.kwargs))) if isinstance(one, Tensor)]
    if len(pictures) != 1:
        raise OptionError(f"data are pictures and labels; this network takes {len(pictures)} tensors")
    with quiet():
        classes = first_tensor(run_on_meta(model, real)).shape[-1]
    found = open_data(source, pictures[0].shape[1:], classes, seed=seed, count=_BATCHES * batch)
    batches = list(islice(loader(found, batch, seed), _BATCHES))
    return Data(batches, name=f"{source}, {_BATCHES} batches of {batch} at most")


def classes_in(source: str) -> int | None:
    """Number of classes that a source has: of an .npz file at least so many; None for noise, which fits any number.
    Raises OptionError.
    """
    path = Path(source)
    if source in _CLASSES:
        return _CLASSES[source]
    if path.is_dir():
        return len(class_names(source))
    if path.suffix == ".npz" and path.is_file():
        labels = _archive(path)["y"]
        return int(labels.max()) + 1 if labels.size and labels.dtype.kind in "iu" else None
    raise _unknown(source)


def class_names(source: str) -> list[str]:
    """Names of the classes of a folder of pictures, in the order of their labels; none for any other source."""
    path = Path(source)
    if source in _CLASSES or not path.is_dir():
        return []
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def loader(data: Dataset[Any], batch: int, seed: int) -> DataLoader[Any]:
    """Shuffled batches; each walk over it draws another order from the seed."""
    return DataLoader(data, batch, shuffle=True, generator=torch.Generator().manual_seed(seed))


def synthetic(shape: Shape, classes: int, count: int, seed: int) -> TensorDataset:
    """Normal noise with labels that mean nothing: enough to time things and to try them."""
    draw = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, *shape, generator=draw), torch.randint(classes, (count,), generator=draw))


def _digits(shape: Shape) -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise OptionError("digits need scikit-learn: pip install scikit-learn") from error
    found = load_digits()
    pictures = torch.from_numpy(found.images).float().div(16)[:, None]
    return _fitted(pictures, shape), torch.from_numpy(found.target).long()


def _fitted(pictures: Tensor, shape: Shape) -> Tensor:
    """Grey pictures in [0, 1], resized, repeated over the channels, in [-1, 1]."""
    resized = torch.nn.functional.interpolate(pictures, shape[1:], mode="bilinear", align_corners=False)
    return (resized.expand(-1, shape[0], -1, -1) - _MIDDLE) / _MIDDLE


def _archive(path: Path) -> dict[str, np.ndarray]:
    try:
        if not zipfile.is_zipfile(path):  # numpy would take it for a single array, or for a pickle
            raise ValueError("it is no archive")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # damaged archives fail in as many ways as there are parts of them
        raise OptionError(f"{path} cannot be read as an .npz file of plain arrays: {first_line(error)}") from error
    if not {"x", "y"} <= set(arrays):
        raise OptionError(f"{path} holds {', '.join(arrays) or 'nothing'}: it needs arrays x (pictures) and y (labels)")
    return arrays


def _arrays(path: Path, shape: Shape) -> tuple[Tensor, Tensor]:
    arrays = _archive(path)
    x, y = arrays["x"], arrays["y"]
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[1:] != shape and x.shape[1:] == (*shape[1:], shape[0]):
        x = np.moveaxis(x, 3, 1)
    if x.ndim != 4 or x.shape[1:] != shape or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        wanted = "x".join(map(str, shape))
        raise OptionError(
            f"{path}: x has shape {x.shape} and y {y.shape} ({y.dtype}); wanted N x {wanted} and N whole numbers"
        )
    return _pixels(x, path), torch.from_numpy(y.astype(np.int64))


def _pixels(x: np.ndarray, path: Path) -> Tensor:
    """As they are where they are floating-point numbers, whole numbers from 0 to 255 in [-1, 1]."""
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = torch.from_numpy(x.astype(np.float32))
        if not bool(pixels.isfinite().all()):
            raise OptionError(f"{path}: x holds NaN, infinities, or numbers beyond single precision")
        return pixels
    if x.dtype.kind not in "iu" or (x.size and not 0 <= x.min() <= x.max() <= _WHITE):
        raise OptionError(f"{path}: x holds {x.dtype} numbers; wanted 0 to {_WHITE}, or floating-point ones")
    return (torch.from_numpy(x.astype(np.float32)) / _WHITE - _MIDDLE) / _MIDDLE


def _checked(found: tuple[Tensor, Tensor], classes: int, source: str) -> TensorDataset:
    pictures, labels = found
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise OptionError(f"{source} has labels from {span}; the network tells {classes} classes apart")
    return TensorDataset(pictures, labels)


def _folder(path: Path, shape: Shape, classes: int) -> Dataset[Any]:
    kinds = [path / name for name in class_names(str(path))]
    files = [(file, k) for k, kind in enumerate(kinds) for file in sorted(kind.iterdir()) if _is_picture(file)]
    empty = [kind for k, kind in enumerate(kinds) if all(label != k for _, label in files)]
    if files and empty:
        raise OptionError(f"{empty[0]} holds no pictures, and each folder in {path} is a class")
    if not files:
        raise OptionError(
            f"{path} holds no pictures: one folder for each class is wanted, with {', '.join(sorted(_PICTURES))}"
        )
    if len(kinds) > classes:
        raise OptionError(f"{path} has {len(kinds)} classes; the network tells {classes} apart")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise OptionError("reading pictures needs Pillow: pip install pillow") from error
    return Pictures(files, shape)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _PICTURES


class Pictures(Dataset[Any]):
    """Picture files, read when asked for."""

    def __init__(self, files: Sequence[tuple[Path, int]], shape: Shape) -> None:
        self.files, self.shape = files, shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, label = self.files[place]
        channels, height, width = self.shape
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB").resize((width, height)))
        except Exception as error:  # decoders fail in as many ways as there are formats
            raise OptionError(f"{path} is not a picture that can be read: {first_line(error)}") from error
        planes = torch.from_numpy(pixels.copy()).float().reshape(height, width, -1).permute(2, 0, 1)
        return (planes / _WHITE - _MIDDLE) / _MIDDLE, label
