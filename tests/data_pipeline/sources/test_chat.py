"""The forms of other trainers: dialogues with calls, questions of tool selection, and what cannot be mapped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool
from data_pipeline.records.dialogue import Answer, ToolCall, parse_dialogue_prompt, parse_offered_tools, read_turns
from data_pipeline.records.schema import Modality, ToolRecord
from data_pipeline.sources.read import SourceOptions, read_source, unite_sources
from data_pipeline.sources.reading import Rejected, SourceReading


def _function(name: str, *arguments: str, description: str = "Does it.") -> dict[str, Any]:
    properties = {argument: {"type": "string"} for argument in arguments}
    return {"name": name, "description": description, "parameters": {"type": "object", "properties": properties}}


CROP, READ = _function("crop", "image", "what", description="Crops."), _function("read_text", "image")
CALL = {"name": "crop", "arguments": {"what": "the dog, left", "image": "a.png"}}

SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Good\nday."},
        {"from": "human", "value": "Crop the dog\nin a.png"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": '{"file":\n "b.png"}'},
        {"from": "gpt", "value": "It is in\nb.png."},
    ],
    "system": "Be brief.",
    "tools": json.dumps([CROP, READ]),
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good\nday."},
        {"role": "user", "content": [{"type": "text", "text": "Crop the dog\nin a.png"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "crop", "arguments": json.dumps(CALL["arguments"])},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"file":\n "b.png"}'},
        {"role": "assistant", "content": "It is in\nb.png."},
    ],
    "tools": [{"type": "function", "function": CROP}, {"type": "function", "function": READ}],
}
TRL = {"prompt": OPENAI["messages"][:4], "completion": OPENAI["messages"][4:], "tools": OPENAI["tools"]}
HERMES = {
    "conversations": [
        *({"from": m["from"], "value": m["value"]} for m in SHAREGPT["conversations"][:3]),
        {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
        {"from": "tool", "value": '<tool_response>\n{"file": "b.png"}\n</tool_response>'},
        {"from": "gpt", "value": "It is in\nb.png."},
    ],
    "system": "Be brief.",
    "tools": SHAREGPT["tools"],
}


def _read(folder: Path, *rows: Any, source: str = "jsonl", catalog: str = "") -> tuple[SourceReading, list[Any]]:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    if catalog:
        (folder / "catalog.txt").write_text(catalog, encoding="utf-8")
    reading = read_source(source, path)
    return reading, list(reading)


def _read_one(folder: Path, row: Any, **options: Any) -> ToolRecord:
    _, (record,) = _read(folder, row, **options)
    assert isinstance(record, ToolRecord), record
    return record


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("sharegpt", SHAREGPT),
        ("sharegpt", HERMES),
        ("sharegpt", SHAREGPT | {"tools": [CROP, READ], "id": 7}),
        ("openai", OPENAI),
        ("openai", TRL),
        ("openai", OPENAI | {"tools": json.dumps(OPENAI["tools"])}),
    ],
)
@pytest.mark.parametrize("is_told", [True, False])
def test_a_chat_with_calls_becomes_a_dialogue(tmp_path: Path, source: str, row: Any, is_told: bool) -> None:
    """Of the same chat in every form the same dialogue, whether the form is told or seen."""
    name = source if is_told else "jsonl"
    reading, (record,) = _read(tmp_path, row, source=name)
    assert isinstance(record, ToolRecord), record
    assert (record.record_id, record.source, record.modality) == (f"{name}/0", name, Modality.TEXT)
    assert read_turns(record.turns) == [ToolCall("crop", "a.png, the dog, left"), Answer("It is in\nb.png.")]
    assert record.turns[1].text == ' {"file": "b.png"}\n', "an observation takes one line"
    assert parse_offered_tools(record.instruction) == {
        "crop": "Crops. Input: image, what",
        "read_text": "Does it. Input: image",
    }
    prompt = parse_dialogue_prompt(record.instruction)
    assert prompt.exchanges == (("Be brief.", "Understood."), ("Hello", "Good day."))
    assert prompt.new_input == "Crop the dog in a.png"
    assert (record.valid_tool_ids, record.candidate_tool_ids) == (("crop",), ("crop", "read_text"))
    assert reading.catalog.tool_ids == ("crop", "read_text", "unknown")
    assert reading.catalog["crop"] == Tool(
        "crop",
        "Crops.",
        usage="Crops. Input: image, what",
        arguments=("image", "what"),
        parameters=CROP["parameters"],
    )


def test_the_schemas_of_offered_functions_are_kept_where_they_are_schemas(tmp_path: Path) -> None:
    """Others write Python's types, or the properties alone; a chat is not lost for that, and neither are the names."""
    city = {"type": "string"}
    plain = _function("plain") | {"parameters": {"city": city}}
    typed = _function("typed") | {"parameters": {"city": {"type": "str, optional"}, "day": {"type": "int"}}}
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    reading, (record,) = _read(tmp_path, chat | {"tools": [plain, typed, _function("bare")]}, source="openai")
    assert isinstance(record, ToolRecord), record
    assert reading.catalog["plain"].parameters == {"type": "object", "properties": {"city": city}}
    assert (reading.catalog["typed"].arguments, reading.catalog["typed"].parameters) == (("city", "day"), {})
    assert reading.catalog["bare"].parameters == {"type": "object", "properties": {}}
    assert reading.repairs == {"an offered tool's parameters left out: no JSON schema": 1}


def test_parquet_holds_chats_as_structs(tmp_path: Path) -> None:
    """Where Parquet joins rows, fields that a row lacks are null, in the messages and in the schemas too."""
    other = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "tools": [READ]}
    rows = [
        OPENAI | {"messages": [*OPENAI["messages"][:3], {"role": "user", "content": "Go"}, *OPENAI["messages"][4:]]}
    ]
    rows.append(other | {"tools": [{"type": "function", "function": _function("x", "other")}]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    reading = read_source("openai", tmp_path / "rows.parquet")
    first, second = reading
    assert isinstance(first, ToolRecord), first
    assert isinstance(second, ToolRecord), second
    assert parse_offered_tools(first.instruction)["crop"] == "Crops. Input: image, what"
    assert reading.catalog["x"].parameters == {"type": "object", "properties": {"other": {"type": "string"}}}
    assert read_turns(first.turns)[0] == ToolCall("crop", "a.png, the dog, left")
    assert (second.valid_tool_ids, read_turns(second.turns)) == (("unknown",), [Answer("Ho")])


def test_calls_side_by_side_follow_each_other(tmp_path: Path) -> None:
    calls = [
        {"id": str(i), "type": "function", "function": {"name": "read_text", "arguments": {"image": f"{i}.png"}}}
        for i in range(2)
    ]
    messages = [
        {"role": "user", "content": "Read both"},
        {"role": "assistant", "content": "I will.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "0", "content": "zero"},
        {"role": "assistant", "content": "Done."},
    ]
    reading, (record,) = _read(tmp_path, {"messages": messages, "tools": [READ]})
    assert read_turns(record.turns) == [
        ToolCall("read_text", "0.png"), ToolCall("read_text", "1.png"), Answer("Done.")
    ]  # fmt: skip
    assert [turn.text for turn in record.turns[1::2]] == [" zero\n", " one\n"]
    assert dict(reading.repairs) == {"words beside a call left out": 1}


def test_the_last_question_that_needed_a_tool_is_learned(tmp_path: Path) -> None:
    more = [{"from": "human", "value": "Thanks"}, {"from": "gpt", "value": "Welcome."}]
    turns = SHAREGPT["conversations"]
    row = SHAREGPT | {"conversations": [*turns[2:], *turns[2:], *more]}
    reading, (record,) = _read(tmp_path, row)
    prompt = parse_dialogue_prompt(record.instruction)
    assert prompt.exchanges[1] == ("Crop the dog in a.png", 'crop: {"file": "b.png"} It is in b.png.')
    assert read_turns(record.turns)[-1] == Answer("It is in\nb.png.")
    assert dict(reading.repairs) == {"messages behind the answer to the last call left out": 1}


def test_a_dialogue_may_end_with_a_call(tmp_path: Path) -> None:
    for end, repairs in ((4, {}), (5, {"observation after the last call left out": 1})):
        reading, (record,) = _read(tmp_path, SHAREGPT | {"conversations": SHAREGPT["conversations"][:end]})
        assert read_turns(record.turns) == [ToolCall("crop", "a.png, the dog, left")]
        assert dict(reading.repairs) == repairs


def test_the_pictures_of_a_dialogue_are_made_known(tmp_path: Path) -> None:
    record = _read_one(tmp_path, SHAREGPT | {"images": ["scans/a.tif", "scans/a.tiff"]})
    assert parse_dialogue_prompt(record.instruction).files == {
        "scans/a.tif": "none given",
        "scans/a.tiff": "none given",
    }


def test_arguments_keep_the_order_of_the_tool(tmp_path: Path) -> None:
    def call(**arguments: Any) -> Any:
        turns = [
            {"from": "human", "value": "Go"},
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": arguments})},
        ]
        return {"conversations": turns, "tools": [_function("f", "a", "b", "c")]}

    reading, items = _read(tmp_path, call(c=[1, 2], b=True, a="x, y"), call(a="x", d="z", b=None), call(a=1, c=2))
    first, second, rejected = items
    assert read_turns(first.turns) == [ToolCall("f", "x y, true, [1, 2]")]
    assert dict(reading.repairs) == {"comma in an argument before the last left out": 1}
    assert read_turns(second.turns) == [ToolCall("f", "x, z")]
    assert isinstance(rejected, Rejected)
    assert "leaves out an argument" in rejected.reason


def test_one_tools_name_is_an_answer_of_tool_selection(tmp_path: Path) -> None:
    alpaca = {"instruction": "Sharpen it", "input": "<image>now", "output": " deblur\n", "images": ["a.png"]}
    sharegpt = {
        "conversations": [{"from": "human", "value": "<image>Sharpen it\nnow"}, {"from": "gpt", "value": "deblur"}],
        "images": ["a.png"],
        "system": "Name one tool.",
    }
    parts = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "Sharpen it\nnow"}]
    openai = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "deblur"}]}
    reading, records = _read(tmp_path, alpaca, sharegpt, openai, catalog="deblur\ndehaze\n")
    assert [record.instruction for record in records] == ["Sharpen it\nnow", "Sharpen it\nnow", "Sharpen it\nnow"]
    for record in records:
        assert (record.modality, record.media_uri) == (Modality.IMAGE, "a.png")
        assert (record.valid_tool_ids, record.turns) == (("deblur",), ())
    assert reading.media_root == tmp_path
    assert dict(reading.repairs) == {"system message of a tool selection left out": 1}
    offered = {"messages": openai["messages"], "tools": [_function("deblur"), _function("dehaze")]}
    record = _read_one(tmp_path, offered)
    assert record.candidate_tool_ids == ("deblur", "dehaze"), "of the tools that are offered"
    unknown = {"instruction": "Sing", "output": "unknown", "split": "test"}
    record = _read_one(tmp_path, unknown, source="alpaca")
    assert (record.valid_tool_ids, record.split, record.source) == (("unknown",), "test", "alpaca")


def test_sounds_and_videos_come_with_questions_too(tmp_path: Path) -> None:
    rows = [{"instruction": "What?", "output": "a", key: ["x.bin"]} for key in ("videos", "audios")]
    _, records = _read(tmp_path, *rows, catalog="a\n")
    assert [record.modality for record in records] == [Modality.VIDEO, Modality.AUDIO]


def test_a_catalogue_gives_tools_their_ids(tmp_path: Path) -> None:
    (tmp_path / "catalog.jsonl").write_text(json.dumps({"tool_id": "lab/crop", "name": "crop"}), encoding="utf-8")
    reading, (record, odd) = _read(tmp_path, SHAREGPT, SHAREGPT | {"tools": [CROP, _function("look at it")]})
    assert (record.valid_tool_ids, record.candidate_tool_ids) == (("lab/crop",), ("lab/crop", "read_text"))
    assert "crop" in parse_offered_tools(record.instruction)
    assert odd.candidate_tool_ids == ("lab/crop", "look-at-it")
    assert reading.catalog["look-at-it"].call_name == "look at it"


def test_own_rows_and_those_of_others_stand_in_one_file(tmp_path: Path) -> None:
    own = {"instruction": "Do it", "tools": ["a"]}
    _, (first, second) = _read(tmp_path, own, SHAREGPT, catalog="a\n")
    assert (first.valid_tool_ids, second.valid_tool_ids) == (("a",), ("crop",))
    (tmp_path / "catalog.txt").unlink()
    with pytest.raises(InputError, match=r"no catalog\.jsonl or catalog\.txt beside"):
        _read(tmp_path, own, SHAREGPT)


def _turns(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": [CROP], **fields}


ASK, SAY = ("human", "Go"), ("gpt", "Gone.")
DO = ("function_call", json.dumps(CALL))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "no object"),
        ({"conversations": "no list"}, "conversations is a text that is not JSON"),
        ({"conversations": 5}, "conversations is no list"),
        ({"conversations": []}, "no answer of an assistant"),
        (_turns(ASK), "no answer of an assistant"),
        (_turns(ASK, ("robot", "x")), "not one of the roles"),
        (_turns(ASK, SAY, tools=None), "no tool is offered or called"),
        (_turns(ASK, SAY, tools="[]"), "no tool is offered or called"),
        (_turns(ASK, SAY, SAY), "only the last turn may answer"),
        (_turns(ASK, DO, DO, SAY), "a call has no result"),
        (_turns(ASK, ("observation", "x"), SAY), "follows no call"),
        (_turns(ASK, ("function_call", "{")), "function_call is not JSON"),
        (_turns(ASK, ("function_call", "[" * 100_000)), "function_call is not JSON"),
        (_turns(ASK, ("function_call", '{"arguments": {}}')), "a call has no name"),
        (_turns(ASK, ("function_call", '{"name": "crop", "arguments": [1]}')), "arguments of a call are no object"),
        (_turns(ASK, ("function_call", '{"name": "crop", "arguments": "x"}')), "arguments of a call are not JSON"),
        (_turns(ASK, ("gpt", "<tool_call>crop</tool_call>")), "between <tool_call> tags"),
        (_turns(ASK, ("function_call", '{"name": "fly", "arguments": {}}')), "that is not offered"),
        (_turns(("human", " "), DO), "words are empty"),
        (_turns(ASK, ("gpt", "Thought: Action: x\nThought: x")), "neither a tool call nor an answer"),
        (_turns(ASK, ("gpt", "\ud800")), "lone surrogate"),
        (_turns(ASK, DO, tools=[CROP, CROP]), "two offered tools have one name"),
        (_turns(ASK, DO, tools=[{"description": "x"}]), "an offered tool has no name"),
        (_turns(ASK, DO, tools=[CROP, _function("a: b")]), "cannot stand in a prompt"),
        (_turns(ASK, DO, tools=[CROP, _function("unknown")]), "stands for none of them"),
        (_turns(ASK, DO, tools=[CROP, CROP | {"name": "x", "description": 5}]), "is no text"),
        (_turns(ASK, DO, images=["https://host/a.png"]), "a medium is an address"),
        (_turns(ASK, DO, images=[{"bytes": "x", "path": None}]), "not given by its path"),
        (_turns(ASK, DO, images=["a b.png"]), "no call could give it"),
        (_turns(ASK, DO, videos=["a.mp4"]), "makes pictures known only"),
        (_turns(ASK, ("gpt", "crop"), images=["a.png", "b.png"]), "more than one medium"),
        (_turns(ASK, SAY, ASK, ("gpt", "crop")), "earlier messages stand before the question"),
        (_turns(ASK, DO, split="dev"), "split must be one of"),
        (_turns(ASK, DO, kto_tag=False), "marked as a bad one"),
        ({"instruction": "Go", "output": "Gone."}, "no tool is offered or called"),
        ({"instruction": "Go", "output": 5}, "is no text"),
        ({"instruction": "Go", "output": "Gone.", "history": ["x"]}, "history is no list"),
        ({"instruction": "Go", "output": "Thought: Do I need"}, "prepare.source=gpt4tools"),
        ({"messages": [{"role": "user", "content": 5}]}, "neither a text nor a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "neither a text nor a medium"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": {"bytes": "x"}}]}]},
            "not given by its path",
        ),
        ({"messages": [{"role": "critic", "content": "x"}]}, "not one of the roles"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": CALL}]}]}, "not the assistant's"),
    ],
)
def test_what_cannot_be_mapped_is_rejected_with_its_reason(tmp_path: Path, row: Any, reason: str) -> None:
    form = "sharegpt" if row == "text" else "jsonl"
    reading, (bad, good) = _read(tmp_path, row, SHAREGPT, source=form)
    assert isinstance(bad, Rejected), bad
    assert reason in bad.reason
    assert bad.where.endswith("rows.json, record 0")
    assert isinstance(good, ToolRecord)
    assert reading.catalog.tool_ids == ("crop", "read_text", "unknown"), "a rejected row brings no tools"


def test_the_forms_unite_with_other_sources(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([SHAREGPT]))
    options = [SourceOptions(source=form, path=tmp_path / "a.json") for form in ("sharegpt", "sharegpt", "jsonl")]
    united = unite_sources(options, tmp_path, seed=0)
    assert [item.record_id for item in united if isinstance(item, ToolRecord)] == [
        "sharegpt/0", "sharegpt-2/0", "jsonl/0"
    ]  # fmt: skip


def test_the_examples_of_the_readme_are_read(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[3] / "data_pipeline" / "README.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```json\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]
    tools = {tool for line in lines for tool in re.findall(r"\w[\w-]*/[\w-]+(?=\")", line) if "." not in tool}
    _, items = _read(tmp_path, *map(json.loads, lines), catalog="\n".join(sorted(tools)))
    assert len(items) == 5
    assert [isinstance(item, ToolRecord) and item.is_dialogue for item in items] == [False, False, True, True, False]
    own, _, sharegpt, openai, alpaca = items
    assert (sharegpt.instruction, sharegpt.turns) == (openai.instruction, openai.turns)
    assert (alpaca.instruction, alpaca.media_uri) == (own.instruction, own.media_uri)
