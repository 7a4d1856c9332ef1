"""One of two ranks that validate a model: `python validation_rank.py RANK FOLDER BACKBONE`.

Writes what came out under ZeRO-2 and ZeRO-3 to FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from toy_batches import TOOLS, build_toy_mllm, toy_media, toy_questions

from data_pipeline.batches.cards import encode_card
from data_pipeline.batches.encoding import encode_dialogue
from data_pipeline.records.dialogue import render_answer, render_call, render_observation
from data_pipeline.records.schema import Modality, ToolRecord, Turn
from model.llm.tool_llm import ToolLLM
from ray_jobs.train import validation
from ray_jobs.train.validation import ValidationSet, validate

N_RANKS, N_QUESTIONS, N_DIALOGUES, BATCH_SIZE = 2, 7, 5, 2
CHAIN = (
    Turn("assistant", render_call("Find It", "image/a.png, the dog")),
    Turn("observation", render_observation("image/b.png")),
    Turn("assistant", render_answer("The dog is found.")),
)


@dataclass
class Heard:
    """What the scorers were given, and how often the language model was called."""

    answers: list[list[list[str]]] = field(default_factory=list)
    n_passes: int = 0

    def listen(self, name: str) -> Any:
        """The scorer of that name, which from now on tells what it is given."""
        scorer = getattr(validation, name)

        def score(records: Any, answers: list[list[str]], tools: Any) -> Any:
            self.answers.append(answers)
            return scorer(records, answers, tools)

        setattr(validation, name, score)
        return scorer

    def count(self, *_: object) -> None:
        self.n_passes += 1


def build_set(mllm: ToolLLM) -> ValidationSet:
    """More questions to the first of two ranks than to the second, and dialogues of unlike lengths."""
    questions = toy_questions(mllm, N_QUESTIONS, seed=3)
    media = toy_media(N_QUESTIONS, 3)
    records = [
        ToolRecord(f"q{i}", "toy", Modality.TEXT, f"question {i}", tuple({TOOLS[i]: 0, "sound/pitch-shift": 0}))
        for i in range(N_QUESTIONS)
    ]
    dialogues = [
        ToolRecord(f"d{i}", "toy", Modality.TEXT, "please " * (i + 1), ("Find It",), turns=CHAIN)
        for i in range(N_DIALOGUES)
    ]
    return ValidationSet(
        records=records,
        prompt_ids=[question.prompt_ids for question in questions],
        media=[media[i] if (each.prompt_ids < 0).any() else None for i, each in enumerate(questions)],
        tool_ids=list(TOOLS),
        batch_size=BATCH_SIZE,
        dialogues=dialogues,
        dialogue_ids=[encode_dialogue(mllm.tokenizer, each.instruction, each.turns).prompt_ids for each in dialogues],
        cards=tuple(encode_card(mllm.tokenizer, tool, "what it does") for tool in TOOLS),
        seen_tool_ids=frozenset({"Find It"}),
        turn_max_new_tokens=24,
    )


def hear(mllm: ToolLLM, given: ValidationSet, rank: int, world_size: int, is_parted: bool) -> dict[str, Any]:
    """What a validation comes to and what the scorers were given, and how often the language model was called."""
    heard = Heard()
    scorers = {name: heard.listen(name) for name in ("score_records", "score_dialogues")}
    base: Any = mllm.llm.get_base_model()
    hook = base.base_model.register_forward_hook(heard.count)
    metrics = validate(mllm, given, rank, world_size, is_parted)
    hook.remove()
    for name, scorer in scorers.items():
        setattr(validation, name, scorer)
    return {"metrics": metrics, "answers": heard.answers, "n_passes": heard.n_passes}


def run(backbone: Path, stage: int, rank: int) -> dict[str, Any]:
    import deepspeed
    from zero_mllm import FULLY_SHARDED

    from ray_jobs.train import zero
    from ray_jobs.train_options import TrainOptions

    mllm = build_toy_mllm(backbone)
    given = build_set(mllm)
    options = TrainOptions.model_validate({"zero_stage": stage})
    config = zero.deepspeed_config(options, "float32")
    if stage == 3:
        config["zero_optimization"] |= FULLY_SHARDED
    groups: Any = zero.parameter_groups(mllm, options)
    engine: Any = deepspeed.initialize(model=mllm, model_parameters=groups, config=config)[0]
    engine.train()
    return hear(mllm, given, rank, N_RANKS, is_parted=stage == 3)


def main(rank: int, folder: Path, backbone: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(N_RANKS), "LOCAL_RANK": str(rank)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=N_RANKS)
    from ray_jobs.train.zero import disable_compiled_collectives

    disable_compiled_collectives()
    found = {f"stage{stage}": run(backbone, stage, rank) for stage in (2, 3)}
    (folder / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
