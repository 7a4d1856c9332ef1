"""The trained model on Ray Data actors: what the evaluation of questions and that of dialogues share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from data_pipeline.batches.stream import keep_order
from data_pipeline.locations import locate
from model.llm.config import ModelConfig
from model.llm.tool_llm import ToolLLM
from ray_jobs.config import EvaluateOptions
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
        num_cpus=1,
        num_gpus=options.num_gpus,
    )
    rows: list[dict[str, Any]] = []
    start = last = time.perf_counter()
    blocks: Any = decoded.iter_batches(batch_size=None, batch_format="pyarrow")
    for block in blocks:
        rows += block.to_pylist()
        now = time.perf_counter()
        if now - last > 5 or len(rows) == table.num_rows:
            print(f"decoded {len(rows)}/{table.num_rows} {unit}, {len(rows) / (now - start):.1f}/s", flush=True)
            last = now
    return sorted(rows, key=lambda row: row["position"])
