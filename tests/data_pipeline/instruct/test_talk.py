"""Talk that needs no tool: read as teachers write it, and left out where it speaks of files or of the protocol."""

from __future__ import annotations

from data_pipeline.instruct.captions import CaptionedImage
from data_pipeline.instruct.talk import Talk, parse_talk, render_talk_prompt

REPLY = """Sure, here are four:

1. User: What do dogs eat?
   Assistant: Mostly meat, and some vegetables.

User: Thank you!
Assistant: You are welcome.
User: What is in image/a.png?
Assistant: A dog.
User: Which tool was that?
Assistant: Thought: Do I need to use a tool? No
User: nobody answers
"""


def test_exchanges_are_read_and_those_of_the_protocol_left_out() -> None:
    kept, n_left_out = parse_talk(REPLY)
    assert kept == [
        Talk("What do dogs eat?", "Mostly meat, and some vegetables."),
        Talk("Thank you!", "You are welcome."),
    ]
    assert n_left_out == 2
    assert parse_talk("I would rather not.") == ([], 0)
    assert "A dog at a lake." in render_talk_prompt(CaptionedImage("a.png", "A dog at a lake."))


def test_echoes_and_repetitions_are_left_out() -> None:
    """A small language model that was asked wrote both."""
    lake = "User: Hello. I'm at a lake.\nAssistant: "
    kept, n_left_out = parse_talk(f"{lake}hello.  I'm at a LAKE.\n" + 2 * f"{lake}How is it there?\n")
    assert kept == [Talk("Hello. I'm at a lake.", "How is it there?")]
    assert n_left_out == 2
