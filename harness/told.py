"""What is printed and recorded of texts that a user gave: on one line, and without passwords."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

_USER = re.compile(r"(?<=://)[^/\s@]+@")
MOST_CHARACTERS = 2000


def without_passwords(text: str) -> str:
    """The text without the user and password of addresses in it: scheme://***@host."""
    return _USER.sub("***@", text)


def one_line(text: str) -> str:
    """The text without passwords and line breaks; what a terminal would obey is escaped, and its middle cut."""
    plain = " ".join(without_passwords(text).splitlines())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)
    half = MOST_CHARACTERS // 2
    return shown if len(shown) <= MOST_CHARACTERS else f"{shown[:half]} ... {shown[-half:]}"


def check_paths(options: Any) -> None:
    """Raise ValueError for a path with a control character: no file of a study has one in its name."""
    for field in fields(options):
        value = getattr(options, field.name)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and not str(path).isprintable():
                raise ValueError(
                    f"a path has printable characters only, got {str(path)!r} for {field.name}; write it without others"
                )
