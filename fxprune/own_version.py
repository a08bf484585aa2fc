"""The version of fxprune itself."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def own_version() -> str:
    """As installed; "unknown" in a checkout that is not."""
    try:
        return version("fxprune")
    except PackageNotFoundError:
        return "unknown"
