"""Kept memory: after it is asked for, what is freed and asked for again costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from harness.allocator import keep_freed_memory
assert keep_freed_memory() or not {keep}
a = torch.ones(2**22)
for _ in range(30):
    b = a + a
    del b
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b = a + a
    del b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_reused() -> None:
    """20 times 16 MiB would be 80,000 faults of 4 KiB where it is mapped anew."""
    found = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS.format(keep=True)], check=True, capture_output=True, text=True
    )
    assert int(found.stdout) < 1000
