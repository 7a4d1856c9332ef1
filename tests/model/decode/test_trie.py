"""ChoiceTrie: every answer is in it once, and nothing but decisions costs a node."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data_pipeline.batches.encoding import encode_question
from data_pipeline.errors import InputError
from data_pipeline.records.prompts import render_target
from model.decode.free import decode_text
from model.decode.trie import ChoiceTrie

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_kinds import KINDS, train_tokenizer

NAMES = ("t5", "t5-base", "t5-base-finetuned", "org/t5-base", "org/t5", "unknown", "zoo/resnet-50", "zoo/resnet-101")


def byte_level_tokenizer(texts: list[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return train_tokenizer(request.param, [render_target(name) for name in NAMES] * 2, 400)


def path_tokens(trie: ChoiceTrie, node: int) -> list[int]:
    """Tokens from the root's edge down to a node."""
    tokens: list[int] = []
    while node >= 0:
        tokens = trie.edge(node).tolist() + tokens
        node = int(trie.parent[node])
    return tokens


def check_structure(trie: ChoiceTrie) -> None:
    for tool, leaf in enumerate(trie.choice_leaf):
        assert path_tokens(trie, int(leaf)) == trie.sequences[tool].tolist()
        assert trie.leaf_choice[leaf] == tool
    for node in range(trie.n_nodes):
        children = trie.children(node)
        assert all(trie.parent[child] == node for child in children)
        if trie.leaf_choice[node] < 0:
            firsts = [int(trie.edge(child)[0]) for child in children]
            assert len(firsts) >= 2, "a chain was not collapsed"
            assert firsts == sorted(set(firsts))
            assert trie.branch_tokens[trie.branch_slot[list(children)]].tolist() == firsts
        else:
            assert len(children) == 0
    assert sorted(trie.leaf_choice[trie.leaf_choice >= 0].tolist()) == list(range(len(trie)))


def test_holds_each_answer_once_with_names_that_begin_other_names(tokenizer: PreTrainedTokenizerFast) -> None:
    trie = ChoiceTrie(NAMES, tokenizer)
    check_structure(trie)
    expected = [tokenizer(render_target(name), add_special_tokens=False)["input_ids"] for name in NAMES]
    assert [sequence.tolist() for sequence in trie.sequences] == expected
    assert tokenizer.decode(trie.edge(0)).startswith("{'api_name':")


def test_holds_what_training_tokenises_whatever_a_name_spells(tokenizer: PreTrainedTokenizerFast) -> None:
    names = (*NAMES, "a</s>b", "<s>", "<pad>", "ünder\u00a0 何", "scan.tif", "scan.tiff", "{'api_name': t5}\n###")
    trie = ChoiceTrie(names, tokenizer)
    check_structure(trie)
    for name, sequence in zip(names, trie.sequences, strict=True):
        (answer,) = encode_question(tokenizer, "which one?", False, [name]).answers
        assert sequence.tolist() == answer.tolist()
        assert decode_text(tokenizer, sequence.tolist()) == render_target(name)
        assert not set(sequence.tolist()) & set(tokenizer.all_special_ids)


def test_order_of_tools_changes_no_structure(tokenizer: PreTrainedTokenizerFast) -> None:
    forward, backward = ChoiceTrie(NAMES, tokenizer), ChoiceTrie(NAMES[::-1], tokenizer)
    np.testing.assert_array_equal(forward.edge_tokens, backward.edge_tokens)
    np.testing.assert_array_equal(forward.child_start, backward.child_start)
    assert [NAMES[tool] for tool in forward.leaf_choice if tool >= 0] == [
        NAMES[::-1][tool] for tool in backward.leaf_choice if tool >= 0
    ]


def test_one_tool_is_one_forced_chain(tokenizer: PreTrainedTokenizerFast) -> None:
    trie = ChoiceTrie(["t5"], tokenizer)
    assert (trie.n_nodes, trie.n_decisions) == (1, 0)
    check_structure(trie)


def test_ancestors_lead_to_the_tool(tokenizer: PreTrainedTokenizerFast) -> None:
    trie = ChoiceTrie(NAMES, tokenizer)
    way = trie.ancestors("t5-base-finetuned")
    assert way[0] == 0
    assert trie.parent[trie.choice_leaf[NAMES.index("t5-base-finetuned")]] == way[-1]
    assert all(trie.parent[below] == above for above, below in itertools.pairwise(way))
    with pytest.raises(InputError, match="'nobody/none' is not among the 8 choices"):
        trie.ancestors("nobody/none")


def test_released_catalogue_takes_few_decisions(shared_dir: Path) -> None:
    text = (shared_dir / "toolmmbench" / "api_names.txt").read_text(encoding="utf-8")
    names = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    trie = ChoiceTrie(names, byte_level_tokenizer([render_target(name) for name in names], vocab_size=2000))
    check_structure(trie)
    assert len(trie) == len(names) > 900
    decisions = np.mean([len(trie.ancestors(name)) for name in names])
    tokens = np.mean([len(sequence) for sequence in trie.sequences])
    assert decisions < 0.4 * tokens  # the point of collapsing chains


def test_faults_of_a_catalogue_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="nothing to choose from"):
        ChoiceTrie([], tokenizer)
    with pytest.raises(InputError, match="'t5' is among the choices twice"):
        ChoiceTrie(["t5", "unknown", "t5"], tokenizer)


@pytest.mark.parametrize("answers", [{"a": [5, 6], "b": [5, 6]}, {"a": [5, 6], "b": [5, 6, 7]}])
def test_tools_that_a_lossy_tokenizer_cannot_tell_apart_are_named(answers: dict[str, list[int]]) -> None:
    def lossy(texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert split_special_tokens
        assert not add_special_tokens
        return {"input_ids": [answers[text.removeprefix("{'api_name': ")[0]] for text in texts]}

    with pytest.raises(InputError, match="cannot tell 'a' and 'b' apart"):
        ChoiceTrie(["b", "a"] if len(answers["b"]) > 2 else ["a", "b"], lossy)
