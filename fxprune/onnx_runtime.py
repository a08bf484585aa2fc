"""onnxruntime, imported so that it keeps to itself.

By default it writes usage data to the home folder, sends them to its makers from a thread of its own, and says on
stderr when it cannot.

Whoever has set ORT_DISABLE_TELEMETRY, or has imported onnxruntime before, has decided otherwise.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
