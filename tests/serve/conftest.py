"""What tests of processes that are shut in share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serve.tools.sandbox.confine import Mechanisms


@pytest.fixture(scope="module")
def mechanisms() -> Mechanisms:
    """As a process with one thread finds them."""
    code = "from serve.tools.sandbox.confine import *; print(find_mechanisms().to_json())"
    return Mechanisms.parse(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.fixture(params=["namespace", "shared"])
def less_of_the_kernel(
    request: pytest.FixtureRequest, mechanisms: Mechanisms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that are started now are told that they have no more than this kind of user."""
    if not (mechanisms.landlock_abi and mechanisms.has_filter) or mechanisms.user == "shared":
        pytest.skip(f"this kernel offers {mechanisms.describe()}")
    less = Mechanisms(request.param, mechanisms.landlock_abi, True)
    (tmp_path / "sitecustomize.py").write_text(
        "import serve.tools.sandbox.confine as confine\n"
        f"confine.find_mechanisms = lambda: confine.Mechanisms.parse({less.to_json()!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
