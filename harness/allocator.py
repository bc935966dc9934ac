"""Keep freed memory in the process: training frees and asks for the same megabytes at every operation.

By default glibc maps large blocks afresh and gives them back, so every large tensor costs
page faults: an equivariant network spends up to a third of a step on them (benchmarks/allocator.py).
"""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
LARGEST_BLOCK = 2**30
"""Blocks up to this many bytes come from the heap, which is not given back."""


def keep_freed_memory() -> bool:
    """Tell the C library to reuse what this process frees; False where it is not glibc, which changes nothing.

    Numbers do not depend on it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))
