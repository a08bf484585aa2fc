"""Messages of other people's errors: one line, of a reasonable length, with a name that says something."""

from __future__ import annotations

import binascii
import struct

import torch

from fxprune.errors import described, first_line


def test_names_that_say_nothing_are_told_with_their_module() -> None:
    assert described(struct.error("too short")) == "struct.error: too short"
    assert described(binascii.Error()) == "binascii.Error"
    assert described(ValueError("wrong")) == "ValueError: wrong"
    assert described(torch.OutOfMemoryError("full")) == "torch.OutOfMemoryError: full"


def test_long_messages_are_cut() -> None:
    assert first_line(ValueError("\n one\n two")) == "one"
    assert first_line(ValueError("x" * 300)) == "x" * 300
    assert first_line(ValueError("x" * 301)) == "x" * 296 + " ..."
