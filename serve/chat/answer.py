"""What a chat request leads to: a tool chosen from a ranking, or the agent's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from data_pipeline.errors import MediaError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool
from data_pipeline.records.dialogue import Answer, ToolCall, parse_turn, render_file_wish
from model.decode.turn_types import PromptTooLongError, WrittenTurn
from serve.agent.events import AnswerText
from serve.agent.loop import AgentLimits, iterate_agent
from serve.agent.names import with_short_names
from serve.agent.tool_reply import ToolResult
from serve.agent.tools import build_dialogue_tool, find_input
from serve.artifacts import open_artifacts
from serve.chat.content import ChatLimits, Conversation, parse_conversation, store_media
from serve.chat.events import AnswerEvents, as_async, await_completion, go_on
from serve.chat.json_answer import answer_in_json, check_format
from serve.chat.memory import build_agent_request
from serve.chat.schemas import ChatCompletion, ChatRequest, Usage
from serve.chat.selection import Selector
from serve.chat.stream import (
    NO_CALL_WANTED,
    answer_with_words,
    choose,
    complete_agent,
    describe_tool_results,
    stream_answer,
    stream_completion,
)
from serve.chat.texts import call_with_texts
from serve.chat.tool_calls import ToolCalls
from serve.chat.tool_offers import ToolOffers
from serve.chat.tools import (
    ModelTools,
    OfferedTool,
    ToolChoice,
    offer_entry,
    offer_spec,
    read_tool_choice,
    selection_artifact,
)
from serve.chat.turns import CallerDialogue, describe, read_choices
from serve.chat.writing import WrittenByModel
from serve.config import ServeArgs
from serve.engine.calls import ask
from serve.engine.messages import Ranking
from serve.http.fetch import FetchLimits, fetch_url
from serve.http.schemas import RequestError, check_instruction
from serve.mcp_servers.servers import McpServers
from serve.tools.all_tools import load_tools
from serve.tools.models import has_weights
from serve.tools.names import name_tools
from serve.tools.spec import ToolSpec


class ChatService:
    """Behind the chat's routes. `predictor` and the tools' two hosts are deployment handles."""

    def __init__(self, args: ServeArgs, selector: Selector, predictor: Any, local_tools: Any, model_tools: Any) -> None:
        self.args = args
        self.models = selector.models
        self.telemetry = selector.telemetry
        self.store = open_artifacts(args)
        self.specs: dict[str, ToolSpec] = load_tools(args.tool_models, args.tool_files)
        self.selector = selector
        self._offers = ToolOffers(args, selector)
        self._predictor = predictor
        self._written = WrittenByModel(predictor, self.telemetry)
        self._calls = ToolCalls(args, self.telemetry, self.store, local_tools, model_tools)
        self._limits = ChatLimits(max_upload_bytes=args.max_upload_bytes, allows_urls=args.allow_urls)
        self._own = self.specs.keys() - load_tools().keys()
        # what the agent is offered by itself: weights that lie nowhere yet would take longer than a request
        self.ready = {
            tool_id
            for tool_id, spec in self.specs.items()
            if all(model_id in args.tool_models.values() or has_weights(model_id) for model_id in spec.model_ids)
        }
        self._unwritable: set[str] = set()  # tools whose calls no dialogue can write
        self._tools: dict[str, ModelTools] = {}

    def add_servers(self, servers: McpServers) -> None:
        """Take over the tools of others' servers, which are connected: to be listed, found, called by the agent too."""
        self._calls.servers = servers
        self.specs |= servers.tools
        self.ready |= servers.tools.keys()
        self._unwritable = {tool_id for tool_id, tool in servers.tools.items() if not tool.fits_dialogues}
        self._own |= servers.tools.keys() - self._unwritable
        self._tools.clear()

    async def complete(self, request: ChatRequest, caller: str) -> ChatCompletion | AsyncIterator[str]:
        """Answer a chat: whole, or as server-sent events where the request wants a stream.

        Args:
            request: the chat.
            caller: whose artifacts it may name, and who gets those that come of it (`serve/http/access.py`).

        Raises:
            RequestError, MediaError: the request is at fault.
        """
        answer = await self.answer(request, caller)
        if not isinstance(answer, ChatCompletion):
            return stream_answer(request, answer)
        if not request.stream:
            return answer
        return as_async(stream_completion(answer, request.has_usage_chunk))

    async def answer(self, request: ChatRequest, caller: str) -> ChatCompletion | AnswerEvents:
        """Answer a chat: whole, or as it comes where a stream is wanted and words are written; errors as above."""
        check_format(request)
        if not request.is_agent:
            return await self._select(request, caller)
        if not self.models.find(request.base_model).writes_dialogues:
            raise RequestError(
                f"Model {request.base_model[:80]!r} was trained on no dialogues, so it cannot be the agent; leave "
                "`agent` out, or serve a bundle that was trained on dialogues.",
                code="no_agent",
                param="agent" if request.agent else "model",
            )
        return await self._ask_agent(request, caller)

    async def read(
        self, request: ChatRequest, caller: str, *, is_current_only: bool = False, needs_words: bool = True
    ) -> Conversation:
        """A chat, checked, with its media stored: all of them, or those that the last words are about.

        Raises:
            RequestError: the chat or one of its media is at fault (`parse_conversation`, `store_media`).
        """
        conversation = parse_conversation(request, self._limits, needs_words=needs_words)
        fetch = None
        if self.args.allow_urls:
            fetch = partial(fetch_url, limits=FetchLimits(max_bytes=self.args.max_upload_bytes))
        return await asyncio.to_thread(
            store_media, conversation, self.store.of(caller), is_current_only=is_current_only, fetch=fetch
        )

    async def open_medium(self, conversation: Conversation, caller: str) -> tuple[bytes | None, str | None]:
        """Bytes and modality of the one medium that the model sees when it chooses; (None, None) without one.

        Raises:
            RequestError: there are several.
        """
        artifact = selection_artifact(conversation)
        if artifact is None:
            return None, None
        _, data = await asyncio.to_thread(self.store.of(caller).open, artifact.id)
        return data, artifact.modality

    def find_spec(self, tool_id: str) -> ToolSpec:
        """A tool that this service runs, by its id or what clients call it; `RequestError` (404) where it is none."""
        spec = self.specs.get(tool_id) or self.specs.get(self._name_tools().get(tool_id, ""))
        if spec is None:
            raise RequestError(
                f"There is no tool {tool_id[:80]!r} that this service runs; GET /v1/tools lists them.",
                404,
                "tool_not_found",
            )
        return spec

    async def invoke(self, tool_id: str, arguments: Mapping[str, Any], caller: str) -> ToolResult:
        """Run a tool on a caller's artifacts.

        Raises:
            RequestError: there is no such tool (404).
            ToolError: it gave no result.
            TimeoutError: nobody answered in the time of a request and of the tool's own limits together.
        """
        return await self._calls.run(self.find_spec(tool_id), arguments, caller)

    async def search_tools(self, words: str, n: int) -> list[ToolSpec]:
        """The `n` tools that suit words best, the best first, of those that can run here now.

        Raises:
            RequestError: the words are empty or too many.
        """
        words = check_instruction(words, self.args.max_instruction_chars)
        tools = self._ready_tools(self.args.model_name)
        return [self.specs[tool_id] for tool_id in await self._offers.rank(self.args.model_name, words, tools, n)]

    async def read_tools(self, model_name: str) -> None:
        """Have a model read all that its agent may be offered, before somebody asks it."""
        await self._offers.read(model_name, self._known_tools(model_name))

    def _known_tools(self, model_name: str) -> list[Tool]:
        """Those that a model knows, and those that can run here now."""
        tools = (*self.models.find(model_name).catalog, *self._ready_tools(model_name))
        return list({tool.tool_id: tool for tool in tools}.values())

    def _ready_tools(self, model_name: str) -> list[Tool]:
        """The tools that can run here now, as a model's dialogues know them."""
        known = {tool.tool_id: tool for tool in self.models.find(model_name).catalog}
        specs = [self.specs[tool_id] for tool_id in sorted(self.ready)]
        return [build_dialogue_tool(spec, known.get(spec.tool_id)) for spec in specs]

    async def describe_predictor(self) -> dict[str, Any]:
        """What a replica of the predictor says of itself. Where there may be none, nothing: the question would start
        one, and keep it."""
        return await ask(self._predictor.describe) if self.args.min_replicas else {}

    def _tools_of(self, request: ChatRequest) -> ModelTools:
        """What the model that a request names chooses from."""
        model = self.models.find(request.base_model)
        tools = self._tools.get(model.name)
        if tools is None or tools.revision != model.revision:
            names = {tool_id: name for name, tool_id in self._name_tools().items()}
            selectable = {
                tool_id: self._offer(model.catalog[tool_id], names[tool_id])
                for tool_id in model.catalog.selection_tool_ids
                if tool_id != UNKNOWN_TOOL_ID
            }
            runnable = [tool for tool in model.catalog if tool.tool_id in self.ready]
            # one that finds tools by their descriptions may call all; else one that learnt dialogues knows the tools
            # with a name in them; another may try what it selects from
            known = [tool.tool_id for tool in runnable if tool.name] or [tool.tool_id for tool in runnable]
            if model.finds_cards:
                known = sorted(self.ready - self._unwritable)
            own = sorted(self._own - set(known))
            callable_tools = {
                tool_id: replace(offer_spec(self.specs[tool_id]), called=names[tool_id]) for tool_id in [*known, *own]
            }
            tools = self._tools[model.name] = ModelTools(model.revision, selectable, callable_tools)
        return tools

    def _offer(self, tool: Tool, called: str = "") -> OfferedTool:
        spec = self.specs.get(tool.tool_id)
        return replace(offer_entry(tool) if spec is None else offer_spec(spec), called=called)

    def _name_tools(self) -> dict[str, str]:
        """What clients call a tool -> its id, of all that are known here."""
        catalogs = [self.models.find(name).catalog.tool_ids for name in self.models.names]
        return name_tools(dict.fromkeys(chain(self.specs, *catalogs)))

    # --- a tool chosen from a ranking

    async def _select(self, request: ChatRequest, caller: str) -> ChatCompletion | AnswerEvents:
        choice = read_tool_choice(request, self._tools_of(request).selectable)
        model = self.models.find(request.base_model)
        wants_json = request.json_schema is not None
        if choice.is_own_choice and model.writes_dialogues and not model.finds_cards and not wants_json:
            conversation = await self.read(request, caller)
            return await self._begin(self._take_turn(request, conversation, choice))
        conversation = await self.read(request, caller, is_current_only=True)
        if wants_json and (request.tools is None or choice.mode == "none" or conversation.tool_results):
            return await self._answer_in_json(request, conversation)
        if conversation.tool_results:
            return answer_with_words(request, describe_tool_results(conversation), Usage.of(0, 0))
        if choice.mode == "none":
            return answer_with_words(request, NO_CALL_WANTED, Usage.of(0, 0))
        ranking = await self._rank(request, caller, conversation, choice)
        if choice.is_open:  # of the catalogue of the bundle that answered
            known = self._tools_of(request).selectable
            offered = (known.get(tool.tool_id) or self._offer(tool) for tool, _ in ranking.tools)
            choice = replace(choice, tools=tuple(offered))
        usage = Usage.of(ranking.n_prompt_tokens, ranking.n_answer_tokens)
        self.telemetry.count_tokens(usage.prompt_tokens, usage.completion_tokens)
        ranked = [(tool.tool_id, probability) for tool, probability in ranking.tools]
        if not wants_json and (lacking := await self._find_lacking(request, conversation, choice)):
            return answer_with_words(request, render_file_wish(lacking), usage, ranking=ranked)
        if wants_json and choose(choice, ranked) == UNKNOWN_TOOL_ID:
            return await self._answer_in_json(request, conversation, usage)
        rank_parts = partial(self._written.rank_parts, request.base_model)
        return await call_with_texts(rank_parts, request, choice, ranked, conversation, usage)

    async def _find_lacking(self, request: ChatRequest, conversation: Conversation, choice: ToolChoice) -> str:
        """The kind of file that the words are about and that nobody gave, for which the model has no answer; or ""."""
        if not (choice.is_open and choice.mode == "auto") or selection_artifact(conversation):
            return ""
        model = self.models.find(request.base_model)
        inputs = {tool.tool_id: tool.input_modality for tool in model.catalog}
        inputs |= {tool_id: find_input(self.specs[tool_id]) for tool_id in self.ready}
        return await self._offers.find_lacking(model.name, conversation.words, self._known_tools(model.name), inputs)

    async def _rank(self, request: ChatRequest, caller: str, conversation: Conversation, choice: ToolChoice) -> Ranking:
        data, modality = await self.open_medium(conversation, caller)
        offered = [choice[choice.named]] if choice.mode == "named" else choice.tools
        k = max(2, request.top_logprobs or 0)  # the likeliest may be `unknown` where a call is required
        tools = None if choice.is_open else tuple(Tool(tool.name, tool.description) for tool in offered)
        words = conversation.words
        try:
            return (await self.selector.select(request.base_model, words, k, data, modality, tools)).ranking
        except MediaError as error:
            raise RequestError(str(error), 422, "bad_media", conversation.current_media[0].param) from None
        except RequestError as error:
            # what a selection calls words and medium
            params = {"instruction": f"messages.{conversation.last_user}.content"}
            if data is not None:
                params |= dict.fromkeys(("media", "modality"), conversation.current_media[0].param)
            param = params.get(error.param or "", error.param)
            raise RequestError(error.message, error.status, error.code, param) from None

    async def _answer_in_json(
        self, request: ChatRequest, conversation: Conversation, spent: Usage | None = None
    ) -> ChatCompletion | AnswerEvents:
        write = partial(self._written.write_json, request)
        max_chars, max_tokens = self.args.max_instruction_chars, self.args.agent_max_tokens
        return await self._begin(answer_in_json(write, request, conversation, max_chars, max_tokens, spent))

    async def _begin(self, events: AnswerEvents) -> ChatCompletion | AnswerEvents:
        """Whole, unless words come bit by bit; what is at fault is known before the first word."""
        deadline = asyncio.get_running_loop().time() + self.args.request_timeout_s
        first = await anext(events)
        if not isinstance(first, ChatCompletion):
            return go_on(first, events, deadline)
        await events.aclose()
        return first

    # --- the next turn of a dialogue with the caller's functions

    async def _take_turn(self, request: ChatRequest, conversation: Conversation, choice: ToolChoice) -> AnswerEvents:
        tools = [describe(tool) for tool in choice.tools]
        kept = await self._offers.shortlist(request.base_model, conversation.words, tools)
        dialogue = CallerDialogue.read(conversation, [choice[name] for name in kept])
        written: WrittenTurn | None = None
        while written is None:
            turn = dialogue.ask(must_call=choice.mode == "required", max_answer_tokens=request.max_answer_tokens)
            try:
                async with aclosing(self._written.write_turn(request, turn)) as news:
                    async for event in news:
                        if isinstance(event, WrittenTurn):
                            written = event
                        else:
                            yield AnswerText(event)
            except PromptTooLongError:
                if not dialogue.history:
                    raise
                dialogue = dialogue.without_oldest()
        usage = Usage.of(written.prompt_tokens, written.completion_tokens, written.cached_tokens)
        ranked = read_choices(written)
        turn = parse_turn(written.text)
        if isinstance(turn, ToolCall):
            choice = replace(choice, named=turn.name)
            rank_parts = partial(self._written.rank_parts, request.base_model)
            yield await call_with_texts(rank_parts, request, choice, ranked, conversation, usage)
            return
        text = turn.text if isinstance(turn, Answer) else written.text.strip()
        yield answer_with_words(request, text, usage, ranking=ranked)

    # --- the agent's loop

    async def _ask_agent(self, request: ChatRequest, caller: str) -> ChatCompletion | AnswerEvents:
        choice = read_tool_choice(request, self._tools_of(request).callable)
        conversation = await self.read(request, caller)
        known = {tool.tool_id: tool for tool in self.models.find(request.base_model).catalog}
        agent_request = replace(build_agent_request(conversation, choice, self.specs), known=known)
        agent_request = await self._offers.choose(request.base_model, agent_request)
        limits = AgentLimits(
            max_steps=self.args.agent_max_steps,
            max_seconds=self.args.request_timeout_s,
            max_tokens=self.args.agent_max_tokens,
            max_answer_tokens=request.max_answer_tokens,
        )
        write_turn = with_short_names(partial(self._written.write_turn, request))
        events = complete_agent(
            request, iterate_agent(write_turn, partial(self.invoke, caller=caller), agent_request, limits)
        )
        return events if request.stream else await await_completion(events)
