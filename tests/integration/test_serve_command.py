"""`python -m serve`: one command from a bundle to a page, a tool that runs beside the models, and a quiet end."""

from __future__ import annotations

import base64
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.integration.serve_command import serving
from tests.integration.small_service import make_bundle, make_encoder, picture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]


def test_one_command_serves_models_page_and_tools(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tmp_path / "backbone", make_encoder(tmp_path / "encoder"))
    with serving(bundle, tmp_path / "artifacts") as served:
        url = served.url
        assert "<html" in httpx.get(url).text
        asked = {"instruction": "Improve this picture", "media": {"data": base64.b64encode(picture()).decode()}, "k": 1}
        ranked = httpx.post(f"{url}/v1/tools/select", json=asked, timeout=60)
        assert len(ranked.json()["tools"]) >= 1
        uploaded = httpx.post(f"{url}/v1/artifacts", files={"file": picture(size=(40, 50))}, timeout=60).json()
        call = {"arguments": {"image": uploaded["id"]}}
        answer = httpx.post(f"{url}/v1/tools/local/measure-picture/invoke", json=call, timeout=120).json()
        assert answer["text"] in ("Width 50 pixels, height 40 pixels.", "Width 40 pixels, height 50 pixels.")
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
        time.sleep(0.5)
        words = [line.partition(" ")[0].strip(":\n") for line in served.lines]
        assert words == ["starting", "ready", "stopping"], "".join(served.lines)
