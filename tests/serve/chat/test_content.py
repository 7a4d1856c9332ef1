"""A chat's media: decoded, stored, found again in later messages, and refused where they must be."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from small_media import picture, sound

from serve.artifacts import ArtifactStore, CallerArtifacts
from serve.chat.content import ChatLimits, Conversation, parse_conversation, store_media
from serve.chat.schemas import parse_chat_request
from serve.http.schemas import RequestError

LIMITS = ChatLimits(max_messages=8, max_text_chars=200, max_media=3, max_upload_bytes=10_000)


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def parse(*messages: dict[str, Any], limits: ChatLimits = LIMITS) -> Conversation:
    body = json.dumps({"model": "demo", "messages": messages}).encode()
    return parse_conversation(parse_chat_request(body), limits)


@pytest.fixture
def store(tmp_path: Path) -> CallerArtifacts:
    return ArtifactStore(str(tmp_path / "artifacts"), ttl_s=60, max_bytes=10_000).of("local")


def test_attached_media_are_stored_once_each_and_their_bytes_let_go(store: CallerArtifacts) -> None:
    known = store.put(picture(7))
    chat = parse(
        user("first", image_part(f"artifact:{known.id}")),
        {"role": "assistant", "content": "ok"},
        user(
            "improve",
            "this",
            {"type": "input_audio", "input_audio": {"data": as_text(sound()), "format": "mp3"}},  # told by its bytes
            image_part("data:image/jpeg;base64," + as_text(picture(9))),
        ),
    )
    assert chat.words == "improve\nthis"
    stored = store_media(chat, store)
    assert [artifact.media_type for artifact in stored.artifacts] == ["audio/wav", "image/png", "image/png"]
    assert stored.artifacts[2] == known
    assert all(medium.data == b"" for turn in stored.turns for medium in turn.media)
    assert store.open(stored.artifacts[1].id)[1] == picture(9)


def test_later_words_are_about_earlier_media(store: CallerArtifacts) -> None:
    made, forgotten = store.put(picture(1)), store.put(picture(2))
    call = {"id": "c1", "type": "function", "function": {"name": "edges", "arguments": "{}"}}
    chat = parse(
        user("edges please", image_part("data:image/png;base64," + as_text(picture()))),
        {"role": "assistant", "content": f"not {forgotten.dialogue_name}", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": f'{{"file": "artifact:{made.id}"}} artifact:{"0" * 32}'},
    )
    assert [turn.call_id for turn in chat.tool_results] == ["c1"]
    assert chat.call_name("c1") == "edges"
    first = store_media(chat, store)
    assert [a.id for a in first.artifacts[1:]] == [made.id, forgotten.id]
    again = parse(
        *({"role": "user", "content": f"see {made.dialogue_name}"}, {"role": "assistant", "content": "yes"}),
        {"role": "user", "content": f"and artifact:{forgotten.id}, then {made.dialogue_name}"},
    )
    assert [a.id for a in store_media(again, store).artifacts] == [made.id, forgotten.id]
    assert again.tool_results == ()


def test_only_what_is_needed_is_stored(store: CallerArtifacts, tmp_path: Path) -> None:
    old, new = (image_part("data:image/png;base64," + as_text(picture(value))) for value in (1, 2))
    chat = parse(user("a", old), user("b", new), {"role": "user", "content": "c"})
    stored = store_media(chat, store, is_current_only=True)
    assert [store.open(artifact.id)[1] for artifact in stored.artifacts] == [picture(2)]
    assert len(list((tmp_path / "artifacts").glob("*/*.data"))) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "HTTPS://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://example.com/a.png",
        "data:image/png,plain",
        "data:image/png;base64,???",
        "data:image/png;base64,",
        "data:text/html;base64," + base64.b64encode(b"<html>").decode(),
        "data:image/png;base64," + as_text(sound()),
        "artifact:../../etc/passwd",
        "artifact:" + "0" * 32,
        "data:image/png;base64," + "A" * 20_000,
        "",
    ],
)
def test_bad_media_are_refused_where_they_stand(url: str, store: CallerArtifacts) -> None:
    with pytest.raises(RequestError) as caught:
        store_media(parse(user("look", image_part(url))), store)
    assert 400 <= caught.value.status < 500
    assert caught.value.param == "messages.0.content.1.image_url.url"
    assert "passwd" not in caught.value.message or url.startswith("artifact")


def test_addresses_are_fetched_only_where_that_is_allowed(store: CallerArtifacts) -> None:
    limits = ChatLimits(allows_urls=True)
    chat = parse(user("look", image_part("https://example.com/a.png")), limits=limits)
    fetched: list[str] = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return picture()

    assert store_media(chat, store, fetch=fetch).artifacts[0].media_type == "image/png"
    assert fetched == ["https://example.com/a.png"]
    with pytest.raises(RequestError, match="does not fetch"):
        store_media(chat, store)
    with pytest.raises(RequestError, match="neither a data URL"):
        parse(user("look", image_part("file:///etc/passwd")), limits=limits)


def test_base64_may_be_broken_into_lines_and_an_address_stand_alone(store: CallerArtifacts) -> None:
    lines = base64.encodebytes(picture(1)).decode()
    for text in (lines, lines.replace("\n", "\r\n"), " " + as_text(picture(1))):
        for address in (f"data:image/png;base64,{text}", {"url": f"data:image/png;base64,{text}"}):
            chat = parse(user("look", {"type": "image_url", "image_url": address}))
            assert store.open(store_media(chat, store).artifacts[0].id)[1] == picture(1)
    with pytest.raises(RequestError) as caught:
        parse(user("look", {"type": "image_url", "image_url": "data:image/png;base64,?"}))
    assert caught.value.param == "messages.0.content.1.image_url"


def test_a_medium_alone_goes_with_the_words_before_it(store: CallerArtifacts) -> None:
    alone = user(image_part("data:image/png;base64," + as_text(picture(1))))
    ask = {"role": "assistant", "content": "Which picture?"}
    for messages in (
        [user("improve it"), ask, alone],
        [user("improve it"), alone],
        [user("a"), user("improve it"), alone],
    ):
        chat = store_media(parse(*messages), store, is_current_only=True)
        assert chat.words == "improve it"
        assert [artifact.modality for artifact in chat.artifacts] == ["image"]
    for messages in ([alone], [ask, alone], [user("a"), {"role": "user", "content": " "}]):
        with pytest.raises(RequestError, match="no words") as caught:
            parse(*messages)
        assert caught.value.param == f"messages.{len(messages) - 1}.content"


def test_refusals_are_words_and_null_is_none() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "edges", "arguments": "{}"}}
    chat = parse(
        {"role": "system", "content": None},
        user("a"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot"}]},
        {"role": "assistant", "content": None, "refusal": "I may not", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": None},
        user("b"),
    )
    assert [turn.text for turn in chat.turns] == ["", "a", "I cannot", "I may not", "", "b"]


def called(id: str = "c", name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([user("a")] * 9, "too_many_messages"),
        ([user("a", *[image_part("artifact:0")] * 4)], "too_many_media"),
        ([user("a" * 201)], "messages_too_long"),
        *(([user("a"), {"role": "assistant", "tool_calls": [called(**{part: "x" * 201})]}], "messages_too_long")
          for part in ("id", "name", "arguments")),
        ([user(image_part("artifact:0"))], "empty_instruction"),
        ([{"role": "system", "content": "a"}], "empty_instruction"),
        ([user("a"), {"role": "tool", "tool_call_id": "c9", "content": "x"}], "bad_field"),
    ],
)  # fmt: skip
def test_limits_hold(messages: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(*messages)
    assert caught.value.code == code
