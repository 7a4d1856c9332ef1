"""`python -m ray_jobs VERB`: parse, validate, launch. A table for people first, one JSON object as the last line."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ray_jobs.faults import describe_mendable

# verb -> what it does; the job is `run` of the verb's module, imported only when asked for
VERBS = {
    "generate": "let a teacher LLM write dialogues or questions for tools, as both papers do, for `prepare` to read",
    "prepare": "build the corpus: validate, dedupe, split, audit for leaks, write Parquet shards",
    "audit": "look for leaks, near-duplicates, contradictions and more in a corpus; write a page and its numbers",
    "embed": "pass every distinct medium through the frozen encoder into the feature lake",
    "train": "train projector and LoRA with Ray Train and DeepSpeed",
    "tune": "sweep over training settings with Ray Tune; export the best trial, promote it if it beats the champion",
    "evaluate": "decode and score the test split: constrained, free, shuffled media, baselines",
    "evaluate_agent": "put the test split's dialogues to a served agent over HTTP and score its turns",
    "score": "score a file of predictions (see `score --help`)",
    "export": "write the best checkpoint as a bundle and register it in MLflow as champion",
    "follow": "keep a link to the bundle of MLflow's champion, which a running service takes over",
    "demo": "the way from prepare to export on ToolMM-mini, then serve it and ask six questions",
    "own": "the way from your own tools.jsonl to a served model: generate to export, then serve it and ask",
    "bench": "measure training, memory, decoding, embedding and asking a teacher against a peer in the same run",
    "doctor": "look for what would make a job fail, on every node; exit code 1 if there is any",
}
MODULES = {
    "prepare": "ray_jobs.prepare",
    "audit": "ray_jobs.audit",
    "evaluate_agent": "ray_jobs.evaluate.agent",
    "export": "ray_jobs.export",
    "follow": "ray_jobs.tracking.follow",
    "demo": "ray_jobs.demo",
}  # all others: the file `job` of the room that bears the verb's name

SERVED = ("demo", "own")  # verbs that end with a service
DRY_RUNS = {"train": "parameters, memory, steps, time", "generate": "requests, tokens, money"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ray_jobs", description="Train and serve multimodal tool agents on Ray."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, help_text in VERBS.items():
        subparser = verbs.add_parser(verb, help=help_text, description=help_text)
        if verb == "score":
            importlib.import_module("ray_jobs.score.job").add_arguments(subparser)
            continue
        subparser.add_argument("--config", action="append", help="YAML file, or the name of one in ray_jobs/configs")
        subparser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for example train.epochs=3")
        if verb in SERVED:
            subparser.add_argument("--keep", action="store_true", help="keep serving after the questions")
        if verb == "own":
            subparser.add_argument("--ask", metavar="WORDS", help="a question of yours to the served model")
        if verb in DRY_RUNS:
            subparser.add_argument("--dry-run", action="store_true", help=f"print what it will take: {DRY_RUNS[verb]}")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options may stand among the overrides, which argparse itself takes from one place only."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [argument for argument in rest if argument.startswith("-") or args.verb == "score"]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.verb != "score":
        args.overrides += rest
        if len(args.config or ()) > 1:
            parser.error(f"--config is given {len(args.config)} times, and there is one config to a run")
        args.config = args.config[0] if args.config else None
    return args


def run_verb(args: argparse.Namespace) -> dict[str, Any]:
    """Run the job of a parsed command line and return its result."""
    job = importlib.import_module(MODULES.get(args.verb, f"ray_jobs.{args.verb}.job"))
    if args.verb == "score":
        return job.run(args)
    from ray_jobs.config import load_run_spec

    spec = load_run_spec(args.config, args.overrides)
    if args.verb in DRY_RUNS and args.dry_run:
        dry = job if args.verb == "generate" else importlib.import_module("ray_jobs.estimate.dry_run")
        return dry.run_dry(spec)
    if args.verb == "own":
        return job.run(spec, words=args.ask, keep=args.keep)
    return job.run(spec, keep=args.keep) if args.verb in SERVED else job.run(spec)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 bad arguments or input, 130 interrupted, as a shell has it."""
    args = parse_arguments(argv)
    try:
        result = run_verb(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - the last stop: a bug or a failing machine, shown whole
        sentence = describe_mendable(error)
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1
    sys.stdout.flush()
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    return 1 if result.get("ok") is False else 0
