"""The trained model on Ray Data actors: what the evaluation of questions and that of dialogues share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from data_pipeline.batches.blocks import keep_order
from data_pipeline.locations import locate
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from ray_jobs.cluster import tagged, thread_env
from ray_jobs.config import EvaluateOptions
from ray_jobs.progress import Progress
from ray_jobs.train.checkpoint import load_parameters


@dataclass(frozen=True)
class TrainedModel:
    """Where a trained model is and how it answers.

    Attributes:
        model_config: `ModelConfig` as a mapping.
        checkpoint: folder of the trained parameters, readable by every node.
        options: how to decode.
    """

    model_config: dict[str, Any]
    checkpoint: str
    options: EvaluateOptions

    def build(self) -> ToolLLM:
        """The model on the actor's device."""
        mllm = ToolLLM.build(ModelConfig.model_validate(self.model_config))
        mllm.load_trainable_state_dict(load_parameters(locate(self.checkpoint)))
        return mllm.to("cuda" if self.options.num_gpus else "cpu").eval()


def decode_on_actors(
    actor: type, job: Any, table: pa.Table, options: EvaluateOptions, unit: str
) -> list[dict[str, Any]]:
    """Run batches of the table through actors and say how it goes on.

    Args:
        actor: class whose constructor takes `job` and whose call takes and returns a table with a column "position".
        job: what an actor is built from.
        table: one row per item, in the order in which they are put side by side, with a column "position" that counts
            the items from 0.
        options: batch size and actors.
        unit: what a row is, in the plural.

    Returns:
        one mapping per item, by position.
    """
    keep_order(ray.data.DataContext.get_current())
    dataset = ray.data.from_arrow(table).repartition(max(1, -(-table.num_rows // options.batch_size)))
    decoded = dataset.map_batches(
        actor,
        fn_constructor_args=(job,),
        batch_size=options.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.num_actors),
        num_cpus=options.threads_per_actor,
        num_gpus=options.num_gpus,
        resources=tagged(options.node_resource, options.num_gpus),
        runtime_env={"env_vars": thread_env(options.threads_per_actor)},
    )
    rows: list[dict[str, Any]] = []
    blocks: Any = decoded.iter_batches(batch_size=None, batch_format="pyarrow")
    with Progress("evaluate") as progress:
        progress.show(0, table.num_rows, unit)
        for block in blocks:
            rows += block.to_pylist()
            progress.show(len(rows), table.num_rows, unit)
    return sorted(rows, key=lambda row: row["position"])
