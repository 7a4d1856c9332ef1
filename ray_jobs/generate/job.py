"""`generate`: make data by a recipe: a catalogue from cards, and what a teacher writes: dialogues or questions."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from ray_jobs.config import RunSpec
from ray_jobs.generate import catalogs, dialogues, questions
from ray_jobs.generate.asking import CACHE

_RECIPES = {"dialogues": dialogues, "questions": questions}


def run(spec: RunSpec) -> dict[str, Any]:
    """Ask, filter, build, write `generated/` in the run's folder; print a report with examples.

    Raises:
        InputError: nothing to start from, no teacher, a teacher that refuses, or nothing of its answers can be used.
    """
    if spec.generate.recipe == "catalog":
        return catalogs.run(spec)
    options = spec.generate.teacher
    if options is None:
        raise InputError(
            "generate.teacher is not set; name an OpenAI-compatible server, such as generate.teacher={url: "
            "http://127.0.0.1:8000/v1, model: NAME}, with its key in the environment (generate.teacher.api_key_env)."
        )
    return _RECIPES[spec.generate.recipe].run(spec, Teacher(options, ReplyCache(spec.work_dir / CACHE)))


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """Say what it would take: requests, tokens, money. Nothing is sent.

    Raises:
        InputError: a catalogue asks nobody, so there is nothing to say; or as of `run`.
    """
    if spec.generate.recipe == "catalog":
        raise InputError("generate.recipe=catalog asks no teacher and costs nothing; run it without --dry-run.")
    return _RECIPES[spec.generate.recipe].run_dry(spec)
