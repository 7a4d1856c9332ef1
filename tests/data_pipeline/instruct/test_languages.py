"""Whether words are in another language: foreign questions are, questions about foreign words are not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data_pipeline.instruct.languages import find_language, is_foreign

METATOOL = Path(__file__).parents[4] / "shared" / "metatool" / "queries_shared.csv"
MOST_FALSE_REJECTIONS = 0.005
QUESTIONS = {
    "en": ["How many people are in this picture?", "Find me cheap flights to Lisbon.", "What is said here, please?"],
    "de": ["Wie viele Leute sind auf dem Bild?", "Finde günstige Flüge nach Lissabon.", "Was wird hier gesagt?"],
    "fr": ["Combien de gens y a-t-il ici ?", "Trouve des vols pas chers pour Lisbonne.", "Qu'est-ce qu'on dit ici ?"],
    "es": ["¿Cuántas personas hay en esta foto?", "Busca vuelos baratos a Lisboa.", "¿Qué se dice en esta grabación?"],
    "it": ["Quante persone ci sono in questa foto?", "Trova voli economici per Lisbona.", "Cosa succede nel video?"],
    "nl": ["Hoeveel mensen staan er op de foto?", "Zoek goedkope vluchten naar Lissabon.", "Wat wordt er hier gezegd?"],
}


def test_foreign_questions_are_told_from_those_in_ones_own_language() -> None:
    for language, questions in QUESTIONS.items():
        assert find_language(" ".join(questions)) == language
        assert not any(is_foreign(words, language) for words in questions)
        assert [is_foreign(words, "en") for words in questions] == [language != "en"] * 3
        assert [is_foreign(words, language) for words in QUESTIONS["en"]] == [language != "en"] * 3


@pytest.mark.parametrize(
    "words",
    [
        "Translate 'Où est la gare la plus proche ?' for me, please.",
        'What does "Das habe ich nicht gewusst" mean in English?',
        "Translate: ¿Dónde está la estación de trenes más cercana?",
        "Book a table at Trattoria da Enzo al 29",
        "Find me recipes for coq au vin and crème brûlée",
        "Play Bella Ciao",
        "",
    ],
)
def test_english_about_foreign_words_is_english(words: str) -> None:
    assert not is_foreign(words, "en")


def test_where_no_language_is_known_nothing_is_foreign() -> None:
    assert find_language("Crop it") == find_language("404 7 11 12") == ""
    assert not is_foreign(QUESTIONS["de"][0], "")


@pytest.mark.skipif(not METATOOL.is_file(), reason="no metatool beside the project")
def test_real_english_questions_are_kept() -> None:
    with METATOOL.open(encoding="utf-8", newline="") as file:
        questions = [row["Query"] for row in csv.DictReader(file)][::8]
    assert len(questions) > 2000
    assert sum(is_foreign(words, "en") for words in questions) <= MOST_FALSE_REJECTIONS * len(questions)
