"""Cards of tools in the forms that they come in, and what a catalogue leaves out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import InputError
from data_pipeline.instruct.cards import (
    Card,
    LeftOut,
    choose_cards,
    read_cards,
)
from data_pipeline.records.catalog import MAX_EXAMPLE_CHARS, Tool

SHARED = Path(__file__).parents[4] / "shared"


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def model(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "modelId": f"lab/model-{number}",
        "pipeline_tag": "image-to-image",
        "downloads": number,
        "tags": ["license:mit"],
        "description": f"Removes kind {number} of fault from pictures.",
    } | changes


def test_the_hubs_models(tmp_path: Path) -> None:
    rows = [
        *(model(number) for number in range(8)),
        model(20, pipeline_tag="reinforcement-learning"),
        model(21, description="Nice."),
        model(22, description="Makes nude pictures of people."),
        model(23, modelId="lab/nsfw-maker"),
        model(24, tags=["license:cc-by-nc-4.0"]),
        model(25, tags=[], cardData={"license": "apache-2.0"}, pipeline_tag="audio-to-audio"),
        model(7),
        model(26, description="removes KIND 7 of fault from  pictures."),
        7,
    ]
    cards = read_cards(write(tmp_path / "models.json", rows))
    tools, left_out = choose_cards(cards, {"mit", "apache-2.0"})
    assert [tool.tool_id for tool in tools] == [f"lab/model-{number}" for number in (3, 4, 5, 6, 25, 26)]
    assert (tools[0].input_modality, tools[0].output_modality, tools[0].backend) == ("image", "image", "huggingface")
    assert tools[-2].input_modality == "audio"
    reasons = {each.name: each.reason for each in left_out}
    assert reasons["lab/model-0"] == "5 tools for Image-to-Image have more downloads"
    assert reasons["lab/model-20"] == "its task is reinforcement-learning"
    assert "too little" in reasons["lab/model-21"]
    assert reasons["lab/model-22"] == reasons["lab/nsfw-maker"] == "unsafe content"
    assert reasons["lab/model-24"] == "its licence is cc-by-nc-4.0"
    assert reasons["lab/model-7"] == "it says the same as lab/model-26", "which has more downloads"
    assert len(left_out) + len(tools) == len(rows)


def test_a_model_of_the_hub_says_how_it_is_called_and_what_it_takes(tmp_path: Path) -> None:
    rows = [
        model(1, pipeline_tag="visual-question-answering", library_name="transformers"),
        model(2, tags=["diffusers", "license:mit"], description="Lifts fog off pictures.\n```python\nrun(1)\n```\n"),
        model(3, library_name="diffusers", description="Lifts fog off pictures.\n```python\n\ud800\n```\n"),
        model(4, tags=7, pipeline_tag=["x"]),
    ]
    asks, runs, broken, odd = read_cards(write(tmp_path / "models.json", rows))
    assert isinstance(asks, Card)
    assert isinstance(runs, Card)
    assert asks.tool.call == "pipeline('visual-question-answering', model='lab/model-1')"
    assert asks.tool.example_code == f"from transformers import pipeline\n\nmodel = {asks.tool.call}"
    assert asks.tool.arguments == ("image_path", "question") == tuple(asks.tool.parameters["required"])
    assert asks.tool.parameters["properties"]["image_path"] == {"type": "string", "contentMediaType": "image/*"}
    assert (asks.tool.input_modality, asks.tool.output_modality) == ("image", "text")
    assert asks.tool.coarse_functionality == "Visual Question Answering"
    assert runs.tool.call == "DiffusionPipeline.from_pretrained('lab/model-2')"
    assert (runs.tool.example_code, runs.tool.description) == ("run(1)", "Lifts fog off pictures.")
    assert isinstance(broken, LeftOut), "its code is no text, and the others are read"
    assert broken.name == "lab/model-3"
    assert odd == LeftOut("lab/model-4", "its task is ['x']")


def test_five_of_each_subtask_are_kept(tmp_path: Path) -> None:
    rows = [
        model(10 * kind + number, description=f"Does {what} of pictures, in way number {number}.")
        for kind, what in enumerate(("deblurring", "dehazing"))
        for number in range(7)
    ]
    tools, left_out = choose_cards(read_cards(write(tmp_path / "models.json", rows)))
    assert len(tools) == 10
    assert {(tool.domain, tool.coarse_functionality, tool.fine_functionality) for tool in tools} == {
        ("Computer Vision", "Image-to-Image", f"Image {what}") for what in ("Deblurring", "Dehazing")
    }
    assert {each.reason for each in left_out} == {
        f"5 tools for Image-to-Image: Image {what} have more downloads" for what in ("Deblurring", "Dehazing")
    }


def test_an_mcp_servers_tools(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"unit": {}, "city": {"type": "string"}}, "required": ["city"]}
    broken = {"type": "object", "properties": {"city": {"type": "word"}}}
    tools = [
        {"name": "get weather", "description": "Tells the weather of a city.", "inputSchema": schema},
        {"name": 4},
        {"name": "broken", "description": "Tells the weather of a city.", "inputSchema": broken},
        {"name": "bare", "description": "Tells the time of this place.", "inputSchema": None},
    ]
    expected = Tool("get-weather", "Tells the weather of a city.", arguments=("city", "unit"), parameters=schema)
    for content in ({"tools": tools}, {"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}):
        card, nameless, fault, bare = read_cards(write(tmp_path / "list.json", content))
        assert card == Card(expected)
        assert nameless == LeftOut("tool 1", "it has no name")
        assert isinstance(fault, LeftOut)
        assert (fault.name, fault.reason[:60]) == (
            "broken",
            "its parameters are no JSON schema: properties.city.type: 'word'"[:60],
        )
        assert bare == Card(Tool("bare", "Tells the time of this place."))


def test_functions_in_openais_form(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "get_weather", "description": "Tells the weather of a city.", "parameters": schema}
    expected = Card(Tool("get_weather", "Tells the weather of a city.", arguments=("city",), parameters=schema))
    wrapped = {"type": "function", "function": function}
    for content in ([wrapped], [function], {"tools": [wrapped]}, wrapped, function):
        assert read_cards(write(tmp_path / "functions.json", content)) == [expected]
    bad = read_cards(write(tmp_path / "functions.json", [function | {"parameters": "city"}]))
    assert bad == [LeftOut("get_weather", "its parameters are no JSON object")]


def test_an_openapi_file(tmp_path: Path) -> None:
    content = {
        "openapi": "3.1.0",
        "paths": {
            "/pets/{id}": {
                "get": {
                    "operationId": "showPet",
                    "summary": "Shows a pet.",
                    "parameters": [{"name": "id", "in": "path", "schema": {"type": "integer"}}],
                },
                "delete": {"description": "Removes a pet for ever."},
                "parameters": [],
            }
        },
    }
    expected = [
        Card(Tool("showPet", "Shows a pet", parameters={"type": "object", "properties": {"id": {"type": "integer"}}})),
        Card(Tool("delete-pets--id", "Removes a pet for ever")),
    ]
    found = read_cards(write(tmp_path / "api.json", content))
    assert [card.tool.description for card in found if isinstance(card, Card)] == [c.tool.description for c in expected]
    assert found[0] == expected[0]
    (tmp_path / "api.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert read_cards(tmp_path / "api.yaml") == found


def test_entries_and_files_in_no_form(tmp_path: Path) -> None:
    file = tmp_path / "tools.jsonl"
    rows = [{"tool_id": "a", "description": "Does a thing or two."}, {"tool_id": "b c"}, {"what": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_cards(file)
    assert found[0] == Card(Tool("a", "Does a thing or two."))
    assert [isinstance(card, LeftOut) for card in found] == [False, True, True]
    with pytest.raises(InputError, match="in no known form"):
        read_cards(write(tmp_path / "x.json", {"a": 1}))
    with pytest.raises(InputError, match="there is no file"):
        read_cards(tmp_path / "none.json")


@pytest.mark.skipif(not (SHARED / "apibench").is_dir(), reason="no apibench beside the project")
def test_apibenchs_cards_give_each_api_once() -> None:
    names: set[str] = set()
    n_rows = 0
    for file in ("huggingface_eval.json", "torchhub_eval.json", "torchhub_train.json"):
        cards = read_cards(SHARED / "apibench" / file)
        n_rows += len(cards)
        tools, left_out = choose_cards(cards, max_per_function=10**6)
        assert len(tools) + len(left_out) == len(cards)
        assert len({tool.tool_id for tool in tools}) == len(tools)
        assert all(each.reason for each in left_out)
        ids = {card.tool.tool_id for card in cards if isinstance(card, Card)}
        unfit = {each.name for each in left_out if not each.reason.startswith("another card is of the same tool")}
        assert {tool.tool_id for tool in tools} <= ids <= {tool.tool_id for tool in tools} | unfit
        names |= {tool.tool_id for tool in tools}
    assert n_rows > 1000
    assert len(names) > 100


@pytest.mark.skipif(not (SHARED / "apibench").is_dir(), reason="no apibench beside the project")
def test_apibenchs_cards_keep_domain_functionality_and_code() -> None:
    tools: dict[str, Tool] = {}
    n_cards = n_with_code = n_plain = n_with_parameters = 0
    for file in ("huggingface_eval.json", "torchhub_eval.json", "torchhub_train.json"):
        rows = [json.loads(line) for line in (SHARED / "apibench" / file).read_text(encoding="utf-8").splitlines()]
        for row, card in zip(rows, read_cards(SHARED / "apibench" / file), strict=True):
            if isinstance(card, LeftOut):
                continue
            stated, tool = row["api_data"], card.tool
            n_cards += 1
            n_with_parameters += bool(tool.parameters)
            tools.setdefault(tool.tool_id, tool)
            parts = dict.fromkeys((tool.domain, tool.coarse_functionality))
            assert " ".join(parts).split() == stated["domain"].split()
            if tool.fine_functionality and isinstance(stated["functionality"], str):
                assert tool.fine_functionality == " ".join(stated["functionality"].split())
            if str(stated["functionality"]) in (stated.get("framework"), tool.coarse_functionality):
                assert tool.fine_functionality == "", "the framework's name or the task is no subtask"
                n_plain += 1
            code = stated.get("example_code")
            if isinstance(code, str | list):
                n_with_code += bool(tool.example_code)
                given = code if isinstance(code, str) else "\n".join(code)
                assert tool.example_code.splitlines() == given.strip("\n").splitlines()
    assert n_cards > 1900
    assert n_with_code > 1500
    assert n_plain > 100
    assert n_with_parameters > 1000
    entry = tools["facebookresearch/pytorchvideo:slow_r50"]
    assert (entry.domain, entry.fine_functionality) == ("Video Classification", "3D ResNet")
    assert entry.example_code.splitlines()[0] == "import torch"
    detr = tools["facebook/detr-resnet-50-panoptic"]
    assert (detr.domain, detr.coarse_functionality) == ("Computer Vision", "Image Segmentation")


def test_example_code_in_every_form(tmp_path: Path) -> None:
    card = {"api_name": "lab/x", "domain": "Audio Noise", "functionality": "Hiss", "description": "Takes hiss away."}

    def read(code: Any) -> str:
        row = {"api_call": "load('lab/x')", "api_data": card | {"example_code": code}}
        (card_,) = read_cards(write(tmp_path / "c.json", [row]))
        assert isinstance(card_, Card)
        return card_.tool.example_code

    assert read(None) == read(7) == read("") == ""
    assert (
        read(["import lab", "x = lab.load()"]) == read("import lab\nx = lab.load()\n") == "import lab\nx = lab.load()"
    )
    assert read({"load": "x = 1", "run": {"a": "y = x", "b": ["z = y"]}}) == "x = 1\ny = x\nz = y"
    assert read([[[["x = 1"]]]]) == "x = 1"
    assert read([[[[["x = 1"]]]]]) == "", "no card nests its code so deep"
    line = "x" * (MAX_EXAMPLE_CHARS // 4 - 1)
    assert read([line] * 5) == "\n".join([line] * 4), "whole lines"
    assert read(line * 5) == ""


@pytest.mark.skipif(not (SHARED / "metatool").is_dir(), reason="no metatool beside the project")
def test_metatools_descriptions() -> None:
    cards = read_cards(SHARED / "metatool" / "plugin_des.json")
    tools, left_out = choose_cards(cards)
    assert len(tools) + len(left_out) == len(cards) == 199
    assert len(tools) > 180
