"""What the agent remembers of a chat: its messages as the history of a GPT4Tools dialogue, its media as known files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_pipeline.records.dialogue import render_exchange, render_file_note
from serve.agent.loop import AgentRequest
from serve.artifacts import Artifact
from serve.chat.content import ARTIFACT_SCHEME, ChatTurn, Conversation
from serve.chat.tools import ToolChoice
from serve.http.schemas import RequestError
from serve.tools.spec import ToolSpec


def build_agent_request(
    conversation: Conversation, choice: ToolChoice, specs: Mapping[str, ToolSpec], *, is_constrained: bool = True
) -> AgentRequest:
    """Everything that the loop starts from.

    Args:
        conversation: with its media stored (`store_media`).
        choice: the offered tools and what is wanted of them.
        specs: the tools that this service can run, by id.
        is_constrained: as in `AgentRequest`.

    Raises:
        RequestError: a tool of the caller's, which this service cannot run.
    """
    offered = [choice[choice.named]] if choice.mode == "named" else choice.tools
    missing = [tool.name for tool in offered if tool.name not in specs]
    if missing and (choice.named or choice.is_part or not choice.is_catalog):
        raise RequestError(
            f"The agent cannot run the tool {missing[0][:80]!r}: it runs this service's own; leave tools out, or let "
            "the model choose without the agent and run it yourself.",
            code="tool_not_runnable",
            param="tools",
        )
    return AgentRequest(
        words=_name_files(conversation.words, conversation.artifacts),
        tools=[specs[tool.name] for tool in offered if tool.name in specs],
        history=render_history(conversation),
        files={artifact.dialogue_name: artifact for artifact in reversed(conversation.artifacts)},
        may_call=choice.mode != "none",
        must_call=choice.mode in ("required", "named"),
        is_constrained=is_constrained,
    )


def render_history(conversation: Conversation) -> tuple[str, ...]:
    """The exchanges before the last words, oldest first; a file is made known where it was attached.

    Calls that the client ran itself stand in the reply, as the tool's name and its words.
    """
    exchanges: list[str] = []
    noted: set[str] = set()
    human: list[str] = []
    replies: list[str] = []

    def close() -> None:
        if human or replies:
            exchanges.append(render_exchange(" ".join(human), " ".join(replies)))
        human.clear()
        replies.clear()

    for i, turn in enumerate(conversation.turns):
        text = _name_files(" ".join(turn.text.split()), conversation.artifacts)
        if turn.role == "system":
            close()
            if text:
                exchanges.append(render_exchange(text, "Understood."))
        elif turn.role == "user":
            if replies or turn.media:
                close()
            for artifact in _attached(turn):
                if artifact.id not in noted:
                    noted.add(artifact.id)
                    name = artifact.name or "none given"
                    exchanges.append(render_file_note(artifact.modality, artifact.dialogue_name, name))
            if text and (i != conversation.last_user or conversation.tool_results):
                human.append(text)
        elif turn.role == "tool":
            name = " ".join(conversation.call_name(turn.call_id).split())  # as it was made up, perhaps
            replies.append(f"{name}: {text}")
        elif text:
            replies.append(text)
    close()
    return tuple(exchanges)


def _attached(turn: ChatTurn) -> list[Artifact]:
    return [medium.artifact for medium in turn.media if medium.artifact is not None]


def _name_files(text: str, artifacts: Sequence[Artifact]) -> str:
    """Artifact ids as clients write them, as the names that the dialogue uses."""
    for artifact in artifacts:
        text = text.replace(ARTIFACT_SCHEME + artifact.id, artifact.dialogue_name)
    return text
