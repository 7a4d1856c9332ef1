"""A folder for a process that the service starts: nobody else has it, and it goes even after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "toolmm-tools-"


class WorkFolder:
    """An empty folder, held by a lock that ends with this process; what killed ones left is removed first.

    Attributes:
        path: its full name.
    """

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # another's, or another was faster
                descriptor = _lock(left)
                shutil.rmtree(left)
                os.close(descriptor)
        while True:
            self.path = tempfile.mkdtemp(prefix=PREFIX)
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another took it for one that was left
                self._descriptor = _lock(Path(self.path))
                return

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def _lock(folder: Path) -> int:
    """An open descriptor that holds the folder; OSError where another process does, or it is no folder of ours."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise PermissionError(f"{folder} is another user's")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
