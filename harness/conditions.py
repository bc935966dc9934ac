"""Settings that act only where another one has some value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Acts = Mapping[str, tuple[str, Any]]
"""By name: the other setting, and its value (or a tuple of values) where this one acts. Names not in it always act."""


def is_acting(name: str, values: Mapping[str, Any], acts: Acts) -> bool:
    """Whether a setting makes a difference to a point. Where the other one is not varied it does."""
    other, wanted = acts.get(name, ("", None))
    if other not in values:
        return True
    return values[other] in wanted if isinstance(wanted, tuple) else bool(values[other] == wanted)
