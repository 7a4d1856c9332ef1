"""A split is tokenised once and found again; what is found is what each record gives on its own."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from data_pipeline.batches import token_shards
from data_pipeline.batches.encoding import encode_dialogue, encode_question
from data_pipeline.batches.question_table import QuestionTable
from data_pipeline.batches.token_shards import MANIFEST_FILE, TokenForm, TokenShards, tokenize_shards
from data_pipeline.batches.tokenized import select_questions
from data_pipeline.batches.vector_table import VectorFile
from data_pipeline.records.schema import CORPUS_SCHEMA, Modality, ToolRecord, Turn

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

TOOLS = ("lab/blur", "lab/find", "t5")
WORDS = ["please", "sharpen", "find", "translate", "the", "old", "picture", "of", "a", "harbour"]


def build_records(n: int) -> list[ToolRecord]:
    """Questions with and without a medium, every seventh record a dialogue, every fourteenth one a long one."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(n):
        words = f"{number} " + " ".join(rng.choice(WORDS, rng.integers(3, 12)))
        if number % 7 == 6:
            turns = (Turn("assistant", "call "), Turn("observation", "seen "), Turn("assistant", "done"))
            long = words * 40 if number % 14 == 13 else words
            records.append(ToolRecord(f"r{number}", "talk", Modality.TEXT, long, ("t5",), turns=turns))
            continue
        tools = tuple(rng.permutation(TOOLS)[: rng.integers(1, 4)].tolist())
        media = {"media_uri": f"{number}.png", "media_sha256": f"sha{number % 5}"} if number % 3 == 0 else {}
        modality = Modality.IMAGE if media else Modality.TEXT
        records.append(ToolRecord(f"r{number}", "questions", modality, words, tools, **media))
    return records


RECORDS = build_records(60)


class SmallTokenizer:
    """What `encode_texts` and the key need of a fast tokenizer."""

    bos_token_id, eos_token_id = 1, 2

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend

    def __call__(self, texts: list[str], add_special_tokens: bool, split_special_tokens: bool) -> Any:
        encoded = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [each.ids for each in encoded]}

    def __reduce__(self) -> Any:
        return _load, (self.backend_tokenizer.to_str(),)


def _load(content: str) -> SmallTokenizer:
    return SmallTokenizer(Tokenizer.from_str(content))


def learn(texts: list[str]) -> SmallTokenizer:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, 300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    return SmallTokenizer(bpe._tokenizer)


@pytest.fixture(scope="module")
def form() -> TokenForm:
    return TokenForm(learn([record.instruction for record in RECORDS]), 128, 0, 200, TOOLS)


def write_shards(folder: Path) -> list[tuple[Path, int]]:
    table = pa.Table.from_pylist([record.to_row() for record in RECORDS], schema=CORPUS_SCHEMA)
    shards = []
    for start in (0, 37):
        part = table[start : 37 if start == 0 else None]
        shards.append((folder / f"{start}.parquet", len(part)))
        pq.write_table(part, shards[-1][0], row_group_size=11)
    return shards


def tokenize(folder: Path, form: TokenForm, rows_hash: str = "rows") -> TokenShards:
    return tokenize_shards(folder / "tokens", write_shards(folder), rows_hash, form)


def test_every_record_has_its_tokens_wherever_shards_are_cut(
    tmp_path: Path, form: TokenForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shards, "MIN_PART_ROWS", 8)
    shards = tokenize(tmp_path, form)
    assert len(shards.parts) == 5 + 3
    assert sorted(path.name for path in shards.folder.iterdir())[-1] == MANIFEST_FILE
    media = ["sha0", "sha3"]  # the others have no vector
    facts, stored = select_questions(shards, media, VectorFile(tmp_path / "vectors", 2, 4, "float16"))
    kept = [r for r in RECORDS if (not r.media_sha256 or r.media_sha256 in media) and len(r.instruction) < 200]
    assert len(facts.index) == len(kept) == len(RECORDS) - facts.n_too_long - facts.n_without_vector
    assert facts.n_too_long == len(RECORDS) // 14
    assert facts.sources == [record.source for record in kept]
    table = QuestionTable(shards, ray.get(stored.rows))
    rows = ray.get(stored.media_row).tolist()
    assert rows == [media.index(record.media_sha256) if record.media_sha256 else -1 for record in kept]
    for number, record in enumerate(kept):
        if record.is_dialogue:
            expected = encode_dialogue(form.tokenizer, record.instruction, record.turns)
        else:
            expected = encode_question(form.tokenizer, record.instruction, record.has_media, record.valid_tool_ids, 128)
        for _ in range(2):  # also after its memory was given back
            found = table[number]
            assert np.array_equal(found.prompt_ids, expected.prompt_ids)
            assert [each.tolist() for each in found.answers] == [each.tolist() for each in expected.answers]
            assert found.n_loss_tokens == expected.n_loss_tokens
            table.release()
        assert facts.index.n_tokens[number] == len(expected.tree.input_ids)
    answered = {tool_id for record in kept if not record.is_dialogue for tool_id in record.valid_tool_ids}
    assert table.find_answer_tools() == sorted(TOOLS.index(tool_id) for tool_id in answered)
    assert shards.called_tool_ids == {"t5"}


def test_the_same_is_found_by_all_who_ask_and_anything_else_is_not(tmp_path: Path, form: TokenForm) -> None:
    with ThreadPoolExecutor(3) as threads:
        at_once = list(threads.map(lambda _: tokenize(tmp_path, form), range(3)))
    assert sorted(shards.is_found for shards in at_once) == [False, True, True]
    assert len({shards.folder for shards in at_once}) == 1
    alike = _load(form.tokenizer.backend_tokenizer.to_str())
    alike.backend_tokenizer.enable_truncation(2048)  # as a call with other settings may leave it
    assert tokenize(tmp_path, replace(form, tokenizer=alike)).is_found
    others = [
        replace(form, max_target_tokens=127),
        replace(form, answer_ends=(2, 2, 2)),
        replace(form, tool_ids=(*TOOLS, "t6")),
        replace(form, tokenizer=learn(["other words make other tokens"] * 3)),
    ]
    keys = {other.compute_key("rows") for other in others} | {form.compute_key("rows"), form.compute_key("others")}
    assert len(keys) == 6
    assert at_once[0].folder.name in keys


@pytest.mark.parametrize("fault", ["cut", "altered", "gone", "manifest"])
def test_what_is_damaged_is_made_again(tmp_path: Path, form: TokenForm, fault: str) -> None:
    shards = tokenize(tmp_path, form)
    before = {path.name: path.read_bytes() for path in shards.folder.iterdir()}
    file = shards.folder / (MANIFEST_FILE if fault == "manifest" else "questions-00000.arrow")
    content = file.read_bytes()
    middle = len(content) // 2
    altered = {"cut": content[:middle], "altered": content[:middle] + b"\xff" + content[middle + 1 :], "manifest": b"["}
    file.unlink() if fault == "gone" else file.write_bytes(altered[fault])
    again = tokenize(tmp_path, form)
    assert not again.is_found
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == before
    assert json.loads(before[MANIFEST_FILE])[0]["rows"] == again.parts[0].rows
