"""`generate`: let a teacher write data, by one of two recipes: dialogues (GPT4Tools) or questions (MLLM-Tool)."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.client import Teacher
from ray_jobs.config import RunSpec
from ray_jobs.generate import dialogues, questions
from ray_jobs.generate.asking import CACHE

_RECIPES = {"dialogues": dialogues, "questions": questions}


def run(spec: RunSpec) -> dict[str, Any]:
    """Ask, filter, build, write `generated/` in the run's folder; print a report with examples.

    Raises:
        InputError: nothing to start from, no teacher, a teacher that refuses, or nothing of its answers can be used.
    """
    options = spec.generate.teacher
    if options is None:
        raise InputError(
            "generate.teacher is not set; name an OpenAI-compatible server, such as generate.teacher={url: "
            "http://127.0.0.1:8000/v1, model: NAME}, with its key in the environment (generate.teacher.api_key_env)."
        )
    return _RECIPES[spec.generate.recipe].run(spec, Teacher(options, ReplyCache(spec.work_dir / CACHE)))


def run_dry(spec: RunSpec) -> dict[str, Any]:
    """Say what it would take: requests, tokens, money. Nothing is sent."""
    return _RECIPES[spec.generate.recipe].run_dry(spec)
