"""JSON by a schema: whatever the model, what it writes fits; and it is the likeliest token by token."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from random_bundle import build_backbone, build_bundle

from data_pipeline.batches.encoding import encode_text
from data_pipeline.errors import InputError
from model.decode.json_text import WrittenJson, build_grammar, open_guide, write_json
from model.decode.kept_prefixes import KeptPrefixes
from model.llm.tool_llm import ToolLLM

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 3, "maximum": 99},
        "mood": {"enum": ["good", "bad"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "day": {"anyOf": [{"const": 7}, {"type": "null"}]},
    },
    "required": ["name", "age", "mood", "tags", "day"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> ToolLLM:
    folder = tmp_path_factory.mktemp("json")
    words = '{"name": "Anna", "age": 34, "mood": "bad", "tags": [true, false], "day": null}\n'
    return build_bundle(folder / "a", build_backbone(folder / "tiny", words), 3).build_mllm()


@pytest.fixture(scope="module")
def guide(mllm: ToolLLM) -> Any:
    return open_guide(mllm.tokenizer)


def write(
    mllm: ToolLLM, guide: Any, schema: dict[str, Any], words: str, kept: KeptPrefixes | None = None, n: int = 150
) -> WrittenJson:
    kept = KeptPrefixes(0) if kept is None else kept
    writing = write_json(mllm, guide, encode_text(mllm.tokenizer, words), build_grammar(schema), n, kept, "a")
    beginnings: list[str] = []
    written = None
    while written is None:
        try:
            beginnings.append(next(writing))
        except StopIteration as end:
            written = end.value
    assert all(written.text.startswith(text) for text in beginnings)
    return written


@pytest.mark.parametrize(
    "schema",
    [
        PERSON,
        {"type": "boolean"},
        {"type": "array", "items": PERSON["properties"]["day"], "minItems": 2, "maxItems": 2},
        {"$defs": {"mood": PERSON["properties"]["mood"]}, "$ref": "#/$defs/mood"},
        {"type": "string", "pattern": "^a[0-9]{3}z$"},
    ],
)
def test_what_is_written_fits_whatever_the_model(mllm: ToolLLM, guide: Any, schema: dict[str, Any]) -> None:
    for words in ("good", "name", "bad bad bad"):
        written = write(mllm, guide, schema, words)
        assert written.is_whole
        jsonschema.validate(json.loads(written.text), schema)
        assert written.completion_tokens > 0
        assert written == write(mllm, guide, schema, words), "nothing is drawn at random"


def test_the_likeliest_choice_is_taken(mllm: ToolLLM, guide: Any) -> None:
    """By hand: both moods' first distinct tokens behind the same beginning, by the bare model."""
    import torch

    schema = {"enum": ["good", "bad"]}
    for words in ("good", "mood", "tags", "age age"):
        written = json.loads(write(mllm, guide, schema, words).text)
        ids = {mood: encode_text(mllm.tokenizer, f'"{mood}"') for mood in schema["enum"]}
        n_common = next(i for i, (a, b) in enumerate(zip(*ids.values(), strict=False)) if a != b)
        before = np.concatenate([encode_text(mllm.tokenizer, words), ids["good"][:n_common]])
        with torch.inference_mode():
            logits = mllm.llm(input_ids=torch.from_numpy(before)[None].long()).logits[0, -1]
        assert written == max(schema["enum"], key=lambda mood: float(logits[ids[mood][n_common]]))


def test_an_answer_ends_at_its_limit(mllm: ToolLLM, guide: Any) -> None:
    cut = write(mllm, guide, PERSON, "good", n=6)
    assert (cut.is_whole, cut.completion_tokens) == (False, 6)
    assert write(mllm, guide, PERSON, "good").text.startswith(cut.text)


def test_what_was_read_before_is_not_read_again(mllm: ToolLLM, guide: Any) -> None:
    kept, words = KeptPrefixes(1 << 20), "good bad mood " * 5
    first, second = (write(mllm, guide, PERSON, words + end, kept) for end in ("good", "bad"))
    assert first.cached_tokens == 0 < second.cached_tokens < second.prompt_tokens
    assert second.text == write(mllm, guide, PERSON, words + "bad").text


def test_what_cannot_be_written_is_told(mllm: ToolLLM, guide: Any) -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(150):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    for schema in (
        {"type": "nothing"},
        {"type": "object", "patternProperties": 3},
        {"$ref": "#/$defs/none"},
        {"$ref": "http://127.0.0.1/schema.json"},
        {"type": "string", "pattern": "(?<=a)b"},
        {"not": {}},
        deep,
    ):
        with pytest.raises(InputError, match="no JSON can be written by this schema"):
            build_grammar(schema)
    with pytest.raises(InputError, match="too long"):
        write(mllm, guide, PERSON, "good " * 300)

    class Endless:
        eos_token_id = None

    with pytest.raises(InputError, match="no end token"):
        open_guide(Endless())


PATTERNS = [f"^.*a.{{{i}}}b.*$" for i in range(40)]


def chain(part: dict[str, Any]) -> dict[str, Any]:
    """Definitions each of which adds a pattern to what the next one says."""
    links = {f"d{i}": {**json.loads(json.dumps(part).replace("P", PATTERNS[i]))} for i in range(40)}
    for i in range(39):
        links[f"d{i}"]["$ref"] = f"#/$defs/d{i + 1}"
    return {"$ref": "#/$defs/d0", "$defs": links}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string", "allOf": [{"pattern": each} for each in PATTERNS]}}},
        chain({"type": "string", "pattern": "P"}),
        chain({"type": "object", "properties": {"a": {"type": "string", "pattern": "P"}}}),
    ],
)
def test_patterns_that_must_all_fit_are_few(schema: dict[str, Any]) -> None:
    """Else their number doubles the work with each, and nothing else of the process runs meanwhile."""
    with pytest.raises(InputError, match="joins more than 8 patterns"):
        build_grammar(schema)


def test_many_patterns_side_by_side_are_no_trouble() -> None:
    parts = {f"a{i}": {"type": "string", "pattern": f"^x{{{i},9}}$"} for i in range(10)}
    parts["b"] = {"allOf": [{"$ref": "#/$defs/c"}]}
    assert build_grammar({"type": "object", "properties": parts, "$defs": {"c": {"type": "integer"}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "^(a|aa|b){900,5000}c$"},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    ],
)
def test_what_never_ends_is_refused_or_cut(mllm: ToolLLM, guide: Any, schema: dict[str, Any]) -> None:
    with contextlib.suppress(InputError):
        assert not write(mllm, guide, schema, "good", n=20).is_whole
