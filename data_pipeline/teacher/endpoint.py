"""One attempt at a chat server, and what came of it; others judge what to do next.

It is sent with aiohttp. OpenAI's own client takes ten times the processor time of a request (2.3 ms beside 0.24 ms on
one core), which is too much for hundreds of replies a second beside other work; what it does more, retries, limits and
types, is done elsewhere here.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from data_pipeline.errors import InputError
from data_pipeline.loopback import is_loopback
from data_pipeline.teacher.answers import NoAnswerError, decode_body, describe_problem, parse_reply
from data_pipeline.teacher.options import TeacherOptions
from data_pipeline.teacher.requests import TeacherRequest

OVERLOADED = (429, 503, 529)  # with these, Retry-After speaks of the server, not of one request
SECRET_CHARS = 8  # a shorter key, like "EMPTY", is no secret, and may be a word of an answer
PASSING = (408, 409, 425, 429)  # and everything from 500 on
_MENDS = {
    401: "{key} is not accepted; set the environment variable {env} to a key of this server.",
    402: "the account has nothing left to pay with; top it up, or name another server.",
    403: "{key} may not use the model {model}; check what the key in {env} is allowed.",
    404: "there is no such address, or no model {model}; check url (what stands before /chat/completions) and model.",
}


@dataclass(frozen=True)
class Attempt:
    """What came of sending a request once.

    Attributes:
        kind: "answer"; "failed" = it may go well next time; "late" = the same, and the server may have too much to do;
            "throttled" = the server says so; "refused" = this request never goes well.
        raw: the response's body, of an answer.
        problem: what went wrong otherwise.
        retry_after_s: so long the server wants no request.
        tokens: (prompt, completion) that the server counted although there is no answer.
    """

    kind: Literal["answer", "failed", "late", "throttled", "refused"]
    raw: str = ""
    problem: str = ""
    retry_after_s: float | None = None
    tokens: tuple[int, int] = (0, 0)


class Endpoint:
    """A server under an address, with the key for it."""

    def __init__(self, options: TeacherOptions, session: aiohttp.ClientSession, key: str) -> None:
        self._options = options
        self._session = session
        self._key = key
        self._address = f"{options.url}/chat/completions"

    async def send(self, request: TeacherRequest) -> Attempt:
        """Send a request once.

        Raises:
            InputError: key, account, model or address are wrong: no request would go well.
        """
        try:
            data = json.dumps(self._render(request), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Attempt("refused", problem="the request holds half of a surrogate pair, which is no text")
        try:
            async with (
                asyncio.timeout(self._options.timeout_s),
                self._session.post(self._address, data=data) as response,
            ):
                body = await response.read()
        except TimeoutError:
            return Attempt("late", problem=f"no answer within {self._options.timeout_s:g} s")
        except aiohttp.ClientError as error:
            return Attempt("failed", problem=self._hide_key(f"the connection broke ({str(error) or repr(error)})"))
        if not response.ok:
            return self._judge_status(response.status, _read_problem(body), response.headers)
        try:
            raw = decode_body(body)
            if len(self._key) >= SECRET_CHARS:
                raw = self._hide_key(raw)
            parse_reply(raw)
        except NoAnswerError as error:
            return Attempt("failed", problem=self._hide_key(str(error)), tokens=error.tokens)
        return Attempt("answer", raw=raw)

    def _hide_key(self, text: str) -> str:
        """A server may repeat the key that it was sent."""
        return text.replace(self._key, "[key]") if self._key else text

    def _render(self, request: TeacherRequest) -> dict[str, Any]:
        options = self._options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.schema is not None and options.structured_output:
            schema = {"name": "answer", "schema": json.loads(json.dumps(request.schema, default=dict)), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _judge_status(self, status: int, body: object, headers: Mapping[str, str]) -> Attempt:
        options = self._options
        if mend := _MENDS.get(status):
            key = f"the key in {options.api_key_env}" if options.api_key_env else "a request without a key"
            why = mend.format(key=key, env=options.api_key_env or "that api_key_env names", model=options.model)
            raise InputError(f"{options.url} answered with status {status}: {why}")
        said = describe_problem(body, self._hide_key) if body else ""
        problem = f"status {status}" + (f" ({said})" if said else "")
        if status not in PASSING and status < 500:
            return Attempt("refused", problem=problem)
        retry_after_s = parse_retry_after(headers) if status in OVERLOADED else None
        return Attempt("throttled" if status == 429 else "failed", problem=problem, retry_after_s=retry_after_s)


@asynccontextmanager
async def open_endpoint(options: TeacherOptions) -> AsyncIterator[Endpoint]:
    """A server to send requests to.

    Raises:
        InputError: the environment variable with the key is not set.
    """
    key = os.environ.get(options.api_key_env, "").strip() if options.api_key_env else ""
    if options.api_key_env and not key:
        raise InputError(
            f"The environment variable {options.api_key_env} is not set; put the key of {options.url} there, or set "
            'api_key_env to "" for a server that wants none.'
        )
    if not key.isascii() or not key.isprintable() or " " in key:  # no HTTP header could hold it
        raise InputError(f"The environment variable {options.api_key_env} holds more than a key; put only that there.")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=options.max_concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # `send` has one of the whole
        trust_env=not is_loopback(options.url),  # HTTPS_PROXY and the like
    ) as session:
        yield Endpoint(options, session, key)


def _read_problem(body: bytes) -> object:
    """What a response that is no answer says: JSON where it is any, else its text."""
    text = body.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, in seconds or as a date (RFC 9110, 10.2.3); None for no valid one.

    A date is held against the server's own clock where it tells its time.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        until = _parse_date(value)
        if until is None:
            return None
        now = _parse_date(headers.get("date", "")) or datetime.datetime.now(datetime.UTC)
        seconds = (until - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _parse_date(value: str) -> datetime.datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
