"""Which chat server is the teacher, how fast it may be asked and how much it may cost."""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that are not closed
        is_address = False
        parts = urlsplit("")
    if not is_address:
        raise ValueError("has to be an address like https://api.openai.com/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:  # it stands in logs and error messages
        raise ValueError("must hold no user, password or query; the key is read from the environment (api_key_env)")
    return url.rstrip("/")


class TeacherOptions(BaseModel):
    """A server and its limits. The key itself is no option: it is read from the environment, and shown nowhere."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_check_url)]  # what stands before /chat/completions: https://api.openai.com/v1
    model: str = Field(min_length=1)  # as the server calls it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; "" = the server wants none
    requests_per_minute: float | None = Field(default=None, gt=0)  # of the whole job, with retries; None = no limit
    tokens_per_minute: float | None = Field(default=None, gt=0)  # prompts and answers; None = no limit
    max_concurrency: int = Field(default=64, ge=1, le=1000)  # requests that the server works on at the same time
    timeout_s: float = Field(default=60, gt=0)  # of one attempt, from sending to the last byte
    max_attempts: int = Field(default=6, ge=1)  # of one request
    input_price: float = Field(default=0, ge=0)  # per million tokens of prompts, in any currency
    output_price: float = Field(default=0, ge=0)  # per million tokens of answers
    budget: float | None = Field(default=None, gt=0)  # of one job, in the prices' currency; None = no limit
    structured_output: bool = False  # the server takes a request's schema as `response_format`

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.budget is not None and not (self.input_price or self.output_price):
            raise ValueError("budget needs input_price or output_price; without them nothing is known of the cost")
        return self
