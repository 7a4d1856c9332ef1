"""Bodies of HTTP requests and answers, the error of a request, and the checks of its fields."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import InputError

MediaModality = Literal["image", "audio", "video"]

_DATA_URL = re.compile(r"data:(?P<type>[-\w.+/]*)(?:;[-\w.+]+=[-\w.+\"]*)*;base64,", re.ASCII | re.IGNORECASE)

_LINE_BREAKS = str.maketrans("", "", " \t\r\n")


class MediaPart(BaseModel):
    """A medium inside a JSON request."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="the file's bytes in base64, bare or as a data URL (data:image/png;base64,...)")
    modality: MediaModality | None = Field(None, description="only needed for a video file whose sound is meant")


class SelectRequest(BaseModel):
    """Body of `POST /v1/tools/select`."""

    model_config = ConfigDict(extra="forbid")

    instruction: str
    k: int | None = Field(None, strict=True, description="how many tools to name; default: the service's")
    model: str | None = Field(None, description="one that GET /v1/models lists; default: the first of them")
    media: MediaPart | None = None
    any_modality: bool = Field(False, description="whether to rank tools that cannot take the medium as well")


class RankedToolEntry(BaseModel):
    tool_id: str
    probability: float = Field(description="sums to 1 over the catalogue's tools that can take the medium")
    description: str
    input_modality: str
    output_modality: str
    backend: str


class Timing(BaseModel):
    media_ms: float = Field(description="decoding and encoding of the medium, waiting included; 0 without one")
    predict_ms: float = Field(description="ranking of the tools, waiting included")
    total_ms: float


class SelectAnswer(BaseModel):
    tools: list[RankedToolEntry]
    abstained: bool = Field(description="true where the first entry is `unknown`: none of the tools fits")
    p_unknown: float | None = Field(description="probability that none fits; null where the catalogue lacks `unknown`")
    modality: Literal["text", "image", "audio", "video"] = Field(description="of the medium that was seen")
    instruction_cut: bool = Field(
        description="true where the words were too many and the model saw only their beginning"
    )
    media_cached: bool = Field(description="true where the medium had been encoded before")
    model: str
    bundle_revision: str
    timing: Timing


class ToolEntry(BaseModel):
    tool_id: str
    name: str = Field(description="what a dialogue calls it; empty where that is the tool_id")
    description: str
    input_modality: str
    output_modality: str
    backend: str
    domain: str = Field("", description="such as Computer Vision; empty, like the next three, where it is not known")
    coarse_functionality: str = Field("", description="its task")
    fine_functionality: str = Field("", description="its subtask")
    example_code: str = ""
    parameters: dict[str, Any] | None = Field(
        None,
        description="JSON schema of what `/v1/tools/{tool_id}/invoke` takes; null where this service does not run it",
    )
    ready: bool = Field(description="whether it can run here now: a tool's weights may have to be fetched first")


class ToolList(BaseModel):
    tools: list[ToolEntry] = Field(description="the model's catalogue")
    others: list[ToolEntry] = Field(description="tools that this service runs beside it")
    catalog_sha256: str
    bundle_revision: str


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    predictor: str
    encoder: str
    models: dict[str, str] = Field(description="model name -> revision of its bundle")


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorBody


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of a route's errors: these and those that every route may give."""
    return {status: {"model": ErrorAnswer} for status in sorted({401, 429, 500, *statuses})}


BODY_ERRORS = (400, 408, 413, 415, 422, 503, 504)  # of routes that read a body and have something done with it


class RequestError(InputError):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status, 4xx.
        code: stable word for programs.
        param: the field at fault, or None.
    """

    def __init__(self, message: str, status: int = 400, code: str = "bad_request", param: str | None = None) -> None:
        super().__init__(message, status, code, param)  # all of them, so that the error survives pickling
        self.message = message
        self.status = status
        self.code = code
        self.param = param

    def __str__(self) -> str:
        return self.message


def check_instruction(instruction: str, max_chars: int) -> str:
    """The user's words, unchanged (nothing is stripped), or `RequestError`."""
    if not instruction.strip():
        raise RequestError(
            "The instruction is empty; say in words what is wanted.", code="empty_instruction", param="instruction"
        )
    if len(instruction) > max_chars:
        raise RequestError(
            f"The instruction has {len(instruction)} characters; at most {max_chars} are allowed.",
            status=413,
            code="instruction_too_long",
            param="instruction",
        )
    try:
        instruction.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(
            "The instruction holds half of a surrogate pair, which is no character; send valid Unicode.",
            code="bad_unicode",
            param="instruction",
        ) from None
    return instruction


def check_k(k: int | None, default_k: int, n_tools: int) -> int:
    """How many tools to name; `RequestError` unless 1 <= k <= n_tools."""
    if k is None:
        return min(default_k, n_tools)
    if not 1 <= k <= n_tools:
        raise RequestError(
            f"k is {k}; give a whole number from 1 to {n_tools}, the size of the catalogue.", code="bad_k", param="k"
        )
    return k


def parse_media_data(text: str, max_bytes: int) -> bytes:
    """Decode base64 or a base64 data URL; URLs are never fetched."""
    head = text[:64].lower()
    if re.match(r"[a-z][a-z0-9+.-]*://", head):
        raise RequestError(
            "URLs are not fetched; send the file's bytes as base64 or as a data URL, or use multipart.",
            code="url_not_allowed",
            param="media.data",
        )
    if head.startswith("data:"):
        match = _DATA_URL.match(text)
        if match is None:
            raise RequestError(
                "The data URL is malformed; its form is data:<type>;base64,<data>.",
                code="bad_base64",
                param="media.data",
            )
        text = text[match.end() :]
    text = text.translate(_LINE_BREAKS)  # mail's encoders break lines (RFC 2045)
    check_upload_size(len(text) * 3 // 4 - 2, max_bytes, "media.data")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            "The medium is not valid base64 (standard alphabet, padded).",
            code="bad_base64",
            param="media.data",
        ) from None
    check_upload_size(len(data), max_bytes, "media.data")
    return data


def check_upload_size(n_bytes: int, max_bytes: int, param: str) -> None:
    if n_bytes > max_bytes:
        raise RequestError(
            f"The medium has {n_bytes} bytes; at most {max_bytes} are allowed.",
            status=413,
            code="media_too_large",
            param=param,
        )
