"""Calls that others wrote, tried out: in the tools' own processes, results looked at, nothing dangerous run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.agent.trial import main

TOOLS = """
from serve.tools.media import png_file
from serve.tools.spec import Argument, ToolFile, ToolOutput, ToolSpec, picture_argument

def half(image):
    return ToolOutput("Half.", png_file(image[::2, ::2]))

def words(image):
    return ToolOutput("It is fine.")

def lies(image):
    return ToolOutput("Look.", ToolFile(b"no picture", "image/png"))

def sends(image):
    raise SystemExit("must never run")

PICTURE = (picture_argument(),)
HALF = ToolSpec("lab/half", half, "Halves.", PICTURE, "image")
WORDS = ToolSpec("lab/words", words, "Says a picture's name and gives none.", PICTURE, "image")
LIES = ToolSpec("lab/lies", lies, "Gives what is no picture.", PICTURE, "image")
SENDS = ToolSpec("lab/sends", sends, "Sends it away.", PICTURE, "image", has_side_effects=True)
TIMES = ToolSpec("lab/times", half, "Needs a number.", (*PICTURE, Argument("n", "integer", "how many")), "image")
"""


@pytest.mark.slow
def test_each_kind_of_call_has_its_verdict(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    files = {"image/1.png": str(tmp_path / "a.png")}
    broken = {"image/1.png": str(tmp_path / "broken.png")}

    def call(tool: str, given: str | None = "image/1.png", result: str = "") -> dict[str, str]:
        return {"tool": tool, "result": result} | ({} if given is None else {"input": given})

    edges = "gpt4tools/edge-detection-on-image"
    expected = [
        (files, [call("lab/half", result="image/2.png"), call(edges, "image/2.png")], "ok", ""),
        (files, [call("local/detect-edges", None)], "ok", ""),
        (files, [call("lab/words")], "failed", "gave no image"),
        (files, [call("lab/lies")], "failed", "cannot be read"),
        (files, [call("lab/half", "image/3.png")], "failed", "no file named image/3.png"),
        (files, [call("lab/times")], "failed", "takes 2 values"),
        (files, [call("lab/times", "image/1.png, many")], "failed", "bad_arguments"),
        (broken, [call("lab/half")], "failed", "bad_media"),
        (files, [call("lab/sends")], "not tried", "outside"),
        (files, [call("gpt4tools/detection")], "not tried", "model"),
        (files, [call("lab/none")], "not tried", "does not run here"),
        (files, [call("lab/times", None)], "not tried", "more, or less, than a file"),
    ]
    lines = "".join(json.dumps({"files": given, "calls": calls}) + "\n" for given, calls, _, _ in expected)
    sink = io.StringIO()
    assert main([str(tmp_path / "tools.py")], io.StringIO(lines), sink) == 0
    found = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [each["verdict"] for each in found] == [verdict for _, _, verdict, _ in expected]
    for each, (_, _, _, why) in zip(found, expected, strict=True):
        assert why in each["why"], each


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.py")], io.StringIO(), io.StringIO()) == 2
    line = json.dumps({"files": {"a": str(tmp_path / "none.png")}, "calls": [{"tool": "local/detect-edges"}]})
    assert main([], io.StringIO(line + "\n"), io.StringIO()) == 2
    said = capsys.readouterr().err.splitlines()
    assert "none.py" in said[0]
    assert "a file for a trial cannot be read" in said[1]
