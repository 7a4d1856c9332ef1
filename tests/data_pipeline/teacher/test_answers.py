"""From bodies to answers."""

from __future__ import annotations

import json

import pytest
from chat_server import render_answer

from data_pipeline.teacher.answers import NoAnswerError, decode_body, describe_problem, parse_reply
from data_pipeline.teacher.requests import TeacherReply


def test_an_answer() -> None:
    assert parse_reply(render_answer("hi", 3, 4).decode()) == TeacherReply("hi", "stop", 3, 4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "cut short or no JSON"),
        (b'{"choices": [', "cut short or no JSON"),
        (b"<html>busy</html>", "cut short or no JSON"),
        (b"[" * 100_000, "cut short or no JSON"),
        (b"\xff\xfe", "no UTF-8"),
        (b"[]", "no chat completion"),
        (b"{}", "no choices"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": [null]}', "no message"),
        (b'{"choices": [{"message": {"content": 5}}]}', "content is no text"),
        (b'{"error": {"message": "model\\nis  loading."}, "choices": []}', "error: model is loading$"),
        (b'{"error": "busy"}', "error: busy$"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_answers(body: bytes, said: str) -> None:
    with pytest.raises(NoAnswerError, match=said):
        parse_reply(decode_body(body))


def test_what_was_counted_without_an_answer_is_told() -> None:
    body = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    with pytest.raises(NoAnswerError) as caught:
        parse_reply(json.dumps(body))
    assert caught.value.tokens == (7, 1)


@pytest.mark.parametrize("usage", [None, 5, {}, {"prompt_tokens": None}, {"prompt_tokens": "3"}], ids=str)
def test_a_server_need_not_count(usage: object) -> None:
    reply = parse_reply(json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}))
    assert (reply.prompt_tokens, reply.completion_tokens) == (0, 0)


def test_an_answer_may_be_empty() -> None:
    choice = {"message": {"content": None}, "finish_reason": "length"}
    assert parse_reply(json.dumps({"choices": [choice]})) == TeacherReply("", "length")


def test_half_a_surrogate_pair_becomes_text() -> None:
    reply = parse_reply('{"choices": [{"message": {"content": "a\\ud83d b\\ud83d\\ude00"}}]}')
    assert reply.text == "a? b😀"


def test_a_problem_is_one_short_line_without_what_is_hidden() -> None:
    said = describe_problem("x" * 190 + " secret-key-of-mine", lambda text: text.replace("secret-key-of-mine", "[key]"))
    assert "secret" not in said
    assert len(describe_problem({"message": "y\n" * 500})) <= 201
