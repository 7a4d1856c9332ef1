"""The whole set: nothing is missing, everything runs, and a tool of one's own joins as the documentation says."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS
from data_pipeline.sources.toolmm_mini.catalog import build_catalog
from data_pipeline.sources.toolmm_mini.media_files import render_media
from serve.tools.all_tools import load_tools
from serve.tools.media import png_file
from serve.tools.run import ToolRunner
from serve.tools.spec import Clip, Sound

TOOLS = load_tools()
DOCS = Path(__file__).resolve().parents[3] / "docs" / "tools.md"
TYPES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}
KINDS = {"image": "portrait", "audio": "singing", "video": "bounce"}
SPECIAL = {"local/measure-heart-rate": "heartbeat", "local/measure-rotation": "engine"}


@pytest.fixture(scope="module")
def runner() -> Iterator[ToolRunner]:
    runner = ToolRunner()
    yield runner
    runner.close()


def test_every_local_tool_and_all_of_gpt4tools_are_there_and_say_what_the_catalogue_says() -> None:
    local = [tool for tool in build_catalog() if tool.backend == "local"]
    assert len(local) >= 38
    assert len(GPT4TOOLS_TOOLS) == 31
    for tool in (*local, *GPT4TOOLS_TOOLS):
        spec = TOOLS[tool.tool_id]
        assert spec.description.startswith(tool.description)
        assert spec.result == tool.output_modality
        if tool.name:
            assert (spec.name, spec.usage) == (tool.name, tool.usage)
            assert tuple(argument.name for argument in spec.arguments) == tool.arguments
        else:
            assert [argument.kind for argument in spec.arguments if argument.is_media] == [tool.input_modality]


def test_a_stand_in_says_so() -> None:
    for spec in TOOLS.values():
        if spec.method == "classical" and "in place of" in spec.description:
            assert re.search("[Cc]lassical", spec.description), spec.tool_id


@pytest.mark.parametrize("tool_id", [tool_id for tool_id, spec in TOOLS.items() if spec.method != "model"])
def test_every_tool_without_weights_runs_in_its_process(runner: ToolRunner, tool_id: str) -> None:
    spec = TOOLS[tool_id]
    kind = spec.arguments[0].kind
    media = render_media(Modality(kind), SPECIAL.get(tool_id, KINDS[kind]), np.random.default_rng(3))
    output = runner.run(spec, {spec.arguments[0].name: "m"}, {"m": media})
    assert output.text
    assert (output.file.media_type if output.file else None) == TYPES.get(spec.result)


def noise_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def noise_sound(n_samples: int, rate_hz: int = 8000) -> Sound:
    return Sound(np.random.default_rng(0).uniform(-1, 1, n_samples).astype(np.float32), rate_hz)


SMALLEST = {
    "image": [
        *(noise_picture(*size) for size in ((1, 1), (3, 2), (50, 1), (1, 50), (300, 1), (1, 1500), (20, 13))),
        np.zeros((1, 1, 3), np.uint8),
        np.full((2, 3, 3), 255, np.uint8),
    ],
    "video": [
        *(Clip(noise_picture(*size)[None], 25.0) for size in ((32, 32), (1, 1), (3, 2), (50, 1))),
        Clip(np.zeros((1, 32, 32, 3), np.uint8), 25.0),
        Clip(np.stack([noise_picture(3, 2, seed) for seed in range(3)]), 25.0),
    ],
    "audio": [
        *(noise_sound(n_samples, rate_hz) for n_samples in (1, 2, 100, 1000) for rate_hz in (1000, 8000, 44_100)),
        Sound(np.zeros(1, np.float32), 8000),
        Sound(np.zeros(8000, np.float32), 8000),
        Sound(np.ones(9000, np.float32), 44_100),
    ],
}


@pytest.mark.parametrize("tool_id", [tool_id for tool_id, spec in TOOLS.items() if spec.method != "model"])
def test_the_smallest_media_give_a_result_or_a_sentence(tool_id: str) -> None:
    spec = TOOLS[tool_id]
    medium, *others = spec.arguments
    values = {argument.parameter or argument.name: argument.default for argument in others}
    for smallest in SMALLEST[medium.kind]:
        try:
            output = spec.run(**{medium.parameter or medium.name: smallest}, **values)
        except InputError as error:
            assert re.fullmatch(r"[^\n]+\.", str(error))  # noqa: PT017 - either way of ending is right
        else:
            assert output.text
            assert not re.search(r"\bnan\b", output.text)


def test_your_own_tool_is_ten_lines(runner: ToolRunner, tmp_path: Path) -> None:
    """The example of docs/tools.md, as written."""
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    file = tmp_path / "mirror.py"
    file.write_text(example, encoding="utf-8")
    spec = load_tools(files=[file])["team/mirror"]
    picture = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    output = runner.run(spec, {"image": "a", "copies": 2}, {"a": png_file(picture).data})
    assert output.file is not None
    assert (np.array(Image.open(io.BytesIO(output.file.data))) == picture[:, ::-1].repeat(2, axis=1)).all()


def test_wrong_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tool with a model"):
        load_tools({"local/detect-edges": "some/model"})
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(InputError, match="holds no ToolSpec"):
        load_tools(files=[tmp_path / "empty.py"])
    with pytest.raises(InputError, match="no Python file"):
        load_tools(files=[tmp_path / "missing.py"])
