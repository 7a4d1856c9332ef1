"""What goes out of an answer before it is written is what the written answer begins with."""

from __future__ import annotations

import numpy as np

from data_pipeline.records.dialogue import Answer, parse_turn, render_answer
from model.decode.answer_text import finish_answer, settled_answer

PIECES = (
    *("a", " dog", "\n", " ", "i", "im", "image", "image/", "image/ab.png", "vide", "audio", ", ", ".", "\ufffd", "日"),
    *("Act", "Action", "Action Input", "Thought", "Thoughtful", "Observation", "AI"),
)
ENDS = ("", ":", "\nThought:", "\nAction Input:", " image/made-up")


def test_no_word_is_taken_back_whatever_follows() -> None:
    rng = np.random.default_rng(0)
    n_shown = 0
    for _ in range(4000):
        written = [str(rng.choice(PIECES)) for _ in range(rng.integers(1, 12))] + [str(rng.choice(ENDS))]
        beginnings = ["".join(written[:n]) for n in range(len(written) + 1)]
        *earlier, whole = beginnings
        if not all(not text.strip() or isinstance(parse_turn(render_answer(text)), Answer) for text in earlier):
            continue  # a line of the protocol ends the writing at once
        end = finish_answer(whole.removesuffix("image/made-up"))  # a name that is none is put right
        for text in beginnings:
            assert end.startswith(settled_answer(text)), (written, text)
            n_shown += bool(settled_answer(text))
    assert n_shown > 4000


def test_words_are_shown_once_they_are_there() -> None:
    for text, shown in (
        ("It is a dog", "It is a dog"),
        ("It is a dog ", "It is a dog"),
        ("See image/ab.pn", "See"),
        ("See image/ab.png, and", "See image/ab.png, and"),
        ("Done.\nObs", "Done."),
        ("Done.\nObserve", "Done.\nObserve"),
        ("caf\ufffd", "caf"),
        ("Thou", ""),
    ):
        assert settled_answer(text) == shown
