"""A small client: `select("http://127.0.0.1:8000", "Improve this picture", "street.jpg")`.

It needs no package but Python's own and this project.
From a shell: `python -m serve.client URL "INSTRUCTION" [MEDIA_FILE]`.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_pipeline.loopback import open_url


class ServiceError(RuntimeError):
    """The service refused or failed; the message is the service's own sentence.

    Attributes:
        status: HTTP status, or None where there was no answer at all.
        code: the service's word for the error, or None.
    """

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def select(
    url: str,
    instruction: str,
    media_path: str | Path | None = None,
    k: int | None = 5,
    *,
    modality: str | None = None,
    timeout_s: float = 120.0,
) -> dict[str, Any]:
    """Ask which tools fit.

    Args:
        url: of the service, without a path.
        instruction: the user's words.
        media_path: a picture, sound or video.
        k: how many tools to name; None: the service's default.
        modality: only needed where the sound of a video is meant.
        timeout_s: how long to wait.

    Returns:
        the answer as `serve.http.schemas.SelectAnswer` describes it.

    Raises:
        ServiceError: the service refused, failed or is not there.
    """
    body: dict[str, Any] = {"instruction": instruction, "k": k}
    if media_path is not None:
        data = base64.b64encode(Path(media_path).read_bytes()).decode("ascii")
        body["media"] = {"data": data, "modality": modality}
    return _call(url, "/v1/tools/select", body, timeout_s)


def list_tools(url: str, *, timeout_s: float = 30.0) -> dict[str, Any]:
    """The catalogue, as `serve.http.schemas.ToolList`; errors as in `select`."""
    return _call(url, "/v1/tools", None, timeout_s)


def health(url: str, *, timeout_s: float = 30.0) -> dict[str, Any]:
    """`serve.http.schemas.Health` of a healthy service; `ServiceError` otherwise."""
    return _call(url, "/healthz", None, timeout_s)


def _call(url: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ServiceError(f"{url!r} is no HTTP address; give one such as http://127.0.0.1:8000.")
    request = urllib.request.Request(
        url.rstrip("/") + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with open_url(request, timeout_s) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise _service_error(error) from error
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(f"no answer from {url} ({reason}); is the service running there?") from error


def _service_error(error: urllib.error.HTTPError) -> ServiceError:
    text = error.read().decode("utf-8", "replace")
    try:
        fault = json.loads(text)["error"]
        return ServiceError(fault["message"], error.code, fault["code"])
    except (ValueError, KeyError, TypeError):  # not from the service itself: a proxy, or Ray Serve while it starts
        return ServiceError(f"HTTP {error.code}: {text[:200] or error.reason}", error.code)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serve.client", description="Ask a running service which tools fit."
    )
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("instruction", help="what is wanted, in words")
    parser.add_argument("media", nargs="?", type=Path, help="picture, sound or video file")
    parser.add_argument("-k", type=int, default=5, help="how many tools to name")
    args = parser.parse_args()
    try:
        answer = select(args.url, args.instruction, args.media, args.k)
    except (ServiceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, OSError) else 1
    for tool in answer["tools"]:
        print(f"{tool['probability']:7.3f}  {tool['tool_id']}  {tool['description']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
