"""Addresses of functions: "module:function", the form in which code is named in settings that travel."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def resolve(address: str) -> Callable[..., Any]:
    """The function (or class) at "package.module:name".

    Raises:
        ValueError: if the address has another form, or the module, the name, or a callable of that name is missing.
    """
    module_name, colon, name = address.partition(":")
    if not (module_name and colon and name):
        raise ValueError(
            f"an address is a module and a function, got {address!r}; write for example my_package.module:function"
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the module of an address must be importable, got {address!r} ({error}); install the package that holds "
            "it, or start from the folder that does"
        ) from error
    except AttributeError as error:
        raise ValueError(
            f"the module of an address must hold its function, got {address!r}; write the name of one that "
            f"{module_name} defines"
        ) from error
    if not callable(found):
        raise ValueError(
            f"an address must name something callable, got {address!r}, a {type(found).__name__}; "
            "write the name of a function"
        )
    return found
