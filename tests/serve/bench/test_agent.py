"""The dialogues that are measured: what they offer, and that the second turn reads what is new alone."""

from __future__ import annotations

import pytest

from model.decode.turn_writer import TurnWriter
from model.llm.bundle import Bundle, load_bundle
from serve.bench.agent import PICTURE, REQUEST, Dialogues, SecondTurn
from tests.integration.small_service import make_bundle, make_encoder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bench")
    return load_bundle(make_bundle(folder / "bundle", folder / "backbone", make_encoder(folder / "encoder")))


def test_every_offered_tool_runs_here_and_takes_the_picture(bundle: Bundle) -> None:
    request = Dialogues(bundle).begin(REQUEST)
    assert [tool.name for tool in request.tools] == ["local/detect-edges"]
    assert request.files == (PICTURE,)
    assert PICTURE in request.prompt
    assert REQUEST in request.prompt


def test_the_second_turn_reads_no_more_than_is_new(bundle: Bundle) -> None:
    mllm = bundle.build_mllm()
    measured = SecondTurn(mllm, Dialogues(bundle)).to_json()
    dialogues = Dialogues(bundle)
    writer = TurnWriter(mllm)
    first, second = dialogues.begin(REQUEST), dialogues.go_on(dialogues.begin(REQUEST))
    lengths = [len(writer.encode(request).prompt_ids) for request in (first, second)]
    assert measured["new"] == lengths[1] - lengths[0], "the only tool's call, and its result"
    assert 0 < measured["read"] <= measured["new"]
    assert measured["read_next_words"] < lengths[0]
