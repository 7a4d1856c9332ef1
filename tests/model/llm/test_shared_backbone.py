"""Models that share a backbone answer as each does alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peft.tuners.tuners_utils import BaseTunerLayer
from random_bundle import CATALOG, ENCODER_DIM, build_backbone, build_bundle

from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from model.decode.tools import Prompt, RankedTool, top_k_tools
from model.decode.trie import ChoiceTrie
from model.llm.shared_backbone import SharedBackbone
from model.llm.tool_llm import ToolLLM

WHOLE = ["embed_tokens", "lm_head"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_backbone(tmp_path_factory.mktemp("backbone") / "tiny", "### Human: <Img></Img> Improve this\n")


def _rank(mllm: ToolLLM) -> list[RankedTool]:
    trie = ChoiceTrie(CATALOG.selection_tool_ids, mllm.tokenizer)
    prompt_ids = encode_question(mllm.tokenizer, "Improve this", True, ()).prompt_ids
    vector = np.linspace(-1, 1, ENCODER_DIM, dtype=np.float32)
    [ranking] = top_k_tools(mllm, [Prompt(prompt_ids, vector)], len(trie), trie)
    return sorted(ranking, key=lambda tool: tool.tool_id)


def test_each_model_answers_as_it_does_alone(backbone: Path, tmp_path: Path) -> None:
    """Of other ranks, other kinds, with and without modules trained whole, in any order."""
    bundles = {
        "first": build_bundle(tmp_path / "a", backbone, 1, lora_r=2, modules_to_save=WHOLE),
        "v1.2": build_bundle(tmp_path / "b", backbone, 2, lora_r=4, modules_to_save=WHOLE),
        "adapter-only": build_bundle(tmp_path / "c", backbone, 3, lora_r=2),
        "dora": build_bundle(tmp_path / "d", backbone, 4, lora_r=2, adapter="dora"),
    }
    alone = {name: _rank(bundle.build_mllm()) for name, bundle in bundles.items()}
    assert len({tuple(ranking) for ranking in alone.values()}) == len(bundles)
    shared = SharedBackbone(bundles)
    for name in ("first", "adapter-only", "v1.2", "dora", "adapter-only", "first"):
        ranking = _rank(shared.activate(name))
        assert [tool.tool_id for tool in ranking] == [tool.tool_id for tool in alone[name]]
        np.testing.assert_allclose(
            [tool.probability for tool in ranking], [tool.probability for tool in alone[name]], rtol=1e-5, atol=1e-7
        )


def test_a_model_takes_anothers_place(backbone: Path, tmp_path: Path) -> None:
    """The others answer as before; what was there before is gone; a faulty one changes nothing."""
    names = ("first", "second", "new", "newer")
    bundles = [
        build_bundle(tmp_path / name, backbone, i, lora_r=2, modules_to_save=WHOLE) for i, name in enumerate(names)
    ]
    first, second, new, newer = (_rank(bundle.build_mllm()) for bundle in bundles)
    assert len({str(ranking) for ranking in (first, second, new, newer)}) == 4
    shared = SharedBackbone({"a": bundles[0], "b": bundles[1]})
    n_parameters = sum(1 for _ in shared.mllm.parameters())
    shared.attach("a", bundles[2])
    shared.activate("b")
    shared.attach("a", bundles[3])
    assert sum(1 for _ in shared.mllm.parameters()) == n_parameters
    other = build_bundle(tmp_path / "o", build_backbone(tmp_path / "other", "other words"), 9, lora_r=2)
    with pytest.raises(InputError, match=r"'b' and 'a \(new\)' cannot be served together"):
        shared.attach("a", other)
    for name, alone in {"a": newer, "b": second}.items():
        ranking = _rank(shared.activate(name))
        assert [tool.probability for tool in ranking] == pytest.approx([tool.probability for tool in alone])
    assert shared.bundles["a"].revision == bundles[3].revision


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_a_lone_model_is_merged_and_answers_as_before(backbone: Path, tmp_path: Path, adapter: str) -> None:
    """Also after others took its place, came beside it, or were refused."""
    names = ("first", "new", "newer", "second")
    bundles = [build_bundle(tmp_path / name, backbone, i, lora_r=2, adapter=adapter) for i, name in enumerate(names)]
    alone = [_rank(bundle.build_mllm()) for bundle in bundles]

    def check(name: str, number: int, *, is_merged: bool) -> None:
        ranking = _rank(shared.activate(name))
        assert [tool.probability for tool in ranking] == pytest.approx(
            [tool.probability for tool in alone[number]], 1e-4
        )
        assert _is_merged(shared) == is_merged

    shared = SharedBackbone({"a": bundles[0]})
    check("a", 0, is_merged=True)
    for number in (1, 2):
        shared.attach("a", bundles[number])
        check("a", number, is_merged=True)
    other = build_bundle(tmp_path / "o", build_backbone(tmp_path / "other", "other words"), 9, lora_r=2)
    with pytest.raises(InputError, match="cannot be served together"):
        shared.attach("a", other)
    check("a", 2, is_merged=True)
    shared.attach("b", bundles[3])
    for name, number in (("b", 3), ("a", 2), ("b", 3)):
        check(name, number, is_merged=False)


def test_in_half_precision_nothing_is_merged(backbone: Path, tmp_path: Path) -> None:
    assert not _is_merged(SharedBackbone({"a": build_bundle(tmp_path / "a", backbone, 1, lora_r=2)}, dtype="bfloat16"))


def _is_merged(shared: SharedBackbone) -> bool:
    merged = {module.merged for module in shared.mllm.llm.modules() if isinstance(module, BaseTunerLayer)}
    assert len(merged) == 1, "all layers or none"
    return merged.pop()


def test_only_models_of_one_backbone_and_encoder_share(backbone: Path, tmp_path: Path) -> None:
    ours = build_bundle(tmp_path / "a", backbone, 1, lora_r=2)
    of_other_encoder = build_bundle(tmp_path / "b", backbone, 2, encoder_id="tiny-2", lora_r=2)
    with pytest.raises(
        InputError, match=r"'x' and 'y' cannot be served together: they differ in their encoder \('tiny-1' and"
    ):
        SharedBackbone({"x": ours, "y": of_other_encoder})
    other = build_backbone(tmp_path / "other", "Other words make another tokenizer, too")
    with pytest.raises(InputError, match="they differ in their backbone's files; serve"):
        SharedBackbone({"x": ours, "y": build_bundle(tmp_path / "c", other, 2, lora_r=2)})
