"""Evaluation of dialogues without Ray: order, what is left out, and files that the scorer reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.dialogue import render_answer, render_call, render_observation
from data_pipeline.records.schema import Modality, ToolRecord, Turn
from model.decode.turn_types import TurnArgument, TurnRequest, TurnTool
from model.scoring.gpt4tools import score_gpt4tools
from ray_jobs.config import EvaluateOptions
from ray_jobs.evaluate import dialogues as job
from ray_jobs.evaluate.actors import TrainedModel
from ray_jobs.score.files import read_gpt4tools_gold, read_gpt4tools_predictions


class CharacterTokenizer:
    bos_token_id = 1
    eos_token_id = 2

    def __call__(self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> Any:
        return {"input_ids": [[ord(character) + 3 for character in text] for text in texts]}


def build_record(number: int, prompt: str, turns: tuple[Turn, ...], tool_id: str) -> ToolRecord:
    return ToolRecord(f"d{number}", "test", Modality.TEXT, prompt, (tool_id,), turns=turns)


CALL = render_call("Find It", "image/a.png")
ANSWER = render_answer("Done.")
CHAIN = (Turn("assistant", CALL), Turn("observation", render_observation("image/b.png")), Turn("assistant", ANSWER))
RECORDS = [
    build_record(0, "> Find It: it finds\nlong " * 9, CHAIN, "lab/find"),
    build_record(1, "> Find It: it finds\nno tool", CHAIN[2:], "unknown"),
    build_record(2, "far too long " * 50, CHAIN, "lab/find"),
    build_record(3, "> Find It: it finds\nshort", CHAIN, "lab/other"),
]


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> job.DialogueEvaluation:
    """Of a model that calls rightly and then answers the prompt's last word, decoded in batches of two."""
    monkeypatch.setattr(job, "load_tokenizer", lambda backbone: CharacterTokenizer())
    monkeypatch.setattr(TrainedModel, "build", lambda model: None)

    def generate(mllm: None, prompts: list[np.ndarray], turns: list[list[Turn]], max_new_tokens: int) -> Any:
        assert max_new_tokens == 16
        texts = ["".join(chr(token - 3) for token in prompt[1:]) for prompt in prompts]
        last_words = [render_answer(text.split()[-1]) for text in texts]
        return [[CALL, word] if len(gold) > 1 else [word] for gold, word in zip(turns, last_words, strict=True)]

    def write(writer: None, requests: list[TurnRequest], turns: list[list[Turn]], cards: list[Any]) -> Any:
        assert cards == [None] * len(requests), "this model was not trained to find any"
        for request in requests:
            assert request.tools == (TurnTool("Find It", (TurnArgument("image"),), "Finds."),)
        return [[CALL] * (1 + len(gold) // 2) for gold in turns]

    def decode(actor: type, model: Any, table: pa.Table, options: Any, unit: str) -> list[dict[str, Any]]:
        decoder = actor(model)
        rows = [row for start in (0, 2) for row in decoder(table.slice(start, 2)).to_pylist()]
        assert [row["position"] for row in rows] == [1, 2, 0], "few turns first, then short prompts"
        return sorted(rows, key=lambda row: row["position"])

    monkeypatch.setattr(job, "generate_dialogue", generate)
    monkeypatch.setattr(job, "write_dialogues", write)
    monkeypatch.setattr(job, "TurnWriter", lambda mllm, limits: None)
    monkeypatch.setattr(job, "decode_on_actors", decode)
    model = TrainedModel({"backbone": "x"}, "", EvaluateOptions(turn_max_new_tokens=16), Path())
    catalog = ToolCatalog([Tool("lab/find", "Finds.", "image", name="Find It"), Tool("lab/other"), Tool("unknown")])
    result = job.evaluate_dialogues(model, RECORDS, 500, {"lab/find", "unknown"}, catalog, False)
    assert result is not None
    assert job.evaluate_dialogues(model, RECORDS[2:3], 500, set(), catalog, False) is None
    return result


def test_responses_belong_to_their_dialogues(evaluation: job.DialogueEvaluation) -> None:
    assert [record.record_id for record in evaluation.records] == ["d0", "d1", "d3"]
    observed = CALL + render_observation("image/b.png")
    expected = [observed + render_answer("long"), render_answer("tool"), observed + render_answer("short")]
    assert evaluation.scores.responses == expected
    result = evaluation.to_json()
    assert (result["n_dialogues"], result["n_too_long"]) == (3, 1)
    assert result["all"]["sr"] == 1.0
    assert (result["seen"]["n"], result["unseen"]["n"]) == (2, 1)
    assert result["constrained"]["all"]["sr_act"] == pytest.approx(1 / 3), "it never answers"
    assert "Under constraints" in evaluation.to_markdown()
    assert "3 test dialogues, 1 more left out: longer than train.max_dialogue_tokens." in evaluation.to_markdown()


def test_files_go_through_the_scorer(evaluation: job.DialogueEvaluation, tmp_path: Path) -> None:
    evaluation.write(tmp_path)
    gold = read_gpt4tools_gold(tmp_path / job.GOLD_FILE)
    scores = score_gpt4tools(gold, read_gpt4tools_predictions(tmp_path / job.PREDICTIONS_FILE, gold)).to_json()
    found = evaluation.to_json()["all"]
    assert scores["items"] == found["n"]
    for name, paper_name in (("thought", "sr_t"), ("action", "sr_act"), ("args", "sr_args"), ("acc", "sr")):
        assert scores[name] == found[paper_name]
    assert "All dialogues" in (tmp_path / "dialogues.md").read_text()
    assert "All dialogues" in (tmp_path / "dialogues_constrained.md").read_text()
