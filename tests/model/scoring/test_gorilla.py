"""Gorilla's metrics: values worked out by hand, and the released answers scored against themselves and others."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.errors import InputError
from data_pipeline.records.catalog import Tool, ToolCatalog
from data_pipeline.records.schema import ToolRecord
from data_pipeline.sources.apibench import read_card
from data_pipeline.sources.read import read_source
from model.scoring.gorilla import (
    GORILLA_RULE,
    Api,
    GorillaItem,
    GorillaScores,
    read_answer,
    render_api_call,
    score_gorilla,
)
from model.scoring.tables import render_gorilla_markdown


def torch_api(repository: str, model: str, domain: str, rest: str = ", pretrained=True") -> Api:
    return Api(f"torch.hub.load(repo_or_dir='{repository}', model='{model}'{rest})", "n", domain)


VGG11 = torch_api("pytorch/vision", "vgg11", "Classification")
VGG11_BN = torch_api("pytorch/vision", "vgg11_bn", "Classification")
RESNET = torch_api("pytorch/vision", "resnet101", "Classification")
DEEPLAB = torch_api("pytorch/vision", "deeplabv3_resnet101", "Segmentation")
MEAL = Api("torch.hub.load(repo_or_dir='szq/MEAL', 'meal_v2', model='meal_resnest50', pretrained=True)", "M", "C")
FP16 = torch_api("nv/hub:torchhub", "tacotron", "TTS", ", model_math='fp16'")
FAIRSEQ = Api("torch.hub.load(repo_or_dir='pytorch/fairseq')", "NMT", "C")
ROBERTA = torch_api("pytorch/fairseq", "roberta.large", "C")
BERT = Api("AutoModel.from_pretrained('org/bert')", "org/bert", "NLP")
PIPE = Api("pipeline('fill-mask', model='org/bert')", "bert", "NLP Fill")
BARE = Api("S2THubInterface()", "s2t", "Audio")
COMMAND = Api("mlagents-load-from-hf --repo-id='a/soccer' --local-dir='./d'", "a/soccer", "RL")
JOB_1 = Api("joblib.load('model.joblib')", "x/iris", "Tabular Classification")
JOB_2 = Api("joblib.load('model.joblib')", "x/houses", "Tabular Regression")
APIS = (*(VGG11, VGG11_BN, RESNET, DEEPLAB, MEAL, FP16, FAIRSEQ, ROBERTA, BERT, PIPE, BARE, COMMAND, JOB_1, JOB_2),)

# right answer, response, (functionality, exact, hallucination, no call)
CASES = [
    (VGG11, "torch.hub.load('pytorch/vision', 'vgg11', pretrained=True)", (1, 1, 0, 0)),
    (VGG11, "model = torch.hub.load(model=\"vgg11\", repo_or_dir=\"pytorch/vision:v0.10.0\")", (1, 1, 0, 0)),
    (VGG11, "torch.hub.load('pytorch/vision', 'resnet101')", (1, 0, 0, 0)),  # another API of the domain
    (DEEPLAB, "torch.hub.load('pytorch/vision', 'vgg11')", (0, 0, 0, 0)),  # of another one
    (VGG11_BN, "torch.hub.load('pytorch/vision', 'vgg11_bn')", (1, 1, 0, 0)),  # matched as vgg11
    (VGG11, "torch.hub.load('pytorch/vision', 'vgg11_bn')", (1, 0, 0, 0)),
    (DEEPLAB, "torch.hub.load('pytorch/vision', 'deeplabv3_resnet101')", (0, 1, 0, 0)),  # matched as resnet101
    (VGG11, "torch.hub.load('pytorch/vision', 'vgg99')", (0, 0, 1, 0)),
    (VGG11, "torch.hub.load('vgg11')", (0, 0, 1, 0)),
    (VGG11, "load('pytorch/vision', 'vgg11')", (0, 0, 1, 0)),  # another function
    (MEAL, "torch.hub.load('szq/MEAL','meal_v2','meal_resnest50')", (1, 1, 0, 0)),
    (FP16, "torch.hub.load('nv/hub:torchhub', 'tacotron', model_math='fp16')", (1, 1, 0, 0)),
    (FP16, "torch.hub.load('nv/hub:torchhub', 'tacotron')", (0, 0, 1, 0)),  # model_math is compared too
    (FP16, "torch.hub.load('nv/hub', 'tacotron', model_math='fp16')", (0, 0, 1, 0)),  # a branch is no version
    (FAIRSEQ, "torch.hub.load('pytorch/fairseq', 'transformer.wmt14.en-fr')", (1, 1, 0, 0)),
    (FAIRSEQ, "torch.hub.load('pytorch/fairseq', 'roberta.large')", (1, 0, 0, 0)),  # that is another API
    (BERT, 'model = AutoModel.from_pretrained("org/bert", cache_dir=".")', (1, 1, 0, 0)),
    (BERT, "AutoTokenizer.from_pretrained('org/bert')\nAutoModel.from_pretrained('org/bert')", (1, 1, 0, 0)),
    (BERT, "AutoModel.from_pretrained('org/bert-large')", (1, 0, 0, 0)),  # the text holds org/bert
    (BERT, "pipeline('fill-mask', model='org/bert')", (0, 1, 0, 0)),  # the model is right, the API's domain another
    (BERT, "BertModel.from_pretrained('org/bert')", (0, 0, 1, 0)),
    (BARE, "S2THubInterface()", (1, 1, 0, 0)),
    (COMMAND, "Run:\nmlagents-load-from-hf --repo-id='a/soccer'  --local-dir='./d'", (1, 1, 0, 0)),
    (JOB_1, "joblib.load('model.joblib')", (1, 1, 0, 0)),
    (JOB_2, "joblib.load('model.joblib')", (0, 1, 0, 0)),  # the first of both counts
    (VGG11, "", (0, 0, 0, 1)),
    (VGG11, "I would use VGG11 (from pytorch/vision).", (0, 0, 0, 1)),
    (
        VGG11,
        "<<<domain>>>: Classification\n<<<api_call>>>: model = torch.hub.load('pytorch/vision', 'vgg11')\n"
        "<<<api_provider>>>: PyTorch\n<<<code>>>: torch.hub.load('a', 'b')",
        (1, 1, 0, 0),
    ),
    (
        VGG11,
        "{'api_call': \"torch.hub.load('a', 'b')\", 'api_provider': 'PyTorch', 'code': "
        "torch.hub.load('pytorch/vision', 'vgg11')}",
        (0, 0, 1, 0),
    ),
    (VGG11, "torch.hub.load('pytorch/vision', 'vgg11'", (1, 1, 0, 0)),  # broken off
]  # fmt: skip


def score_one(right: Api, response: str) -> tuple[int, ...]:
    scores = score_gorilla([GorillaItem(right.domain, (right,))], [response], APIS)
    (item,) = scores.items
    return (int(item.functionality), int(item.exact), int(item.hallucination), int(item.no_call))


@pytest.mark.parametrize(("right", "response", "values"), CASES)
def test_values_worked_out_by_hand(right: Api, response: str, values: tuple[int, ...]) -> None:
    assert score_one(right, response) == values


def test_shares_intervals_and_the_table() -> None:
    gold = [GorillaItem(right.domain, (right,)) for right, _, _ in CASES]
    scores = score_gorilla(gold, [response for _, response, _ in CASES], APIS)
    sums = [sum(values[column] for _, _, values in CASES) for column in range(4)]
    assert scores.to_json() == {
        "functionality": sums[0] / len(CASES),
        "exact": sums[1] / len(CASES),
        "hallucination": sums[2] / len(CASES),
        "no_call": sums[3] / len(CASES),
        "items": len(CASES),
    }
    table = render_gorilla_markdown(scores)
    assert f"Catalogue: {len(APIS)} APIs." in table
    assert GORILLA_RULE in table
    assert "Exact (repository and model of a right answer)" in table
    assert scores.shares["exact"].low < scores.shares["exact"].value < scores.shares["exact"].high


def test_any_right_answer_to_the_same_words_is_exact() -> None:
    item = GorillaItem("Segmentation", (DEEPLAB, VGG11))
    scores = score_gorilla([item], ["torch.hub.load('pytorch/vision', 'vgg11')"], APIS)
    assert (scores.items[0].functionality, scores.items[0].exact) == (0, 1), "the domain is the row's own"
    assert scores.matched == [VGG11.call]


def test_the_answer_is_what_follows_api_call() -> None:
    assert read_answer("f(x)") == "f(x)"
    assert read_answer("a api_call: f(x) api_provider: g(y) api_call: h(z)") == ": f(x) "


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(InputError, match="no question to score"):
        score_gorilla([], [], APIS)
    with pytest.raises(InputError, match="2 responses for 1 questions"):
        score_gorilla([GorillaItem("C", (VGG11,))], ["", ""], APIS)


def test_a_selected_tool_becomes_its_call() -> None:
    catalog = ToolCatalog([Tool("pytorch/vision:vgg11", call=VGG11.call), Tool("t5-base"), Tool("unknown")])
    assert score_one(VGG11, render_api_call("pytorch/vision:vgg11", catalog)) == (1, 1, 0, 0)
    assert score_one(VGG11, render_api_call("unknown", catalog)) == (0, 0, 0, 1)
    with pytest.raises(InputError, match="'t5-base' has no call in the catalogue"):
        render_api_call("t5-base", catalog)
    with pytest.raises(InputError, match="'a/b' is not in the catalogue"):
        render_api_call("a/b", catalog)


def read_released(shared_dir: Path, name: str) -> list[Api]:
    path = shared_dir / "apibench" / f"{name}_eval.json"
    if not path.is_file():
        pytest.skip(f"no {path}, a released file of APIBench")
    cards = [read_card(json.loads(line)) for line in path.read_text().split("\n") if line]
    return [Api(card.call, card.name, card.domain) for card in cards]


def score_released(apis: list[Api], responses: list[str]) -> GorillaScores:
    return score_gorilla([GorillaItem(api.domain, (api,)) for api in apis], responses, apis)


@pytest.mark.parametrize(("name", "n", "n_other_domain"), [("torchhub", 186, 5), ("huggingface", 911, 11)])
def test_released_answers_are_all_exact(shared_dir: Path, name: str, n: int, n_other_domain: int) -> None:
    """The reference's rule refuses some of its own answers: the first API whose arguments a call holds is another's."""
    apis = read_released(shared_dir, name)
    scores = score_released(apis, [api.call for api in apis])
    assert scores.to_json() == {
        "functionality": (n - n_other_domain) / n,
        "exact": 1.0,
        "hallucination": 0.0,
        "no_call": 0.0,
        "items": n,
    }
    refused = Counter(api.call for api, item in zip(apis, scores.items, strict=True) if not item.functionality)
    known = {
        "torchhub": {("resnet101", "pytorch/vision"): 5},
        "huggingface": {("joblib.load('model.joblib')",): 10, ("pyannote/speaker-diarization@2.1",): 1},
    }
    for parts, count in known[name].items():
        assert sum(number for call, number in refused.items() if all(part in call for part in parts)) == count


@pytest.mark.parametrize("name", ["torchhub", "huggingface"])
def test_shuffled_released_answers_are_right_by_domain_only(shared_dir: Path, name: str) -> None:
    apis = read_released(shared_dir, name)
    shuffled = random.Random(0).sample(apis, len(apis))
    scores = score_released(apis, [api.call for api in shuffled])
    same_domain = sum(a.domain == b.domain for a, b in zip(apis, shuffled, strict=True)) / len(apis)
    assert scores.shares["hallucination"].value == 0.0
    assert scores.shares["functionality"].value == pytest.approx(same_domain, abs=0.05)
    assert scores.shares["exact"].value < 0.05


def test_one_answer_to_everything_serves_most_questions_of_torch_hub(shared_dir: Path) -> None:
    apis = read_released(shared_dir, "torchhub")
    scores = score_released(apis, ["torch.hub.load('pytorch/vision', 'vgg11')"] * len(apis))
    assert scores.shares["functionality"].value == 158 / 186
    assert scores.shares["exact"].value == sum("'vgg11'" in api.call for api in apis) / 186


def test_made_up_calls_are_hallucinations(shared_dir: Path) -> None:
    for name in ("torchhub", "huggingface"):
        apis = read_released(shared_dir, name)
        made_up = [f"torch.hub.load('made/up', 'model_{number}')" for number in range(len(apis))]
        assert score_released(apis, made_up).to_json() == {
            "functionality": 0.0,
            "exact": 0.0,
            "hallucination": 1.0,
            "no_call": 0.0,
            "items": len(apis),
        }


def test_right_tools_rendered_through_the_catalogue_are_exact(shared_dir: Path) -> None:
    read_released(shared_dir, "huggingface")
    for name in ("torchhub", "huggingface"):
        reading = read_source("apibench", shared_dir / "apibench" / f"{name}_eval.json")
        records = [record for record in reading if isinstance(record, ToolRecord) and record.split == "test"]
        calls = [render_api_call(record.valid_tool_ids[0], reading.catalog) for record in records]
        scores = score_released(read_released(shared_dir, name), calls)
        assert (scores.shares["exact"].value, scores.shares["hallucination"].value) == (1.0, 0.0)
