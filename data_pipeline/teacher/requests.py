"""What a teacher is asked and what it replies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TeacherRequest:
    """One question.

    Attributes:
        messages: (role, content) in their order.
        schema: JSON schema of the answer, where structured output is wanted.
        max_tokens: of the answer.
        sample: tells apart requests that are alike on purpose; the server does not see it.
    """

    messages: tuple[tuple[str, str], ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    temperature: float = 0.7
    sample: int = 0

    def key(self, model: str) -> str:
        """sha256 (hex) of the request and the model that is asked; the same in every run."""
        content = {
            "model": model,
            "messages": [[role, text] for role, text in self.messages],
            "schema": self.schema,
            "max_tokens": self.max_tokens,
            "temperature": float(self.temperature),  # 1 and 1.0 ask for the same
            "sample": self.sample,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()


@dataclass(frozen=True)
class TeacherReply:
    """The answer to one request.

    Attributes:
        text: as the model wrote it; "" where there is an error.
        finish_reason: as the server gives it: "stop", "length" where the text was cut at max_tokens.
        from_cache: nothing was sent, and nothing paid, for it.
        error: one sentence where no answer could be had.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    from_cache: bool = False
    error: str = ""
