"""Content hashes: two values that mean the same have the same name, on every machine and in every session."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

Scalar = str | int | float | bool | None
Settings = Mapping[str, Any]
"""JSON-able settings: scalars, lists and mappings of them."""


def plain(value: Any) -> Any:
    """The JSON form of a frozen value: dataclasses and mappings become sorted dictionaries, sequences lists.

    Raises:
        TypeError: for anything that has no stable JSON form (a tensor, a function, a set).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    raise TypeError(
        f"a setting must be a number, text, list or mapping, got {type(value).__name__}; write its plain form"
    )


def canonical(value: Any) -> str:
    """One text for one meaning: sorted keys, no spaces, shortest exact floats."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"))


def content_hash(value: Any) -> str:
    """The first 20 hexadecimal digits of the SHA-256 of the canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:20]


def derived_seed(*parts: Any) -> int:
    """A seed in [0, 2^63) that depends on every part, for counter-based random streams."""
    digest = hashlib.sha256(canonical(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
