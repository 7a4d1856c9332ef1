"""The agent's loop: thought, action, the tool runs, observation, and again, until there is an answer or a limit.

Protocol: GPT4Tools, supplement Table 4 (`data_pipeline/records/dialogue.py`). The loop trusts neither the model nor the
tools: a tool that is not offered, a file that nobody gave and arguments that the tool does not take are refused, and
the model is told so in place of a result. What writes turns and what runs tools is injected.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import (
    Answer,
    ToolCall,
    parse_turn,
    render_dialogue_prompt,
    render_failure,
    render_observation,
)
from data_pipeline.records.schema import Turn
from model.decode.turn_types import MEDIA_KINDS, PromptTooLongError, TurnRequest, WrittenTurn
from serve.agent.events import AgentResult, AgentStep, AnswerText
from serve.agent.tool_reply import ToolResult
from serve.agent.tools import build_dialogue_tool, build_turn_tool, read_arguments
from serve.artifacts import Artifact
from serve.tools.spec import ToolError, ToolSpec

_SHOWN_CHOICES = 5  # alternatives of a step that its trace shows
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class AgentLimits:
    """Bounds of one request.

    Attributes:
        max_steps: calls of tools, refused ones included; then the model must answer.
        max_seconds: wall time, tools included; then the loop ends where it is.
        max_tokens: tokens that the model writes; once they are spent, it must answer.
        max_answer_tokens: tokens of that answer, or None for the writer's own limit.
        max_observation_chars: of a tool's words that the model reads.
    """

    max_steps: int = 6
    max_seconds: float = 60.0
    max_tokens: int = 1024
    max_answer_tokens: int | None = None
    max_observation_chars: int = 500


@dataclass(frozen=True)
class AgentRequest:
    """What the loop starts from.

    Attributes:
        words: the user's new words.
        tools: those that may be called, the likeliest first: the last ones go where the prompt is too long.
        history: earlier exchanges (`render_exchange`), oldest first; the oldest go first where the prompt is too long.
        files: the names that the dialogue may use, and the artifacts behind them.
        may_call, must_call: whether tools may be called at all, and whether one must be before the answer.
        is_constrained: False = the model writes freely, and what it makes up is refused.
        known: entries of the model's catalogue by id, which word the tools as in training.
        by_input: what a tool takes, "text", "image", "audio", "video" or "" -> the probability of all known tools that
            take it, by the cards nearest to the words; {} where the model finds no cards.
    """

    words: str
    tools: Sequence[ToolSpec]
    history: Sequence[str] = ()
    files: Mapping[str, Artifact] = field(default_factory=dict)
    may_call: bool = True
    must_call: bool = False
    is_constrained: bool = True
    known: Mapping[str, Tool] = field(default_factory=dict)
    by_input: Mapping[str, float] = field(default_factory=dict)


WriteTurn = Callable[
    [TurnRequest], AsyncGenerator[str | WrittenTurn, None]
]  # the beginnings of an answer, then the turn
Invoke = Callable[[str, dict[str, Any]], Awaitable[ToolResult]]


async def iterate_agent(
    write_turn: WriteTurn, invoke: Invoke, request: AgentRequest, limits: AgentLimits | None = None
) -> AsyncGenerator[AnswerText | AgentStep | AgentResult, None]:
    """Run the loop; cancelling it cancels the turn or the tool under way.

    Args:
        write_turn: writes one turn (`model.decode.turn_writer` behind a deployment): gives what of an answer is
            certain, each time from its first word on, or nothing of that, and at last the turn.
        invoke: runs a tool by its id with checked arguments, media as artifact ids. It raises `ToolError`, `InputError`
            or `TimeoutError` for what the model shall be told; anything else ends the loop.
        request: the dialogue so far.
        limits: bounds.

    Yields:
        every step as it ends, the answer as it grows, and at last the result.

    Raises:
        PromptTooLongError: not even the new words fit.
    """
    loop = _Loop(write_turn, invoke, request, AgentLimits() if limits is None else limits)
    async with aclosing(loop.run()) as events:
        async for event in events:
            yield event


class _Loop:
    def __init__(self, write_turn: WriteTurn, invoke: Invoke, request: AgentRequest, limits: AgentLimits) -> None:
        self._write_turn = write_turn
        self._invoke = invoke
        self._request = request
        self._limits = limits
        self._specs = {spec.call_name: spec for spec in request.tools}
        self._tools = [build_dialogue_tool(spec, request.known.get(spec.tool_id)) for spec in request.tools]
        pairs = zip(request.tools, self._tools, strict=True)
        self._offered = [build_turn_tool(spec, tool.description) for spec, tool in pairs]
        self._calls: set[ToolCall] = set()  # that were made
        self._history = list(request.history)
        self._files = dict(request.files)
        self._turns: list[Turn] = []
        self._steps: list[AgentStep] = []
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0
        self._shown = ""  # of the answer
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + limits.max_seconds

    async def run(self) -> AsyncGenerator[AnswerText | AgentStep | AgentResult, None]:
        while True:
            limit = self._reached_limit()
            start = self._clock()
            written: WrittenTurn | None = None
            try:
                async with aclosing(self._write_new(may_call=limit is None)) as news:
                    while written is None:
                        event = await self._within_time(anext(news))
                        if isinstance(event, WrittenTurn):
                            written = event
                        else:
                            self._shown = event
                            yield AnswerText(event)
            except _OutOfTimeError:
                yield self._end(self._shown, "seconds")
                return
            except PromptTooLongError:
                if not self._steps:
                    raise
                yield self._end("", "tokens")
                return
            model_seconds = self._clock() - start
            parsed = parse_turn(written.text)
            self._turns.append(Turn("assistant", written.text))
            if isinstance(parsed, Answer):
                yield self._end(parsed.text, limit or "answer")
                return
            if parsed is None or limit is not None:
                yield self._end("" if limit else written.text.strip(), limit or "malformed")
                return
            try:
                step = await self._within_time(self._call(written, parsed))
            except _OutOfTimeError:
                yield self._end("", "seconds")
                return
            step = replace(step, model_seconds=model_seconds)
            self._steps.append(step)
            self._turns.append(Turn("observation", render_observation(step.observation)))
            yield step

    def _reached_limit(self) -> Literal["steps", "tokens"] | None:
        if len(self._steps) >= self._limits.max_steps:
            return "steps"
        return "tokens" if self._completion_tokens >= self._limits.max_tokens else None

    async def _write_new(self, may_call: bool) -> AsyncGenerator[str | WrittenTurn, None]:
        """The next turn; one that repeats a call is written again without that tool."""
        spent: set[str] = set()
        while True:
            async with aclosing(self._write(may_call, spent)) as news:
                async for event in news:
                    if not isinstance(event, WrittenTurn):
                        yield event
                        continue
                    call = parse_turn(event.text)
                    may_repeat = not (may_call and self._request.is_constrained)
                    if may_repeat or not isinstance(call, ToolCall) or call.name in spent or not self._repeats(call):
                        yield event
                        return
                    spent.add(call.name)

    def _repeats(self, call: ToolCall) -> bool:
        """Whether its result would be an earlier one, or it runs a tool on what the same tool has made."""
        made = [step.artifact.dialogue_name for step in self._steps if step.artifact and step.tool == call.name]
        return call in self._calls or any(name in call.arguments for name in made)

    async def _write(self, may_call: bool, spent: Collection[str]) -> AsyncGenerator[str | WrittenTurn, None]:
        """The next turn; where the prompt is too long, without the oldest exchanges, then without the last tools."""
        while True:
            try:
                async with aclosing(self._write_turn(self._turn_request(may_call, spent))) as news:
                    async for event in news:
                        if isinstance(event, WrittenTurn):
                            self._prompt_tokens += event.prompt_tokens
                            self._completion_tokens += event.completion_tokens
                            self._cached_tokens += event.cached_tokens
                        yield event
                return
            except PromptTooLongError:
                if self._history:
                    del self._history[0]
                elif len(self._tools) > 1 and not self._steps:
                    del self._specs[self._tools.pop().call_name]
                    del self._offered[-1]
                else:
                    raise

    def _turn_request(self, may_call: bool, spent: Collection[str]) -> TurnRequest:
        offered = tuple(tool for tool in self._offered if tool.name not in spent)
        words = " ".join(self._request.words.splitlines())  # a line of the user's must not pass for the protocol's
        return TurnRequest(
            prompt=render_dialogue_prompt(self._tools, "\n".join(self._history), words),
            turns=tuple(self._turns),
            tools=offered,
            files=tuple(self._files),
            fallback_text=words,
            may_call=may_call and self._request.may_call and bool(offered),
            may_answer=not (may_call and self._request.must_call and not self._steps),
            max_answer_tokens=self._limits.max_answer_tokens,
            is_constrained=self._request.is_constrained,
            lacking_share=self._weigh_lacking(),
        )

    def _weigh_lacking(self) -> float | None:
        """The share of tools that take a file of which there is none."""
        by_input, there = self._request.by_input, {name.partition("/")[0] for name in self._files}
        return sum(by_input.get(kind, 0.0) for kind in MEDIA_KINDS if kind not in there) if by_input else None

    async def _call(self, written: WrittenTurn, call: ToolCall) -> AgentStep:
        """Check the call, run the tool, and word what the model is told."""
        choices = tuple((name, math.exp(score)) for name, score in written.choices[:_SHOWN_CHOICES])
        spec = self._specs.get(call.name)
        step = AgentStep(written.text, call.name, "" if spec is None else spec.tool_id, {}, "", choices=choices)
        start = self._clock()
        try:
            if spec is None or not self._request.may_call:
                raise InputError(f"There is no tool named {call.name[:80]}; use one of {', '.join(self._specs)}.")
            if call in self._calls:
                raise InputError("This call was made before; its result stands above.")
            self._calls.add(call)
            arguments = read_arguments(spec, call.arguments, self._files)
        except InputError as error:
            return replace(step, error="refused", observation=self._observe(str(error)))
        step = replace(step, arguments=arguments)
        try:
            result = await self._invoke(spec.tool_id, arguments)
        except ToolError as error:
            return replace(step, **self._failure(error.code, error.message, start))
        except InputError as error:
            return replace(step, **self._failure("bad_arguments", str(error), start))
        except TimeoutError:
            return replace(step, **self._failure("timeout", "It took too long.", start))
        observation = self._observe(result.text) or "Done."
        if result.artifact is not None:
            observation = result.artifact.dialogue_name
            self._files[observation] = result.artifact
        return replace(
            step,
            observation=observation,
            text=result.text,
            artifact=result.artifact,
            seconds=self._clock() - start,
        )

    def _failure(self, code: str, message: str, start: float) -> dict[str, Any]:
        observation = self._observe(render_failure(message))
        return {"error": code, "observation": observation, "text": message, "seconds": self._clock() - start}

    def _observe(self, text: str) -> str:
        """A tool's words on one line: none of them may begin like a line of the protocol."""
        return " ".join(text.split())[: self._limits.max_observation_chars]

    def _end(self, text: str, stopped: Literal["answer", "steps", "seconds", "tokens", "malformed"]) -> AgentResult:
        if not text:
            files = [step.artifact.dialogue_name for step in self._steps if step.artifact is not None]
            made = f" So far: {', '.join(files)}." if files else ""
            text = (
                f"I stopped after {len(self._steps)} steps without an answer: a limit of {stopped} was reached.{made}"
            )
        return AgentResult(
            text,
            tuple(self._steps),
            stopped,
            self._prompt_tokens,
            self._completion_tokens,
            tuple(self._turns),
            self._cached_tokens,
        )

    async def _within_time(self, work: Awaitable[_Result]) -> _Result:
        timeout = asyncio.timeout_at(self._deadline)
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if timeout.expired():
                raise _OutOfTimeError from None
            raise


class _OutOfTimeError(Exception):
    """The loop's own time is over, as against a time limit inside of a tool or a turn."""
