"""The vectors of tool cards: made once, kept in memory, and those of catalogues on the disk."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from serve.engine import cards as module
from serve.engine.cards import STORED_AT_ONCE, CardVectors


class Model:
    """Gives each card a vector of its own, and counts."""

    def __init__(self) -> None:
        self.n_encoded = 0
        self.largest = 0

    def __call__(self, cards: list[np.ndarray]) -> np.ndarray:
        self.n_encoded += len(cards)
        self.largest = max(self.largest, len(cards))
        return np.array([[card.sum(), len(card), 1] for card in cards], dtype=np.float32)


def draw_cards(n: int, first: int = 0) -> list[np.ndarray]:
    return [np.arange(3 + number % 5, dtype=np.int32) * (first + number) for number in range(n)]


def test_a_catalogues_cards_are_encoded_once_on_a_machine(tmp_path: Path) -> None:
    cards, model = draw_cards(150), Model()
    first = CardVectors(tmp_path).find("rev-float32", cards, model)
    assert model.n_encoded == 150
    assert model.largest <= 64
    again, more = Model(), draw_cards(2, first=900)
    order = np.random.default_rng(0).permutation(150)
    found = CardVectors(tmp_path).find("rev-float32", [*(cards[i] for i in order), *more], again)
    assert np.array_equal(found[:150], first[order])
    assert again.n_encoded == 2, "only what is new"
    other = Model()
    CardVectors(tmp_path).find("rev-bfloat16", cards, other)
    assert other.n_encoded == model.n_encoded, "another model's are no use"


def test_cards_that_were_read_a_few_at_a_time_are_stored_together(tmp_path: Path) -> None:
    cards, model, vectors = draw_cards(40), Model(), CardVectors(tmp_path)
    assert vectors.find_new("rev", cards) == list(range(40))
    for start in range(0, 40, 8):
        vectors.find("rev", cards[start : start + 8], model)
        assert not list(tmp_path.rglob("*.parquet"))
    whole = vectors.find("rev", cards, model)
    assert model.n_encoded == 40
    again = CardVectors(tmp_path)
    assert again.find_new("rev", [*cards, *draw_cards(2, first=900)]) == [40, 41]
    assert np.array_equal(again.find("rev", cards, model), whole)
    assert model.n_encoded == 40


def test_a_chats_few_functions_stay_in_memory(tmp_path: Path) -> None:
    vectors, model = CardVectors(tmp_path / "lake"), Model()
    few = draw_cards(STORED_AT_ONCE - 1, first=1)
    assert np.array_equal(vectors.find("rev", few, model), vectors.find("rev", few, model))
    assert model.n_encoded == len(few)
    assert not (tmp_path / "lake").exists()


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CARDS", 3)
    vectors, model = CardVectors(tmp_path), Model()
    a, b, c, d = draw_cards(4, first=1)
    vectors.find("rev", [a, b], model)
    vectors.find("rev", [b, a], model)
    vectors.find("rev", [c, d], model)
    assert model.n_encoded == 4
    vectors.find("rev", [a, c, d], model)
    assert model.n_encoded == 4
    vectors.find("rev", [b], model)
    assert model.n_encoded == 5


def test_a_full_lake_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STORED", 50)
    first, second, third = draw_cards(20, first=1), draw_cards(30, first=100), draw_cards(20, first=500)
    for cards in (first, second, third):
        CardVectors(tmp_path).find("rev", cards, Model())
    left = CardVectors(tmp_path)
    assert left.find_new("rev", third) == []
    assert left.find_new("rev", first) == list(range(20))


def test_a_lake_that_cannot_be_read_or_written_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    model = Model()
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        logging.getLogger("ray.serve").addHandler(caplog.handler)
        found = CardVectors(tmp_path / "file").find("rev", draw_cards(20, first=1), model)
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert found.shape == (20, 3)
    assert "could not be stored" in caplog.text
    CardVectors(tmp_path).find("rev", draw_cards(20, first=1), model)
    for part in tmp_path.rglob("part-*.parquet"):
        part.write_bytes(b"damaged")
    again = Model()
    assert np.array_equal(CardVectors(tmp_path).find("rev", draw_cards(20, first=1), again), found)
    assert again.n_encoded == 20
