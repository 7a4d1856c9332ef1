"""The command line of `python -m serve`: what it refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.__main__ import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/demo/bundle"], "is no key=value; write for example bundle=runs/demo/bundle"),
        ([], "'bundle' is missing"),
        (["bundle=x", "top_q=3"], "'top_q' is unknown"),
        (["bundle=x", "top_k=none"], "'top_k' is 'none'"),
    ],
)
def test_faulty_arguments_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""


def test_a_missing_bundle_is_named_before_ray_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"bundle={tmp_path / 'absent'}"]) == 2
    assert str(tmp_path / "absent") in capsys.readouterr().err
