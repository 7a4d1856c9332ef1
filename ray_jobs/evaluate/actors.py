"""The trained model on Ray Data actors: what the evaluation of questions and that of dialogues share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from data_pipeline.batches.blocks import keep_order
from data_pipeline.locations import Location, locate
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from ray_jobs.cluster import tagged, thread_env
from ray_jobs.config import EvaluateOptions
from ray_jobs.evaluate.answers import KeptAnswers, compute_key
from ray_jobs.progress import Progress
from ray_jobs.train.checkpoint import load_parameters


@dataclass(frozen=True)
class TrainedModel:
    """Where a trained model is and how it answers.

    Attributes:
        model_config: `ModelConfig` as a mapping.
        checkpoint: folder of the trained parameters, readable by every node.
        options: how to decode.
        answers_dir: where answers lie until all are there.
    """

    model_config: dict[str, Any]
    checkpoint: str
    options: EvaluateOptions
    answers_dir: Location

    def build(self) -> ToolLLM:
        """The model on the actor's device."""
        mllm = ToolLLM.build(ModelConfig.model_validate(self.model_config))
        mllm.load_trainable_state_dict(load_parameters(locate(self.checkpoint)))
        return mllm.to("cuda" if self.options.num_gpus else "cpu").eval()


def decode_on_actors(actor: type, job: Any, table: pa.Table, model: TrainedModel, unit: str) -> list[dict[str, Any]]:
    """Run batches of the table through actors and say how it goes on.

    Answers are kept as they come. Asked the same again, after a kill, it goes on: batches are cut as before, and those
    that are answered are not asked again, so that the answers are those of a run that nothing disturbed.

    Args:
        actor: class whose constructor takes `job` and whose call takes and returns a table with a column "position".
        job: what an actor is built from; its `repr` says all of it.
        table: one row per item, in the order in which they are put side by side, with a column "position" that counts
            the items from 0.
        model: says how to decode, and where answers are kept.
        unit: what a row is, in the plural.

    Returns:
        one mapping per item, by position.
    """
    options = model.options
    folder = model.answers_dir / compute_key(actor, job, model.checkpoint, table)
    with KeptAnswers(folder) as answers, Progress("evaluate") as progress:
        batches = [table.slice(start, options.batch_size) for start in range(0, len(table), options.batch_size)]
        todo = [batch for batch in batches if not answers.rows.keys() >= set(batch["position"].to_pylist())]
        progress.show(len(answers.rows), len(table), unit)
        for block in _decode(actor, job, todo, options):
            answers.add(block)
            progress.show(len(answers.rows), len(table), unit)
    return [answers.rows[position] for position in sorted(answers.rows)]


def _decode(actor: type, job: Any, batches: list[pa.Table], options: EvaluateOptions) -> Iterator[pa.Table]:
    """The answers to each batch, in order."""
    if not batches:
        return
    dataset = ray.data.from_arrow([batch.combine_chunks() for batch in batches])
    keep_order(dataset.context)
    decoded = dataset.map_batches(
        actor,
        fn_constructor_args=(job,),
        batch_size=None,  # a block is a batch
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.num_actors),
        num_cpus=options.threads_per_actor,
        num_gpus=options.num_gpus,
        resources=tagged(options.node_resource, options.num_gpus),
        runtime_env={"env_vars": thread_env(options.threads_per_actor)},
    )
    blocks: Any = decoded.iter_batches(batch_size=None, batch_format="pyarrow")
    yield from blocks
