"""Generated calls through the tools' own process: a planted broken one is told, as is a stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import InputError
from data_pipeline.instruct.cases import Case
from data_pipeline.records.dialogue import render_answer, render_call, render_observation
from ray_jobs.generate.trials import STAND_IN, Chain, build_chain, try_out

TOOL_IDS = {"Edges": "gpt4tools/edge-detection-on-image", "Crop": "gpt4tools/crop-the-given-object"}


def chain(answer: str, picture: Path) -> list[Chain]:
    return build_chain(Case("k", "There is a file image/1.png.\n", "Do it", answer, ""), TOOL_IDS, picture)


@pytest.mark.slow
def test_a_planted_broken_call_is_told(tmp_path: Path) -> None:
    for name in ("a.png", "stand_in.png"):
        Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / name)
    own, stand_in = tmp_path / "a.png", tmp_path / "stand_in.png"
    edges = render_call("Edges", "image/1.png")
    rows = [
        chain(edges, own),
        chain(edges + render_observation("image/2.png") + render_call("Edges", "image/2.png"), own),
        chain(render_call("Edges", "image/1.png, very thin"), own),
        chain(edges, stand_in),
        chain(render_call("Crop", "image/1.png, the dog"), own),
        chain(render_answer("Hello."), own),
        chain(render_call("Nobody's", "image/1.png"), own) + chain(edges, own),
    ]
    columns = try_out(rows, [], str(stand_in))
    assert columns[:2] == ["ok", "ok"]
    assert columns[2].startswith("failed: bad_arguments: There is no file named image/1.png, very thin")
    assert columns[3:] == [STAND_IN, "not tried: it runs a model", "", "ok"]
    with pytest.raises(InputError, match=r"none\.py"):
        try_out(rows, [tmp_path / "none.py"], "")


def test_no_call_starts_no_process() -> None:
    assert try_out([[], []], [], "") == ["", ""]
