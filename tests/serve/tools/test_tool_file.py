"""Files with tools of one's own, loaded by path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from serve.tools.tool_file import load_tool_file


def test_a_file_is_imported_once_and_apart_from_others_of_its_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool.py").write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            f"@dataclass\nclass Value:\n    name: str = {folder!r}\n"
        )
    first, second = (load_tool_file(str(tmp_path / folder / "tool.py")) for folder in ("a", "b"))
    assert (first.Value().name, second.Value().name) == ("a", "b")
    assert load_tool_file(str(tmp_path / "a" / "tool.py")) is first
    assert "tool" not in sys.modules


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "text.txt"])
def test_what_is_no_python_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text("x = 1")
    with pytest.raises(InputError, match="no Python file"):
        load_tool_file(str(tmp_path / name))


def test_a_broken_file_is_tried_again_once_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "tool.py"
    file.write_text("x = 1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_tool_file(str(file))
    file.write_text("x = 1234")
    assert load_tool_file(str(file)).x == 1234
