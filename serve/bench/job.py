"""All measurements over one bundle, in turns, round after round: a machine's speed changes by more than what is
compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.records.schema import Modality
from data_pipeline.sources.toolmm_mini.dialogue_wordings import load_wordings
from data_pipeline.sources.toolmm_mini.questions import load_grammar
from model.llm.bundle import Bundle
from model.llm.shared_backbone import SharedBackbone
from serve.bench.agent import Dialogues, FirstWordMeasurement, SecondTurn
from serve.bench.goals import render_goals
from serve.bench.load import LoadMeasurement
from serve.bench.selection import SelectionMeasurement
from serve.bench.service import DTYPE, serving

ROUNDS = 5
SECONDS = 15.0  # of the clients' load in each round
N_QUESTIONS = 256


def run(bundle: Bundle, rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure, print a table for people, and return the numbers.

    Args:
        bundle: of a model that writes dialogues; its catalogue has tools that take a picture and run here.
        rounds: in which everything is measured once.
        seconds: of the clients' load in each of them.
    """
    torch.set_num_threads(1)  # as a replica with one CPU has
    mllm = SharedBackbone({"engine": bundle}, dtype=DTYPE).mllm  # the replica's model
    questions, words = draw_questions(N_QUESTIONS), draw_words()
    dialogues = Dialogues(bundle)
    second_turn = SecondTurn(mllm, dialogues)
    with tempfile.TemporaryDirectory() as artifacts, serving(bundle.folder, Path(artifacts)) as port:
        load = LoadMeasurement(mllm, bundle.catalog, port, questions, seconds)
        selection = SelectionMeasurement(port, questions, words)
        first_word = FirstWordMeasurement(mllm, dialogues, port, words)
        for number in range(rounds):
            for measurement in (load, selection, first_word):
                measurement.run_round()
            print(f"round {number + 1} of {rounds}", flush=True)
    goals = [goal for part in (load, selection, first_word, second_turn) for goal in part.goals()]
    print(f"{load.render()}\n\n{render_goals(goals)}")
    return {
        "goals": [goal.to_json() for goal in goals],
        "load": load.to_json(),
        "selection": selection.to_json(),
        "first_word": first_word.to_json(),
        "second_turn": second_turn.to_json(),
    }


def draw_questions(n: int) -> list[str]:
    """Questions of ToolMM-mini's test split that come without a medium."""
    tasks = [task for task in load_grammar().tasks if task.modality is Modality.TEXT]
    wordings = [words for task in tasks for words in task.wordings["test"]]
    return [wordings[i] for i in np.random.default_rng(1).integers(len(wordings), size=n)]


def draw_words() -> Iterator[str]:
    """What needs no tool, said in other words each time: two sentences of small talk."""
    talk = [
        words for entry in load_wordings().small_talk for split in ("train", "test") for words in entry.wordings[split]
    ]
    pairs = list(permutations(talk, 2))
    for i in np.random.default_rng(4).permutation(len(pairs)):
        yield " ".join(pairs[i])
