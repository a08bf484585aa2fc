"""Labelled pictures from folders, arrays, digits and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxprune.data import class_names, classes_in, loader, open_data
from fxprune.errors import OptionError


def test_synthetic_is_the_same_for_the_same_seed() -> None:
    first, again, other = (open_data("synthetic", (3, 8, 6), 5, seed=seed, count=20) for seed in (0, 0, 1))
    assert torch.equal(first[3][0], again[3][0])
    assert not torch.equal(first[3][0], other[3][0])
    assert first[3][0].shape == (3, 8, 6)
    assert {int(label) for _, label in (first[k] for k in range(20))} <= set(range(5))


@pytest.mark.parametrize("layout", ["first", "last", "grey"])
def test_arrays(layout: str, tmp_path: Path) -> None:
    pixels = np.arange(4 * 8 * 6, dtype=np.uint8).reshape(4, 1, 8, 6)
    wanted = 1 if layout == "grey" else 3
    stored = pixels[:, 0] if layout == "grey" else np.repeat(pixels, 3, axis=1)
    np.savez(tmp_path / "d.npz", x=np.moveaxis(stored, 1, 3) if layout == "last" else stored, y=np.array([0, 1, 2, 1]))
    data = open_data(str(tmp_path / "d.npz"), (wanted, 8, 6), 3)
    picture, label = data[1]
    assert picture.shape == (wanted, 8, 6)
    assert torch.allclose(picture[0], torch.from_numpy(pixels[1, 0]).float() / 127.5 - 1)
    assert int(label) == 1


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind, shade in (("cat", 0), ("dog", 255)):
        (tmp_path / kind).mkdir()
        image.new("RGB", (10, 12), (shade, shade, shade)).save(tmp_path / kind / "a.png")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    data = open_data(str(tmp_path), (3, 8, 6), 2)
    assert [(float(x.min()), float(x.max()), y) for x, y in (data[0], data[1])] == [(-1, -1, 0), (1, 1, 1)]
    [batch] = list(loader(data, 4, 0))
    assert batch[0].shape == (2, 3, 8, 6)


def test_digits_are_real() -> None:
    pytest.importorskip("sklearn")
    data = open_data("digits", (1, 8, 8), 10)
    assert len(data) == 1797  # type: ignore[arg-type]
    assert -1 <= float(data[0][0].min()) < float(data[0][0].max()) <= 1


def test_folders_of_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind in (".hidden", "cats", "dogs"):
        (tmp_path / kind).mkdir()
        image.new("L", (8, 8)).save(tmp_path / kind / "1.png")
    assert (class_names(str(tmp_path)), classes_in(str(tmp_path))) == (["cats", "dogs"], 2)
    assert (class_names("digits"), classes_in("digits"), classes_in("synthetic")) == ([], 10, None)
    assert [label for _, label in open_data(str(tmp_path), (1, 8, 8), 2)] == [0, 1]  # type: ignore[attr-defined]
    (tmp_path / "dogs" / "1.png").unlink()
    with pytest.raises(OptionError, match="dogs holds no pictures"):
        open_data(str(tmp_path), (1, 8, 8), 2)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 8)), y=np.array([0, 7]))
    np.savez(tmp_path / "p.npz", x=np.array([{}], dtype=object), y=np.array([0]))
    (tmp_path / "empty").mkdir()
    for source, shape, message in (
        ("nowhere", (3, 8, 8), "give a folder with one folder of pictures"),
        (str(tmp_path / "d.npz"), (3, 8, 6), "x has shape \\(2, 3, 8, 8\\)"),
        (str(tmp_path / "d.npz"), (3, 8, 8), "labels from 0 to 7; the network tells 5"),
        (str(tmp_path / "p.npz"), (3, 8, 8), "cannot be read as an .npz file of plain arrays"),
        (str(tmp_path / "empty"), (3, 8, 8), "holds no pictures"),
        ("synthetic", (8, 8), "data are pictures"),
    ):
        with pytest.raises(OptionError, match=message):
            open_data(source, shape, 5)


def test_archives_that_are_none_or_damaged_are_refused(tmp_path: Path) -> None:
    good, array = tmp_path / "good.npz", tmp_path / "array.npy"
    np.savez(good, x=np.zeros((4, 1, 8, 8), dtype=np.float32), y=np.arange(4))
    np.save(array, np.zeros(3))
    whole = good.read_bytes()
    place = whole.index(b"NUMPY") + 100
    flipped = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    for content in (b"", b"hello", whole[: len(whole) // 2], flipped, array.read_bytes()):
        (tmp_path / "bad.npz").write_bytes(content)
        for read in (classes_in, lambda source: open_data(source, (1, 8, 8), 4)):
            with pytest.raises(OptionError, match="bad.npz cannot be read as an .npz file of plain arrays"):
                read(str(tmp_path / "bad.npz"))
    assert classes_in(str(good)) == 4


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.array([0.5, np.nan]), "NaN"),
        (np.array([0.5, 1e300]), "beyond single precision"),
        (np.array([True, False]), "x holds bool numbers; wanted 0 to 255"),
        (np.array([0, 256]), "x holds int64 numbers; wanted 0 to 255"),
        (np.array([-1, 3]), "x holds int64 numbers"),
        (np.array([1j, 2]), "x holds complex128 numbers"),
        (np.array(["a", "b"]), "x holds <U1 numbers"),
    ],
)
def test_pixels_that_are_none_are_refused(numbers: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.broadcast_to(numbers[:, None, None, None], (2, 1, 8, 8)), y=np.arange(2))
    with pytest.raises(OptionError, match=message):
        open_data(str(tmp_path / "d.npz"), (1, 8, 8), 2)


def test_pixels_of_any_whole_type_are_scaled(tmp_path: Path) -> None:
    for kind in (np.uint8, np.uint16, np.int64):
        np.savez(tmp_path / "d.npz", x=np.array([0, 255], dtype=kind).reshape(2, 1, 1, 1), y=np.arange(2))
        data = open_data(str(tmp_path / "d.npz"), (1, 1, 1), 2)
        assert [float(data[k][0]) for k in range(2)] == [-1, 1]
