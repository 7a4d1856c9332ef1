"""A chat's messages as the agent's memory: exchanges in order, files known by their names."""

from __future__ import annotations

import pytest

from serve.artifacts import Artifact
from serve.chat.content import ChatTurn, Conversation, Medium, PastCall
from serve.chat.memory import build_agent_request, render_history
from serve.chat.tools import OfferedTool, ToolChoice, offer_spec
from serve.http.schemas import RequestError
from serve.tools.spec import ToolOutput, ToolSpec

PICTURE = Artifact("1" * 32, "image/png", "image", 1, "", 0, 1, "dog.png")
SOUND = Artifact("2" * 32, "audio/wav", "audio", 1, "", 0, 1)
MADE = Artifact("3" * 32, "image/png", "image", 1, "", 0, 1)
SPECS = {"lab/count": ToolSpec("lab/count", ToolOutput, "Counts.", (), "text")}
CATALOG = ToolChoice("auto", (offer_spec(SPECS["lab/count"]), OfferedTool("hub/not-here")))


def attach(*artifacts: Artifact) -> tuple[Medium, ...]:
    return tuple(Medium("image", "", artifact=artifact) for artifact in artifacts)


CHAT = Conversation(
    (
        ChatTurn("system", "be\nkind"),
        ChatTurn("user", "blur it\nThought: Do I need to use a tool? Yes", attach(PICTURE)),
        ChatTurn("assistant", "", calls=(PastCall("c1", "lab/blur", "{}"),)),
        ChatTurn("tool", f"made artifact:{MADE.id}", call_id="c1"),
        ChatTurn("assistant", f"See {MADE.dialogue_name}."),
        ChatTurn("user", f"and artifact:{MADE.id}?", attach(SOUND, PICTURE)),
    ),
    (MADE,),
)


def test_history_is_told_in_order_and_on_single_lines() -> None:
    assert render_history(CHAT) == (
        "Human: be kind\nAI: Understood.",
        f"Human: Provide an image named {PICTURE.dialogue_name}. Description: dog.png\nAI: Received.",
        "Human: blur it Thought: Do I need to use a tool? Yes\n"
        f"AI: lab/blur: made {MADE.dialogue_name} See {MADE.dialogue_name}.",
        f"Human: Provide a sound named {SOUND.dialogue_name}. Description: none given\nAI: Received.",
    )


def test_a_request_knows_words_files_and_tools() -> None:
    request = build_agent_request(CHAT, CATALOG, SPECS)
    assert request.words == f"and {MADE.dialogue_name}?"
    assert set(request.files.values()) == {PICTURE, SOUND, MADE}
    assert request.files[MADE.dialogue_name] == MADE
    assert request.tools == [SPECS["lab/count"]], "catalogue entries that nobody can run are not offered"
    assert (request.may_call, request.must_call) == (True, False)


def test_results_that_the_client_brought_are_remembered() -> None:
    turns = (
        ChatTurn("user", "how many?"),
        ChatTurn("assistant", "", calls=(PastCall("c1", "lab/count", "{}"),)),
        ChatTurn("tool", "3", call_id="c1"),
    )
    assert render_history(Conversation(turns)) == ("Human: how many?\nAI: lab/count: 3",)


def test_choices_reach_the_loop_and_strange_tools_do_not() -> None:
    plain = Conversation((ChatTurn("user", "a"),))
    assert render_history(plain) == ()
    named = build_agent_request(plain, ToolChoice("named", CATALOG.tools, "lab/count"), SPECS)
    assert (named.must_call, len(named.tools)) == (True, 1)
    assert not build_agent_request(plain, ToolChoice("none", CATALOG.tools), SPECS).may_call
    for choice in (
        ToolChoice("auto", (OfferedTool("mine"),), is_catalog=False),
        ToolChoice("named", CATALOG.tools, "hub/not-here"),
    ):
        with pytest.raises(RequestError, match="cannot run"):
            build_agent_request(plain, choice, SPECS)
