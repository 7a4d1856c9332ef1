"""Every prompt string. Training and serving render with the same functions (MLLM-Tool's training form).

Reference: MLLM-Tool/MLLM-Tool, `code/model/anyToImageVideoAudio.py` at commit 0114f7c: the pieces are tokenised
separately, without special tokens; `<Img>` stands for audio and video too; the tool's name is not quoted; nothing is
stripped; `###` ends an answer. The reference tokenises its inference prompt in other pieces than its training prompt;
this project does not.
"""

from __future__ import annotations

PROMPT_FORMAT = "mllm-tool"
PROMPT_VERSION = 1

MEDIA = None  # stands for the media slot in a rendered prompt

CARD_END = "\n### Assistant: "
ANSWER_END = "}\n###"


def render_prompt(instruction: str, has_media: bool) -> tuple[str | None, ...]:
    """Render a question as the pieces that are tokenised separately, in sequence order, after the bos token.

    Args:
        instruction: the user's words, unstripped.
        has_media: whether a media slot (`MEDIA`) is spliced in.

    Returns:
        strings and at most one `MEDIA`.
    """
    if has_media:
        return ("### Human: <Img>", MEDIA, "</Img> " + instruction + "\n### Assistant: ")
    return ("### Human: ", instruction + "\n### Assistant: ")


def render_card(name: str, description: str) -> tuple[str, str]:
    """Render a tool's card, which the retriever reads as it reads a question (DESIGN, idea 10).

    Args:
        name: the tool's; "" leaves it out.
        description: what it does, in a sentence or two; "" where the source does not say.

    Returns:
        what may be cut at its end, and what follows it.
    """
    return "### Tool: " + ": ".join(filter(None, (name, description))), CARD_END


def render_target(tool_id: str) -> str:
    """Render the answer; all of it, end marker included, bears loss."""
    return "{'api_name': " + tool_id + ANSWER_END


VALUE_END = '"\n'  # of an argument's value
_FILLED_ARGUMENTS = """Request: Where does Anna Miller live?
Function: find_person (Find where a person lives)
Argument: person (Who to look for)
Value: "Anna Miller"

Request: Write down that the car needs oil
Function: note (Write a note down)
Argument: text (What to write down)
Value: "the car needs oil"

Request: I must fly from Oslo to Rome on Friday
Function: flights (Find flights)
Argument: from (Start)
Value: "Oslo"

Request: I must fly from Oslo to Rome on Friday
Function: flights (Find flights)
Argument: to (Where to fly)
Value: "Rome"

Request: I must fly from Oslo to Rome on Friday
Function: flights (Find flights)
Argument: day (Day of the flight)
Value: "Friday"

Request: What is photosynthesis?
Function: lookup (Look a term up)
Argument: term (Term to look up)
Value: "photosynthesis"

Request: Please order a pair of red shoes for Tim
Function: buy (Buy something)
Argument: item (What to buy)
Value: "a pair of red shoes"

Request: Please order a pair of red shoes for Tim
Function: buy (Buy something)
Argument: for_whom (Who gets it)
Value: "Tim"

Request: Tell Jane that dinner is ready
Function: message (Send a message)
Argument: to (Who gets it)
Value: "Jane"

Request: Tell Jane that dinner is ready
Function: message (Send a message)
Argument: text (What it says)
Value: "dinner is ready"

Request: Look at invoice no. 5512, please
Function: invoice (Show an invoice)
Argument: number (Its number)
Value: "5512"

Request: Summarize this: the sun rose late
Function: summarize (Summarize a text)
Argument: text (The text)
Value: "the sun rose late"

"""


def render_argument(instruction: str, function: str, does: str, argument: str, about: str) -> str:
    """Render what stands before the value of a function's argument: examples first, so that any language model goes on
    with a part of the user's words. The value ends with `VALUE_END`.

    Args:
        instruction: the user's words.
        function, does: its name and its description.
        argument, about: its name and its description; "" for the latter where nobody gave one.
    """
    request, what, meaning = (
        " ".join(text.split()) for text in (instruction, does, about or argument.replace("_", " "))
    )
    called = f"{function} ({what})" if what else function
    return f'{_FILLED_ARGUMENTS}Request: {request}\nFunction: {called}\nArgument: {argument} ({meaning})\nValue: "'


_MAX_SCHEMA_CHARS = 2000  # that are read; the rest governs what is written all the same
_FORMED_ANSWERS = """Text: Anna Miller is 34 and lives in Oslo. She likes chess and hiking.
Schema: {"properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "likes": {"type": "array"}}}
JSON: {"name": "Anna Miller", "age": 34, "likes": ["chess", "hiking"]}

Text: The parcel came two days late, and nobody answers the phone!
Schema: {"properties": {"mood": {"enum": ["good", "bad"]}, "is_urgent": {"type": "boolean"}}}
JSON: {"mood": "bad", "is_urgent": true}

"""


def render_json(words: str, schema: str) -> str:
    """Render what stands before an answer in JSON: examples first, as for an argument.

    Args:
        words: what the answer is about.
        schema: as JSON.
    """
    text, form = " ".join(words.split()), " ".join(schema.split())
    return f"{_FORMED_ANSWERS}Text: {text}\nSchema: {form[:_MAX_SCHEMA_CHARS]}\nJSON: "
