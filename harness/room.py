"""NoRoom: what a file that finds no room on its disk is told as."""

from __future__ import annotations

import errno
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a quota or a process's own limit is full."""


class NoRoom(OSError):
    """A file could not be written because there is no room for it. What was there before is as it was."""


def no_room(path: Path, error: OSError) -> NoRoom:
    return NoRoom(
        error.errno,
        f"a study needs room for its files, got none for {path} ({error.strerror}); free some and run the same command "
        "again, which goes on from the last checkpoint",
    )
