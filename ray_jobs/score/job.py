"""`python -m ray_jobs score`: score a file of predictions as MLLM-Tool, GPT4Tools or Gorilla score (DESIGN 4.4)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import InputError
from data_pipeline.locations import locate_local
from model.scoring.gorilla import score_gorilla
from model.scoring.gpt4tools import score_gpt4tools
from model.scoring.selection import SelectionScores, score_selection
from model.scoring.tables import (
    plot_scores,
    render_gorilla_markdown,
    render_gpt4tools_markdown,
    render_selection_csv,
    render_selection_markdown,
)
from ray_jobs.score.files import (
    read_catalog_names,
    read_gpt4tools_gold,
    read_gpt4tools_predictions,
    read_selection_gold,
    read_selection_predictions,
)
from ray_jobs.score.gorilla_files import read_apis, read_gorilla_gold, read_gorilla_predictions

PROTOCOLS = ("mllm-tool", "gpt4tools", "gorilla")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `score`."""
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="whose rules (default: %(default)s)"
    )
    parser.add_argument(
        "--gold",
        type=_local_path,
        required=True,
        help="mllm-tool: the released test JSON, or a corpus folder; gpt4tools: JSON or JSON Lines of {id, output}; "
        "gorilla: a released *_eval.json of APIBench, or the folder with them",
    )
    parser.add_argument(
        "--predictions",
        type=_local_path,
        required=True,
        help="JSON Lines; mllm-tool: {index, response} or {index, responses: [K strings]}; gpt4tools: {id, response}; "
        "gorilla: {index, response}, the index of a row from 0",
    )
    parser.add_argument(
        "--catalog",
        type=_local_path,
        help="mllm-tool: the names that exist, one per line, or a catalog.jsonl (default: the names in the gold); "
        "gorilla: more released files with APIs that exist beside the gold's, one or a folder",
    )
    parser.add_argument("--per-item", type=_local_path, metavar="FILE", help="write each item's values as JSON Lines")
    parser.add_argument(
        "--report",
        type=_local_path,
        metavar="FOLDER",
        help="mllm-tool: also write scores.md, scores.csv and scores.png there",
    )


def _local_path(text: str) -> Path:
    try:
        return locate_local(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the table and return the scores as the last line's JSON has them.

    Raises:
        InputError: options, gold, predictions or catalogue that cannot be used.
    """
    if args.protocol == "mllm-tool":
        return _run_mllm_tool(args)
    if args.protocol == "gpt4tools":
        return _run_gpt4tools(args)
    if args.protocol == "gorilla":
        return _run_gorilla(args)
    raise InputError(f"--protocol {args.protocol!r} is unknown; choose from {', '.join(PROTOCOLS)}.")


def _run_mllm_tool(args: argparse.Namespace) -> dict[str, Any]:
    gold = read_selection_gold(args.gold)
    responses = read_selection_predictions(args.predictions, gold.items)
    if args.catalog is None:
        catalog_ids, origin = gold.catalog_ids, gold.catalog_origin
    else:
        catalog_ids, origin = read_catalog_names(args.catalog), str(args.catalog)
    scores = score_selection(list(gold.items.values()), responses, catalog_ids)

    lines = [render_selection_markdown(scores) + f" Source: {origin}."]
    strangers = sorted(frozenset().union(*(item.valid_tool_ids for item in gold.items.values())) - catalog_ids)
    if strangers:
        lines.append(
            f"Note: the catalogue lacks {len(strangers)} of the gold's right names, the first is {strangers[0]!r}; "
            "naming one of them counts as right and as a hallucination."
        )
    table = "\n\n".join(lines)
    print(table)
    if args.per_item is not None:
        rows = ({"index": index, **item} for index, item in zip(gold.items, scores.items(), strict=True))
        _write_json_lines(args.per_item, rows)
    if args.report is not None:
        _write_report(args.report, table, scores)
    return scores.to_json()


def _run_gpt4tools(args: argparse.Namespace) -> dict[str, Any]:
    for option, value in (("--catalog", args.catalog), ("--report", args.report)):
        if value is not None:
            raise InputError(f"{option} belongs to --protocol mllm-tool; leave it out for gpt4tools.")
    gold = read_gpt4tools_gold(args.gold)
    scores = score_gpt4tools(gold, read_gpt4tools_predictions(args.predictions, gold))
    print(render_gpt4tools_markdown(scores))
    if args.per_item is not None:
        _write_json_lines(args.per_item, ({"id": item_id, **asdict(item)} for item_id, item in scores.items.items()))
    return scores.to_json()


def _run_gorilla(args: argparse.Namespace) -> dict[str, Any]:
    if args.report is not None:
        raise InputError("--report belongs to --protocol mllm-tool; leave it out for gorilla.")
    gold = read_gorilla_gold(args.gold)
    responses = read_gorilla_predictions(args.predictions, gold.items)
    apis = gold.apis if args.catalog is None else [*gold.apis, *read_apis(args.catalog)]
    scores = score_gorilla(list(gold.items.values()), responses, apis)
    origin = "the gold's own APIs" if args.catalog is None else f"the gold's own APIs and {args.catalog}"
    print(render_gorilla_markdown(scores) + f" Source: {origin}.")
    if args.per_item is not None:
        rows = zip(gold.items, scores.items, scores.matched, strict=True)
        _write_json_lines(
            args.per_item, ({"index": index, **asdict(item), "matched": call} for index, item, call in rows)
        )
    return scores.to_json()


def _write_report(folder: Path, table: str, scores: SelectionScores) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--report {folder}: cannot be made ({error.strerror}); name a folder that can be written."
        ) from error
    _write_text(folder / "scores.md", table + "\n")
    _write_text(folder / "scores.csv", render_selection_csv(scores))
    plot_scores(scores, folder / "scores.png")


def _write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    # escaped, as a model may have written half of a character, which no UTF-8 file can hold
    _write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.stat()  # a folder that was meant otherwise is not made
        storage.write_file(path, text)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists."
        ) from error
