"""Errors in OpenAI's form. Which error leads to which answer: tests/serve/deployments/test_http.py."""

from __future__ import annotations

from serve.http.errors import build_error


def test_error_types_follow_the_status() -> None:
    assert build_error(401, "no", "invalid_api_key").model_dump() == {
        "error": {"message": "no", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
    }
    kinds = {status: build_error(status, "", "").error.type for status in (400, 404, 429, 500, 503)}
    assert list(kinds.values()) == ["invalid_request_error"] * 2 + ["rate_limit_error"] + ["server_error"] * 2
