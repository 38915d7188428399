"""What a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("ssl_vivit", "torch", "timm", "accelerate")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
