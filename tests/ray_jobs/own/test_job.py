"""From ten tools of a shop to a served model; and which files of a user's folder are taken."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from terminal import show_on_terminal, strip_codes

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality, ToolRecord
from ray_jobs.cluster import JOB_CONFIG_ENV
from ray_jobs.config import load_run_spec
from ray_jobs.own.job import choose_questions, settle

REPO = Path(__file__).resolve().parents[3]
SHOP = REPO / "ray_jobs" / "examples" / "shop" / "tools.jsonl"
NOISE = re.compile(r"\(.*pid=\d+|WARNING|raylet|\[E |E0000| E \d+ \d+\] |toolmm-tells")


def run_on_terminal(command: list[str]) -> str:
    """What a command, which must end well, shows on a terminal of 160 columns, without colours and the like."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name == JOB_CONFIG_ENV}
    shown, status = show_on_terminal(command, env | {"TERM": "xterm", "COLUMNS": "160", "LINES": "50"})
    text = strip_codes(shown)
    assert status == 0, text
    return text


def test_what_lies_beside_the_tools_belongs_to_them(tmp_path: Path) -> None:
    given = [f"generate.tools={tmp_path / 'tools.jsonl'}", f"runs_dir={tmp_path}"]
    spec = settle(load_run_spec("own_tiny", given))
    assert (spec.generate.groups, spec.generate.media, spec.prepare.media_root) == (None, None, None)
    assert spec.prepare.source == "jsonl"
    assert spec.prepare.path == tmp_path / "own_tiny" / "generated" / "records.jsonl"
    for name in ("groups", "media"):
        (tmp_path / f"{name}.jsonl").touch()
    spec = settle(load_run_spec("own_tiny", given))
    assert spec.generate.groups == tmp_path / "groups.jsonl"
    assert spec.generate.media == tmp_path / "media.jsonl"
    assert spec.prepare.media_root == tmp_path
    named = settle(load_run_spec("own_tiny", [*given, "generate.groups=other.jsonl"]))
    assert named.generate.groups == Path("other.jsonl")


def test_no_tools_is_a_sentence() -> None:
    for config in ("own_tiny", "demo"):
        with pytest.raises(InputError, match=r"generate\.tools=FOLDER/tools\.jsonl"):
            settle(load_run_spec(config, []))


def test_three_questions_for_different_tools_are_asked() -> None:
    tools = [("a",), ("a", "b"), ("b",), ("c", "d"), ("e",)]
    records = [ToolRecord(str(n), "test", Modality.TEXT, f"words {n}", own) for n, own in enumerate(tools)]
    assert [question.instruction for question in choose_questions(records, None)] == ["words 0", "words 2", "words 3"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("warm_python")
def test_a_shops_tools_are_served(tmp_path: Path) -> None:
    """As a user starts it on a terminal, but for workers that have imported; with the tiny backbone: no download."""
    command = [sys.executable, "-m", "ray_jobs", "own", "--config", "own_tiny", f"generate.tools={SHOP}"]
    said = run_on_terminal([*command, f"runs_dir={tmp_path}", "--ask", "Where is the parcel that I sent on Monday?"])
    assert re.search(r"train +━+ +60/60 +steps +100% +took \d:\d\d +loss=", said), said
    lines = re.split(r"[\r\n]+", said.rstrip())
    assert not [line for line in lines if NOISE.search(line)]
    headings = [line.split()[1] for line in lines if line.startswith("=== ")]
    assert headings == ["generate", "prepare", "train", "evaluate", "export", "serve", "summary"]
    outcome = json.loads(lines[-1])
    assert outcome["generated"]["kept"] == 100
    assert outcome["evaluation"]["n_questions"] == 20
    assert outcome["evaluation"]["constrained"]["acc"] >= 0.8, "chance is 0.1"
    own, *asked = outcome["answers"]
    assert own["question"] == "Where is the parcel that I sent on Monday?"
    assert own["tools"][0]["tool_id"].startswith("shop/")
    hits = [answer["tools"][0]["tool_id"] in answer["right"] for answer in asked]
    assert len(hits) == 3
    assert sum(hits) >= 2
    assert Path(outcome["bundle"]).is_relative_to(tmp_path)
