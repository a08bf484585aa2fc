"""matplotlib's own messages stay off stderr while it draws, and no longer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fxprune.comparison import Comparison
from fxprune.comparison_plot import write_plot
from fxprune.pictures import quiet_matplotlib
from fxprune.training.picture import picture


def test_messages_are_held_back_while_it_draws_and_errors_are_not() -> None:
    log = logging.getLogger("matplotlib.font_manager")
    assert log.isEnabledFor(logging.WARNING)
    with quiet_matplotlib():
        assert not log.isEnabledFor(logging.WARNING) and log.isEnabledFor(logging.ERROR)
    assert log.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    "draw", [lambda: picture({"epochs": []}), lambda: write_plot(Comparison(None, ()), "", Path("a.png"))]
)
def test_both_pictures_are_drawn_quietly(
    draw: Callable[[], object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    figure = pytest.importorskip("matplotlib.figure")

    def told(*_: object, **__: object) -> None:
        logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache")
        raise InterruptedError

    monkeypatch.setattr(figure, "Figure", told)
    monkeypatch.setattr("fxprune.comparison_plot.figure", told)
    with pytest.raises(InterruptedError):
        draw()
    assert caplog.messages == []
