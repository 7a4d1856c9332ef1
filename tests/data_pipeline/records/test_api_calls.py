"""Calls found in text, whole or broken, and what tells one API from another."""

from __future__ import annotations

import time
from random import Random

import pytest

from data_pipeline.records.api_calls import (
    MAX_CALL_CHARS,
    Argument,
    drop_version,
    find_calls,
    name_api,
    name_target,
    read_values,
    render_tool_id,
)


def test_a_call_is_read_with_its_arguments() -> None:
    (call,) = find_calls("model = torch.hub.load('a/b', model=\"c\", n=1, **{'x': (1, 2)})  # loads it (all)")
    assert call.function == "torch.hub.load"
    assert call.text == "torch.hub.load('a/b', model=\"c\", n=1, **{'x': (1, 2)})"
    assert call.arguments == (
        Argument("", "'a/b'", "a/b"),
        Argument("model", '"c"', "c"),
        Argument("n", "1", "1"),
        Argument("**", "{'x': (1, 2)}", "{'x': (1, 2)}"),
    )


def test_calls_inside_calls_come_after_them() -> None:
    calls = find_calls("I'd say: joblib.load(cached(url('a/b', 'm.joblib'))) and then model.eval()")
    assert [call.function for call in calls] == ["joblib.load", "cached", "url", "model.eval"]
    assert calls[3].arguments == ()
    assert read_values(calls[0]) >= {"a/b", "m.joblib"}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("f(repo='a/b', 'c', model='d')", [("repo", "a/b"), ("", "c"), ("model", "d")]),  # no Python
        ("f(a/b_V1.4, x=[1, 2)", [("", "a/b_V1.4"), ("x", "[1, 2)")]),  # nor this
        ("f('a', model='b", [("", "a"), ("model", "b")]),  # broken off
        ("f(", []),
        ("f(x == 1, 'it\\'s)')", [("", "x == 1"), ("", "it's)")]),
        ("f('\\d')", [("", "\\d")]),  # Python warns of it, and a warning is an error in these tests
    ],
)
def test_what_is_no_python_is_split_at_its_commas(text: str, arguments: list[tuple[str, str]]) -> None:
    (call,) = find_calls(text)
    assert [(argument.keyword, argument.value) for argument in call.arguments] == arguments


def test_prose_holds_no_call_and_brackets_without_end_take_no_time() -> None:
    assert find_calls("Use a model (the large one), or none, if not('that').") == []
    start = time.perf_counter()
    calls = find_calls("f(" * 5_000)
    assert len(calls) == 5_000
    assert max(len(call.text) for call in calls) == MAX_CALL_CHARS + 1
    assert time.perf_counter() - start < 20


def test_no_text_is_too_odd() -> None:
    random = Random(0)
    pieces = ["f(", "a.b(", ")", "(", "[", "}", "{", "'", '"', "\\", ",", "=", "*", "**", "#", "\n", "\r", "\f", "\0"]
    pieces += [
        "x",
        "'a/b'",
        "é",
        "\ud800",
        "\u2028",
        ":=",
        "for x in y",
        "not(",
        "lambda(",
        "await(",
        "f'{x}'",
        '"""',
        "0x",
    ]
    for _ in range(5000):
        text = "".join(random.choices(pieces, k=random.randrange(12)))
        for call in find_calls(text):
            assert call.text in text
            name_target(call)
            read_values(call)


@pytest.mark.parametrize(
    ("call", "name", "tool_id"),
    [
        (
            "torch.hub.load(repo_or_dir='intel-isl/MiDaS', model='DPT_Hybrid', pretrained=True)",
            "M",
            "intel-isl/MiDaS:DPT_Hybrid",
        ),
        ("torch.hub.load('pytorch/vision:v0.10.0', 'resnet18')", "resnet18", "pytorch/vision:resnet18"),
        ("torch.hub.load(repo_or_dir='a/b:torchhub', model='c', model_math='fp16')", "", "a/b:torchhub:c"),
        ("torch.hub.load(repo_or_dir='a/b', 'meal_v2', model='c', pretrained=True)", "", "a/b:c"),
        ("torch.hub.load(repo_or_dir='a/b')", "x", "a/b"),
        ("AutoModel.from_pretrained('a/b').", "b", "a/b"),
        ("pipeline('fill-mask', model= 'bert-base-cased')", "b", "bert-base-cased"),
        ("pipeline('image-classification', 'a/b')", "b", "a/b"),
        ("pipeline('qa', model=A.from_pretrained('a/b'), tokenizer=T.from_pretrained('a/b'))", "b", "a/b"),
        ("pipeline('text-to-image', model=a/b_V1.4)", "b", "a/b_V1.4"),
        ("'OneFormer.from_pretrained(shi-labs/oneformer)'", "", "shi-labs/oneformer"),
        ("load_from_hub(repo_id='a/b',filename='{MODEL FILENAME}.zip',)", "b", "a/b"),
        ("S.from_pretrained('a/b', vae=V.from_pretrained('c/d'))", "c/d", "c/d"),
        ("mlagents-load-from-hf --repo-id='a/b' --local-dir='./downloads'", "x", "a/b"),
        (
            "hub.load('https://tfhub.dev/google/universal-sentence-encoder/4')",
            "u",
            "google/universal-sentence-encoder/4",
        ),
        ("joblib.load('model.joblib')", "a/b", ""),
        ("S.from_pretrained(model_id, torch_dtype=torch.float16)", "a/b", ""),
        ("S2THubInterface()", "x", ""),
        ("./run.sh --download_model a/b", "a/b", ""),
    ],
)
def test_the_target_becomes_the_id(call: str, name: str, tool_id: str) -> None:
    assert render_tool_id(name_api(call, name)) == tool_id


def test_a_version_is_dropped_and_a_branch_is_not() -> None:
    assert [drop_version(text) for text in ("a/b:v0.10.0", "a/b:1", "a/b:hub", "a/b")] == [
        "a/b",
        "a/b",
        "a/b:hub",
        "a/b",
    ]
    assert render_tool_id(("a b", "{c}")) == "a-b:-c-"
