"""How well a served model chooses among a caller's own functions, asked through OpenAI's client: no test.

Each query of a MetaTool corpus's test split comes with ten functions: a right one and nine others drawn at random, in
any order, their descriptions kept and their names made meaningless, so that descriptions alone decide. Then the right
description changes places with another one, and the answer should go with it.

    python tests/measurements/callers_tools.py http://127.0.0.1:8000 runs/metatool_unseen_smollm2/corpus --n 200
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from openai import OpenAI

from data_pipeline.corpus.files import Corpus
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from model.scoring.intervals import estimate_proportion

N_FUNCTIONS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    corpus = Corpus.open(options.corpus)
    seen = {tool_id for record in corpus.records("train") for tool_id in record.valid_tool_ids}
    described = [tool for tool in corpus.catalog if tool.description and tool.tool_id != UNKNOWN_TOOL_ID]
    rng = np.random.default_rng(options.seed)
    records = list(corpus.records("test"))
    records = [records[i] for i in rng.permutation(len(records))[: options.n]]
    client = OpenAI(base_url=f"{options.url}/v1", api_key="none")
    model = client.models.list().data[0].id

    def ask(words: str, descriptions: list[str]) -> int | None:
        functions = [
            {"type": "function", "function": {"name": f"function_{i}", "description": text}}
            for i, text in enumerate(descriptions)
        ]
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": words}],
            tools=functions,
            tool_choice="required",  # pyright: ignore
        )
        calls = answer.choices[0].message.tool_calls
        return int(calls[0].function.name.removeprefix("function_")) if calls else None  # pyright: ignore

    hits, follows = defaultdict(list), []
    for record in records:
        others = [tool for tool in described if tool.tool_id not in record.valid_tool_ids]
        right = corpus.catalog[record.valid_tool_ids[0]]
        tools = [right, *(others[i] for i in rng.permutation(len(others))[: N_FUNCTIONS - 1])]
        order = rng.permutation(N_FUNCTIONS).tolist()
        descriptions = [tools[i].description for i in order]
        place, other = order.index(0), int(rng.integers(1, N_FUNCTIONS))
        answer = ask(record.instruction, descriptions)
        for group in ("all", "seen" if right.tool_id in seen else "unseen"):
            hits[group].append(answer == place)
        if answer == place:
            swap = order.index(other)
            descriptions[place], descriptions[swap] = descriptions[swap], descriptions[place]
            follows.append(ask(record.instruction, descriptions) == swap)
    for group, found in hits.items():
        estimate = estimate_proportion(np.array(found))
        share, low, high = (f"{100 * value:.1f}" for value in (estimate.value, estimate.low, estimate.high))
        print(f"{group:<7} {len(found):>4} queries: {share} % [{low}, {high}]")
    print(f"swapped {len(follows):>4} right answers: {sum(follows)} went with the description")


if __name__ == "__main__":
    main()
