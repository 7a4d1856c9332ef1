"""A command on a terminal, as a person starts it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def show_on_terminal(command: list[str], env: Mapping[str, str]) -> tuple[str, int]:
    """All that a command shows on a terminal of its own, in the project's folder, and its exit status."""
    own, terminal = pty.openpty()
    process = subprocess.Popen(command, cwd=REPO, env=env, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(own, 65536):
            shown += chunk
    except OSError:  # Linux says so that the other side is closed
        pass
    os.close(own)
    return shown.decode(), process.wait(timeout=60)


def strip_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
