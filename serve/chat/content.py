"""A chat's messages as turns of words and media, and the media put into the artifact store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from serve.artifacts import Artifact, ArtifactError, CallerArtifacts, find_dialogue_names
from serve.chat.messages import (
    AssistantMessage,
    AudioPart,
    ImagePart,
    MediumPart,
    MediumUrl,
    Message,
    RefusalPart,
    TextPart,
    ToolMessage,
    UserMessage,
    UserPart,
    VideoPart,
    VideoUrlPart,
    WordsPart,
)
from serve.chat.schemas import ChatRequest
from serve.http.schemas import MediaModality, RequestError, parse_media_data

ARTIFACT_SCHEME = "artifact:"

_MENTION = re.compile(rf"{ARTIFACT_SCHEME}([0-9a-f]{{32}})\b", re.ASCII)


@dataclass(frozen=True)
class ChatLimits:
    """Bounds of one request.

    Attributes:
        max_messages: messages.
        max_text_chars: characters of all messages together, calls included.
        max_media: attached media of all messages together.
        max_upload_bytes: of one medium.
        allows_urls: whether http and https addresses are taken, to be fetched in `store_media`.
    """

    max_messages: int = 200
    max_text_chars: int = 100_000
    max_media: int = 16
    max_upload_bytes: int = 32 * 2**20
    allows_urls: bool = False


@dataclass(frozen=True)
class Medium:
    """A medium of a message; of `data`, `url` and `artifact_id` one is given. `artifact` is set once it is stored.

    Attributes:
        modality: what the message calls it.
        param: where in the request it stands.
    """

    modality: MediaModality
    param: str
    data: bytes = b""
    url: str = ""
    artifact_id: str = ""
    artifact: Artifact | None = None


@dataclass(frozen=True)
class PastCall:
    """A tool call in an earlier answer; `arguments` is what stood there, JSON or not."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatTurn:
    """One message.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        text: its words; text parts are joined by line breaks.
        media: attached to a user's message.
        calls: of an assistant's message.
        call_id: of a tool's message: the call that it answers.
    """

    role: str
    text: str
    media: tuple[Medium, ...] = ()
    calls: tuple[PastCall, ...] = ()
    call_id: str = ""

    @property
    def n_chars(self) -> int:
        """Of its words, and of its calls with their names and ids."""
        called = sum(len(call.call_id) + len(call.name) + len(call.arguments) for call in self.calls)
        return len(self.text) + len(self.call_id) + called


@dataclass(frozen=True)
class Conversation:
    """A chat, checked. `mentioned` are stored artifacts whose ids or names stand in its words, oldest first."""

    turns: tuple[ChatTurn, ...]
    mentioned: tuple[Artifact, ...] = ()

    @property
    def last_user(self) -> int:
        """Index of the last user's turn; there is one."""
        return max(i for i, turn in enumerate(self.turns) if turn.role == "user")

    @property
    def words(self) -> str:
        """What the user said last: before a message that is a medium alone, the words that it goes with."""
        users = [turn.text for turn in self.turns if turn.role == "user"]
        return next((text for text in reversed(users) if text.strip()), "")

    @property
    def tool_results(self) -> tuple[ChatTurn, ...]:
        """What tools answered since: not empty where the chat waits for words about them."""
        return tuple(turn for turn in self.turns[self.last_user + 1 :] if turn.role == "tool")

    @property
    def current_media(self) -> tuple[Medium, ...]:
        """What the last words are about: the media attached to them, or else to the last message that had any."""
        users = [turn for turn in self.turns if turn.role == "user" and turn.media]
        return users[-1].media if users else ()

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Stored media that the last words may mean, likeliest first: attached, made since, attached before."""
        attached = [medium.artifact for turn in reversed(self.turns) for medium in turn.media if medium.artifact]
        now = {medium.artifact for medium in self.turns[self.last_user].media}
        ordered = [a for a in attached if a in now] + list(reversed(self.mentioned)) + attached
        return tuple(dict.fromkeys(ordered))

    def call_name(self, call_id: str) -> str:
        """The tool that was called under an id; "" for an unknown id."""
        return next((call.name for turn in self.turns for call in turn.calls if call.call_id == call_id), "")


def parse_conversation(request: ChatRequest, limits: ChatLimits, *, needs_words: bool = True) -> Conversation:
    """Check the messages and decode what they carry; nothing is fetched or stored.

    Args:
        request: the chat.
        limits: its bounds.
        needs_words: whether a chat in which no user says anything is refused.

    Raises:
        RequestError: too much of something (413), no words of a user, a tool's result without its call, a medium that
            is no base64, no data URL, no artifact, or an address where none is allowed.
    """
    if len(request.messages) > limits.max_messages:
        raise RequestError(
            f"The chat has {len(request.messages)} messages; at most {limits.max_messages} are allowed.",
            413,
            "too_many_messages",
            "messages",
        )
    turns = tuple(_parse_message(message, i, limits) for i, message in enumerate(request.messages))
    n_media = sum(len(turn.media) for turn in turns)
    if n_media > limits.max_media:
        raise RequestError(
            f"The chat has {n_media} media; at most {limits.max_media} are allowed.", 413, "too_many_media", "messages"
        )
    n_chars = sum(turn.n_chars for turn in turns)
    if n_chars > limits.max_text_chars:
        raise RequestError(
            f"The chat has {n_chars} characters; at most {limits.max_text_chars} are allowed.",
            413,
            "messages_too_long",
            "messages",
        )
    if needs_words:
        _check_words(turns)
    _check_calls(turns)
    return Conversation(turns)


def store_media(
    conversation: Conversation,
    store: CallerArtifacts,
    *,
    is_current_only: bool = False,
    fetch: Callable[[str], bytes] | None = None,
) -> Conversation:
    """Put the media into the store, or find them there. Blocking.

    Args:
        conversation: of `parse_conversation`.
        store: where media go, of the caller whose chat it is.
        is_current_only: leave out all but `current_media` (choosing one tool needs no more).
        fetch: reads an http(s) address within limits; needed where `ChatLimits.allows_urls` is set.

    Returns:
        the same chat with `artifact` set on the stored media, whose bytes are let go.

    Raises:
        RequestError: of no accepted kind, not of the modality that the message says, unknown, or too much.
    """
    wanted = set(map(id, conversation.current_media if is_current_only else _all_media(conversation)))

    def store_one(medium: Medium) -> Medium:
        if id(medium) not in wanted:
            return replace(medium, data=b"")
        try:
            return replace(medium, data=b"", artifact=_store_medium(medium, store, fetch))
        except RequestError as error:
            raise RequestError(error.message, error.status, error.code, medium.param) from None

    turns = tuple(replace(turn, media=tuple(map(store_one, turn.media))) for turn in conversation.turns)
    return Conversation(turns, tuple(_find_mentioned(conversation, store)))


def _store_medium(medium: Medium, store: CallerArtifacts, fetch: Callable[[str], bytes] | None) -> Artifact:
    if medium.artifact_id:
        artifact = store.info(medium.artifact_id)
        # a GIF is stored as a picture, but its motion may be meant
        if artifact.modality != medium.modality and (artifact.media_type, medium.modality) != ("image/gif", "video"):
            raise RequestError(
                f"The artifact is {artifact.modality}, but the message calls it {medium.modality}; "
                "correct the part's type.",
                code="modality_mismatch",
            )
        return artifact
    data = medium.data
    if medium.url:
        if fetch is None:
            raise _url_refused(medium.param)
        data = fetch(medium.url)
    return store.put(data, f"{medium.modality}/*")


def _find_mentioned(conversation: Conversation, store: CallerArtifacts) -> Iterator[Artifact]:
    ids: dict[str, None] = {}
    for turn in conversation.turns:
        if turn.role in ("user", "assistant", "tool"):
            for artifact_id in [*_MENTION.findall(turn.text), *find_dialogue_names(turn.text).values()]:
                ids.pop(artifact_id, None)  # in the order in which they were spoken of last
                ids[artifact_id] = None
    for artifact_id in list(ids)[-64:]:  # each costs a read
        try:
            yield store.info(artifact_id)
        except ArtifactError:
            continue  # words may name what was never there, or is no more


def _all_media(conversation: Conversation) -> list[Medium]:
    return [medium for turn in conversation.turns for medium in turn.media]


def _parse_message(message: Message, index: int, limits: ChatLimits) -> ChatTurn:
    where = f"messages.{index}.content"
    if isinstance(message, UserMessage):
        parts: Sequence[UserPart] = (
            [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        )
        media = tuple(
            _parse_medium(part, f"{where}.{i}.{part.type}", limits)
            for i, part in enumerate(parts)
            if not isinstance(part, TextPart)
        )
        return ChatTurn("user", _join_text(parts), media)
    content = message.content or ""
    text = content if isinstance(content, str) else _join_text(content)
    if isinstance(message, AssistantMessage):
        text = text or message.refusal or ""
        calls = message.tool_calls or []
        return ChatTurn(
            "assistant",
            text,
            calls=tuple(PastCall(call.id, call.function.name, call.function.arguments) for call in calls),
        )
    if isinstance(message, ToolMessage):
        return ChatTurn("tool", text, call_id=message.tool_call_id)
    return ChatTurn("system", text)


def _join_text(parts: Sequence[UserPart | WordsPart]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, TextPart | RefusalPart))


def _parse_medium(part: MediumPart, param: str, limits: ChatLimits) -> Medium:
    modality: MediaModality = "image" if isinstance(part, ImagePart) else "video"
    if isinstance(part, ImagePart | VideoUrlPart):
        address = part.image_url if isinstance(part, ImagePart) else part.video_url
        if isinstance(address, MediumUrl):
            return _parse_url(address.url, modality, f"{param}.url", limits)
        return _parse_url(address, modality, param, limits)
    if isinstance(part, AudioPart):
        modality = "audio"
    text = part.input_video.data if isinstance(part, VideoPart) else part.input_audio.data
    param = f"{param}.data"
    if text.startswith(ARTIFACT_SCHEME):
        return Medium(modality, param, artifact_id=text.removeprefix(ARTIFACT_SCHEME))
    return Medium(modality, param, data=_decode(text, param, limits))


def _parse_url(url: str, modality: MediaModality, param: str, limits: ChatLimits) -> Medium:
    head = url[:16].lower()
    if head.startswith(ARTIFACT_SCHEME):
        return Medium(modality, param, artifact_id=url[len(ARTIFACT_SCHEME) :])
    if head.startswith("data:"):
        return Medium(modality, param, data=_decode(url, param, limits))
    if not head.startswith(("http://", "https://")):
        raise RequestError(
            "The URL is neither a data URL nor artifact:<id>; send the file's bytes as data:<type>;base64,<data>.",
            code="bad_url",
            param=param,
        )
    if not limits.allows_urls:
        raise _url_refused(param)
    return Medium(modality, param, url=url)


def _url_refused(param: str) -> RequestError:
    return RequestError(
        "This service does not fetch addresses; send the file's bytes as a data URL, or upload it and send "
        "artifact:<id>.",
        code="url_not_allowed",
        param=param,
    )


def _decode(text: str, param: str, limits: ChatLimits) -> bytes:
    try:
        data = parse_media_data(text, limits.max_upload_bytes)
    except RequestError as error:
        raise RequestError(error.message, error.status, error.code, param) from None
    if not data:
        raise RequestError("The medium is empty; send the file's bytes.", code="empty_media", param=param)
    return data


def _check_words(turns: tuple[ChatTurn, ...]) -> None:
    """The user has said something; a last message without words may be a medium that earlier words go with."""
    users = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not users:
        raise RequestError(
            "The chat has no message of a user; say in words what is wanted.",
            code="empty_instruction",
            param="messages",
        )
    last = turns[users[-1]]
    if not last.text.strip() and not (last.media and any(turns[i].text.strip() for i in users)):
        raise RequestError(
            "The last user message has no words; say in words what is wanted.",
            code="empty_instruction",
            param=f"messages.{users[-1]}.content",
        )


def _check_calls(turns: tuple[ChatTurn, ...]) -> None:
    """Every tool's result answers a call that was made before it."""
    known: set[str] = set()
    for i, turn in enumerate(turns):
        known |= {call.call_id for call in turn.calls}
        if turn.role == "tool" and turn.call_id not in known:
            raise RequestError(
                f"The tool message answers the call {turn.call_id[:64]!r}, which no assistant message before it made.",
                code="bad_field",
                param=f"messages.{i}.tool_call_id",
            )
