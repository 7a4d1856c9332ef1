"""Reading a selection request's body: never more of it than is allowed, as JSON or as a multipart form."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import ServeArgs
from serve.http.json_body import parse_body
from serve.http.schemas import RequestError, SelectRequest, check_upload_size, parse_media_data

_FORM_FIELDS = ("instruction", "k", "model", "modality", "any_modality", "file")
_TRUTH = {"": False, "false": False, "true": True}
_MODALITIES = ("image", "audio", "video")


@dataclass(frozen=True)
class SelectInput:
    """A selection request, whichever way it came; `data` is the medium's bytes or None."""

    instruction: str
    k: int | None
    model: str | None
    data: bytes | None
    modality: str | None
    any_modality: bool = False


class BodyLimit:
    """ASGI middleware: stops reading as soon as a body is larger than allowed, whatever its Content-Length says.

    A body that is not there in time is not waited for any longer: connections that send nothing would pile up.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        n_read, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def receive_limited() -> Message:
            nonlocal n_read, is_whole
            if is_whole:
                return await receive()  # comes when the client has gone
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    f"The request's body did not arrive within {self._timeout_s:g} s; send it again, or a smaller one.",
                    status=408,
                    code="body_too_slow",
                ) from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                n_read += len(message.get("body", b""))
                if n_read > self._max_body_bytes:
                    raise RequestError(
                        f"The request's body is larger than {self._max_body_bytes} bytes; send a smaller medium.",
                        status=413,
                        code="body_too_large",
                    )
            return message

        await self._app(scope, receive_limited, send)


async def read_body(request: Request, args: ServeArgs, content_types: tuple[str, ...]) -> bytes:
    """The whole body of one of these content types; `RequestError` for another, or for too large a one."""
    check_body(request, args, content_types)
    return await request.body()


def check_body(request: Request, args: ServeArgs, content_types: tuple[str, ...]) -> str:
    """The content type, lower case, without its parameters; nothing of the body is read yet."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > args.max_body_bytes:
        raise RequestError(
            f"The request's body has {announced[:20]} bytes; at most {args.max_body_bytes} are allowed.",
            status=413,
            code="body_too_large",
        )
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in content_types:
        raise RequestError(
            f"The content type is {content_type[:80] or 'missing'}; send {' or '.join(content_types)}.",
            status=415,
            code="bad_content_type",
        )
    return content_type


async def read_select_input(request: Request, args: ServeArgs) -> SelectInput:
    """Parse the body by its content type; every fault is a `RequestError`."""
    if check_body(request, args, ("application/json", "multipart/form-data")) == "application/json":
        return _parse_json(await request.body(), args)
    return await _read_form(request, args)


def _parse_json(body: bytes, args: ServeArgs) -> SelectInput:
    parsed = parse_body(SelectRequest, body)
    media = parsed.media
    return SelectInput(
        instruction=parsed.instruction,
        k=parsed.k,
        model=parsed.model,
        data=None if media is None else parse_media_data(media.data, args.max_upload_bytes),
        modality=None if media is None else media.modality,
        any_modality=parsed.any_modality,
    )


async def _read_form(request: Request, args: ServeArgs) -> SelectInput:
    # Starlette spools the file to disk beyond 1 MiB; BodyLimit bounds it
    async with request.form(
        max_files=1, max_fields=len(_FORM_FIELDS), max_part_size=args.max_instruction_chars * 4 + 1024
    ) as form:
        names = [name for name, _ in form.multi_items()]
        for name in names:
            if name not in _FORM_FIELDS or names.count(name) > 1:
                fault = "is unknown" if name not in _FORM_FIELDS else "is given more than once"
                raise RequestError(
                    f"The form field {name[:80]!r} {fault}; the fields are {', '.join(_FORM_FIELDS)}, each once.",
                    code="bad_field",
                    param=name[:80],
                )
        file = form.get("file")
        if isinstance(file, str):
            raise RequestError(
                "The form field 'file' is text; attach the medium as a file.", code="bad_field", param="file"
            )
        data = None
        if isinstance(file, UploadFile):
            check_upload_size(file.size or 0, args.max_upload_bytes, "file")
            data = await file.read()
        modality = _text_field(form.get("modality"), "modality") or None
        if modality is not None and modality not in _MODALITIES:
            raise RequestError(
                f"The modality is {modality[:80]!r}; it is one of {', '.join(_MODALITIES)}, or left out.",
                code="bad_field",
                param="modality",
            )
        return SelectInput(
            instruction=_text_field(form.get("instruction"), "instruction"),
            k=_parse_k(_text_field(form.get("k"), "k")),
            model=_text_field(form.get("model"), "model") or None,
            data=data,
            modality=modality,
            any_modality=_parse_truth(_text_field(form.get("any_modality"), "any_modality")),
        )


def _text_field(value: UploadFile | str | None, name: str) -> str:
    if isinstance(value, UploadFile):
        raise RequestError(f"The form field {name!r} is a file; send it as text.", code="bad_field", param=name)
    return value or ""


def _parse_truth(text: str) -> bool:
    if text not in _TRUTH:
        raise RequestError(
            f"any_modality is {text[:40]!r}; give true or false.", code="bad_field", param="any_modality"
        )
    return _TRUTH[text]


def _parse_k(text: str) -> int | None:
    if text == "":
        return None
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise RequestError(f"k is {text[:40]!r}; give a whole number.", code="bad_k", param="k")
    return int(text)
