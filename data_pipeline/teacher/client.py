"""Ask a teacher many questions at once, within limits, and pay for none twice."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from data_pipeline.teacher.answers import NoAnswerError, estimate_tokens, parse_reply
from data_pipeline.teacher.cache import ReplyCache
from data_pipeline.teacher.endpoint import Attempt, Endpoint, open_endpoint
from data_pipeline.teacher.limiter import Clock, Limiter
from data_pipeline.teacher.options import TeacherOptions
from data_pipeline.teacher.requests import TeacherReply, TeacherRequest

logger = logging.getLogger(__name__)

MILLION = 1_000_000
LONG_PAUSE_S = 60  # one that somebody who watches wants to know of
THROTTLED_TIMES = 10  # the attempts that a request has where the server is busy with others


@dataclass
class TeacherUsage:
    """What a teacher has done so far, and what that cost.

    Attributes:
        sent: requests to the server, retries among them.
        from_cache: requests that were answered without the server.
        failed: requests that ended with an error.
        retries: of requests that had been sent before.
        prompt_tokens: as the server counts them, of what was sent.
        completion_tokens: likewise.
        money: at the options' prices. Where the server does not count tokens, they are estimated for this alone.
        is_budget_spent: nothing more is sent.
    """

    sent: int = 0
    from_cache: int = 0
    failed: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0
    is_budget_spent: bool = False


class Teacher:
    """A chat server that answers requests, each of them once.

    Args:
        options: the server and its limits. The budget is one teacher's: another one begins anew, but from the cache.
        cache: where answers are kept, and looked for first.
        clock: by which limits are kept and retries wait; None = the machine's.
    """

    def __init__(self, options: TeacherOptions, cache: ReplyCache, clock: Clock | None = None) -> None:
        self._options = options
        self._cache = cache
        self._usage = TeacherUsage()
        self._limiter = Limiter(
            options.requests_per_minute, options.tokens_per_minute, options.max_concurrency, clock=clock
        )
        self._n_answers = 0  # of the server
        self._n_input = self._n_output = 0  # tokens to be paid

    @property
    def usage(self) -> TeacherUsage:
        """As it is now; a copy."""
        return replace(self._usage)

    @property
    def is_budget_spent(self) -> bool:
        """Whether the money is spent, so that nothing more is sent. Requests in flight at that moment cost on top."""
        return self._usage.is_budget_spent

    async def ask_all(self, requests: Iterable[TeacherRequest]) -> AsyncIterator[tuple[int, TeacherReply]]:
        """Ask, and give replies as they come. Requests that are alike are sent once.

        Replies that were not given yet when the caller goes away are in the cache for the next time.

        Args:
            requests: drawn one by one, at most twice `max_concurrency` ahead of what has been given, so that the next
                one waits where one is answered.

        Yields:
            (number in `requests`, reply). A request that cannot be answered has a reply with an error. Nothing for
            requests that were not sent because the budget is spent.

        Raises:
            InputError: no key; key, model or address are wrong. What is in flight is finished and given first.
            OSError: an answer cannot be written to the cache; likewise.
        """
        asking = _Asking()
        numbered = enumerate(requests)
        async with AsyncExitStack() as stack:
            try:
                while True:
                    while asking.n_in_hand < 2 * self._options.max_concurrency and not self._is_over(asking):
                        if (drawn := next(numbered, None)) is None:
                            break
                        asking.n_in_hand += 1
                        if (question := self._look_up(asking, *drawn)) is not None:
                            if asking.endpoint is None:
                                asking.endpoint = await stack.enter_async_context(open_endpoint(self._options))
                            asking.start(question, self._ask(asking, question))
                    if asking.ready:
                        await asyncio.sleep(0)  # a caller that takes replies from the cache stops nothing in flight
                        asking.n_in_hand -= 1
                        yield asking.ready.popleft()
                    elif asking.open:
                        if self._is_over(asking):
                            asking.cancel_unsent()
                        await self._collect(asking)
                    else:
                        break
            except asyncio.CancelledError:
                await asking.cancel()
                raise
            finally:
                await asking.finish()
        if asking.fault is not None:
            raise asking.fault

    def _is_over(self, asking: _Asking) -> bool:
        """Whether nothing more is sent."""
        return asking.is_left or asking.fault is not None or self._usage.is_budget_spent

    def _look_up(self, asking: _Asking, number: int, request: TeacherRequest) -> _Question | None:
        """The question that has to be asked; None where the reply is there or on its way."""
        key = request.key(self._options.model)
        if (question := asking.open.get(key)) is not None:
            question.numbers.append(number)
        elif (failed := asking.failed.get(key)) is not None:
            asking.ready.append((number, failed))
        elif (reply := self._recall(key)) is not None:
            self._usage.from_cache += 1
            asking.ready.append((number, reply))
        else:
            return _Question(request, key, [number])
        return None

    def _recall(self, key: str) -> TeacherReply | None:
        """The reply in the cache; None where it has none that can be read."""
        raw = self._cache.get(key)
        if raw is None:
            return None
        try:
            return parse_reply(raw, from_cache=True)
        except NoAnswerError as error:  # somebody changed the file
            logger.warning("asking again key=%s problem=%s", key, error)
            return None

    async def _collect(self, asking: _Asking) -> None:
        """Wait until a question is done, and take its reply."""
        question = await asking.done.get()
        del asking.open[question.key]
        if question.task.cancelled():
            return
        if (fault := question.task.exception()) is not None:
            asking.fault = asking.fault or fault
        elif (reply := question.task.result()) is not None:
            if reply.error:
                asking.failed[question.key] = reply
            first, *others = question.numbers
            asking.ready.append((first, reply))
            again = reply if reply.error else replace(reply, from_cache=True)
            asking.ready.extend((number, again) for number in others)
            self._usage.from_cache += 0 if reply.error else len(others)

    async def _ask(self, asking: _Asking, question: _Question) -> TeacherReply | None:
        """The reply to one request, which is in the cache then; None where it is not to be sent any more."""
        n_tries = n_failures = n_throttled = 0
        while not self._is_over(asking):
            n_answers = self._n_answers
            attempt = await self._send(asking, question, is_retry=n_tries > 0)
            if attempt is None:
                break
            if attempt.kind == "answer":
                return parse_reply(attempt.raw)
            n_tries += 1
            if attempt.kind != "throttled":
                n_failures += 1
            elif self._n_answers > n_answers:  # a busy server answers others in between,
                n_throttled = 0
            else:  # one that answers nobody, as with a spent quota, is not asked for ever
                n_throttled += 1
            most = self._options.max_attempts
            if attempt.kind == "refused" or n_failures + n_throttled >= most or n_tries >= most * THROTTLED_TIMES:
                self._usage.failed += 1
                tries = "at the first attempt" if n_tries == 1 else f"in {n_tries} attempts"
                return TeacherReply("", "error", error=f"No answer {tries}: {attempt.problem}.")
            logger.info("tries=%d problem=%s", n_tries, attempt.problem)
            if attempt.retry_after_s is None:
                await self._limiter.back_off(n_tries)
        return None

    async def _send(self, asking: _Asking, question: _Question, is_retry: bool) -> Attempt | None:
        """Send a request once, when its time has come, and keep the answer; None where it is not sent any more."""
        assert asking.endpoint is not None
        n_words = sum(estimate_tokens(content) for _, content in question.request.messages)
        lease = await self._limiter.take(n_words + question.request.max_tokens)
        n_tokens = None
        try:
            if self._is_over(asking):
                n_tokens = 0
                return None
            self._usage.sent += 1
            self._usage.retries += is_retry
            question.is_sent = True
            attempt = await asking.endpoint.send(question.request)
            if attempt.kind == "answer":
                self._cache.put(question.key, attempt.raw)  # before anything else can go wrong: it is paid for
                reply = parse_reply(attempt.raw)
                n_tokens = self._pay(
                    reply.prompt_tokens, reply.completion_tokens, (n_words, estimate_tokens(reply.text))
                )
                self._n_answers += 1
                self._limiter.note_answer()
            else:
                n_tokens = self._pay(*attempt.tokens)
            if attempt.kind in ("late", "throttled"):
                self._limiter.note_overload(lease)
            if attempt.retry_after_s is not None:
                if attempt.retry_after_s >= LONG_PAUSE_S:
                    logger.warning("paused_s=%.0f problem=%s", attempt.retry_after_s, attempt.problem)
                self._limiter.pause(attempt.retry_after_s)
            return attempt
        finally:
            question.is_sent = False
            self._limiter.give_back(lease, n_tokens)

    def _pay(self, n_prompt: int, n_completion: int, estimated: tuple[int, int] = (0, 0)) -> int | None:
        """Count what a response took; its tokens, None where the server does not say."""
        options, usage = self._options, self._usage
        usage.prompt_tokens += n_prompt
        usage.completion_tokens += n_completion
        is_counted = n_prompt + n_completion > 0
        n_input, n_output = (n_prompt, n_completion) if is_counted else estimated
        self._n_input += n_input
        self._n_output += n_output
        usage.money = (self._n_input * options.input_price + self._n_output * options.output_price) / MILLION
        usage.is_budget_spent = options.budget is not None and usage.money >= options.budget
        return n_prompt + n_completion if is_counted else None


@dataclass
class _Question:
    """A request that is being answered, and the places in the iterable that wait for it."""

    request: TeacherRequest
    key: str
    numbers: list[int]
    is_sent: bool = False  # the server works on it
    task: asyncio.Task[TeacherReply | None] = field(init=False, repr=False)


@dataclass
class _Asking:
    """The state of one `ask_all`."""

    endpoint: Endpoint | None = None  # opened for the first request that is not in the cache
    open: dict[str, _Question] = field(default_factory=dict)  # by key
    n_in_hand: int = 0  # requests that were drawn and whose replies were not given yet, until nothing more is sent
    done: asyncio.Queue[_Question] = field(default_factory=asyncio.Queue)  # of the open ones
    ready: deque[tuple[int, TeacherReply]] = field(default_factory=deque)
    failed: dict[str, TeacherReply] = field(default_factory=dict)  # by key; the cache keeps no errors
    fault: BaseException | None = None  # what ends the job
    is_left: bool = False  # nobody takes replies any more

    def start(self, question: _Question, answering: Coroutine[None, None, TeacherReply | None]) -> None:
        question.task = asyncio.create_task(answering)
        question.task.add_done_callback(lambda _: self.done.put_nowait(question))
        self.open[question.key] = question

    def cancel_unsent(self) -> None:
        """Let no question wait that is not going to be sent."""
        for question in self.open.values():
            if not question.is_sent:
                question.task.cancel()

    async def cancel(self) -> None:
        """Stop at once; the answers to what is in flight are lost."""
        for question in self.open.values():
            question.task.cancel()
        await self.finish()

    async def finish(self) -> None:
        """Let what is in flight come to its end, and into the cache, and send nothing more."""
        self.is_left = True
        self.cancel_unsent()
        await asyncio.gather(*(question.task for question in self.open.values()), return_exceptions=True)
        self.open.clear()
