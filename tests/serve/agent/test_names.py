"""Files under short names on their way to the model, and under their own on the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from data_pipeline.records.dialogue import find_files, render_call, render_observation
from data_pipeline.records.schema import Turn
from model.decode.turn_types import TurnRequest, WrittenTurn
from serve.agent.names import with_short_names

GIVEN, MADE, SOUND = f"image/{'a1' * 16}.png", f"image/{'b2' * 16}.png", f"audio/{'c3' * 16}.wav"


def collect(events: AsyncGenerator[str | WrittenTurn, None]) -> list[str | WrittenTurn]:
    async def run() -> list[str | WrittenTurn]:
        return [event async for event in events]

    return asyncio.run(run())


def test_the_model_sees_short_names_and_nobody_else_does() -> None:
    seen: list[TurnRequest] = []

    async def write(request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
        seen.append(request)
        yield f"See {request.files[0]}"
        yield WrittenTurn(
            render_call("lab/blur", f"{request.files[0]}, of {request.files[-1]}"), 9, 4, (("lab/blur", -0.1),)
        )

    turns = (Turn("assistant", render_call("lab/edges", GIVEN)), Turn("observation", render_observation(MADE)))
    request = TurnRequest(
        f"Provide {GIVEN} and {SOUND}. Blur {GIVEN}.", turns, files=(MADE, GIVEN, SOUND), fallback_text=GIVEN
    )
    writer = with_short_names(write)
    (text, first), (_, second) = (collect(writer(request)) for _ in range(2))
    assert text == f"See {MADE}"
    assert isinstance(first, WrittenTurn)
    assert isinstance(second, WrittenTurn)
    written = [first, second]
    assert written[0] == written[1]
    assert written[0].text == render_call("lab/blur", f"{MADE}, of {SOUND}")
    assert (written[0].prompt_tokens, written[0].choices) == (9, (("lab/blur", -0.1),))
    made, given, sound = seen[0].files
    assert len({made, given, sound}) == 3
    assert all(len(name) < 22 for name in seen[0].files)
    assert (given.partition("/")[0], sound.partition("/")[0]) == ("image", "audio")
    assert seen[0].prompt == f"Provide {given} and {sound}. Blur {given}."
    assert [turn.text for turn in seen[0].turns] == [render_call("lab/edges", given), render_observation(made)]
    assert seen[0].fallback_text == given
    assert seen[0] == seen[1]


def test_a_name_that_somebody_said_is_not_given_away() -> None:
    def ask(words: str) -> tuple[str, str]:
        prompts: list[str] = []

        async def keep(request: TurnRequest) -> AsyncGenerator[str | WrittenTurn, None]:
            prompts.append(request.prompt)
            yield WrittenTurn(request.prompt, 1, 1)

        (written,) = collect(with_short_names(keep)(TurnRequest(words, files=(GIVEN,))))
        assert isinstance(written, WrittenTurn)
        return prompts[0], written.text

    (short,) = find_files(ask(f"See {GIVEN}")[0])
    words = f"See {GIVEN}, not {short}."
    prompt, text = ask(words)
    assert prompt != words
    assert prompt.endswith(f", not {short}.")
    assert prompt.count(short) == 1
    assert text == words
    plain = "No file at all."
    assert ask(plain) == (plain, plain)
