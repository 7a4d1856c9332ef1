"""A teacher that is no language model: it puts a tool's description into sentences that stand below.

It lets the way from a catalogue to a served model be walked without a server or a key. What it writes is in form and
repeats the description's words, so a model that learns from it learns those words and few others. Real questions need
a real teacher.
"""

from __future__ import annotations

import hashlib
import re

from data_pipeline.instruct.queries import ASKED

_PROMPT = re.compile(
    r"^Write \d+ different queries .*"  # and past the examples' descriptions
    r"^Description: (?P<description>[^\n]+)\nProhibited words: (?P<prohibited>[^\n]*)\s*\Z",
    re.MULTILINE | re.DOTALL,
)
_MATCH = re.compile(r'^A user asks: "(?P<words>.*)"\nFor each of these tools ', re.DOTALL)
_OFFERED = re.compile(r"^(?P<number>\d{1,2})\. (?P<description>.*)$", re.MULTILINE)
_WORD = re.compile(r"\w+")
_ALIKE = 0.8  # of a description's longer words in a query, from which the tool is said to solve it

# {do} is what the tool does as an order, {keys} the longer words of its description
_FRAMES = (
    "Can you {do}?",
    "Good morning, my manager wants somebody to {do} before lunch.",
    "{keys}: who takes care of it?",
    "It is urgent, please {do}, I have a customer waiting here.",
    "How do I get this done: {do}?",
    "Sorry for asking again, but my question is about {keys}.",
    "I would like you to {do}, thank you so much.",
    "We talked on the phone yesterday; now it is time to {do}.",
    "Hello! Anna told me that you know about {keys}, is that right?",
    "If it is not too much trouble, {do} for me today.",
    "My colleague is ill and nobody else here can {do}.",
    "Something is wrong again with {keys}, have a look!",
    "Next on my list for this afternoon: {do}.",
    "I am new in this job. Where would I go to {do}?",
    "Quick one, {keys}, what now?",
    "Nobody answered my letter, so once more: {do}.",
    "Is there any chance that you {do} by tomorrow evening?",
    "For the family of my neighbour, {do}, would you?",
    "You helped me so well last time. This time, {do}.",
    "Let us begin with {keys} and see.",
)
assert len(_FRAMES) == ASKED


def answer_prompt(prompt: str) -> str:
    """Answer one of the prompts of the recipe `questions`, always in the same way.

    Args:
        prompt: of `render_query_prompt` or `render_match_prompt`.

    Returns:
        numbered queries, or yes and no for each tool; for any other prompt a sentence that says what this teacher is.
    """
    if asked := _PROMPT.search(prompt):
        return _write_queries(asked["description"], asked["prohibited"])
    if judged := _MATCH.match(prompt):
        return _judge(judged["words"], prompt[judged.end() :])
    return "I am a template, no language model: I can only write queries for a tool from its description."


def _write_queries(description: str, prohibited: str) -> str:
    banned = {word.strip().casefold() for word in prohibited.split(",")}
    words = [word for word in description.rstrip(".!").split() if word.strip(".,;:").casefold() not in banned]
    order = _to_order(words[0]) if words else ""
    do = " ".join([order if order and order not in banned else "take care of", *(words[1:] or ["it"])])
    keys = " and ".join(sorted(_list_keys(" ".join(words[1:])), key=len, reverse=True)[:3]) or do
    # another order for each tool, or the ten that are kept would be the same ten sentences
    frames = sorted(_FRAMES, key=lambda frame: hashlib.sha256(f"{description}\n{frame}".encode()).digest())
    return "\n".join(
        f"Query{number}: {_capitalise(frame.format(do=do, keys=keys))}" for number, frame in enumerate(frames, start=1)
    )


def _judge(words: str, offered: str) -> str:
    said = _list_keys(words)
    verdicts = []
    for tool in _OFFERED.finditer(offered):
        own = _list_keys(tool["description"])
        fits = bool(own) and len(own & said) >= _ALIKE * len(own)
        verdicts.append(f"{tool['number']}: {'yes' if fits else 'no'}")
    return "\n".join(verdicts)


def _to_order(verb: str) -> str:
    """`Tells` -> `tell`, `Searches` -> `search`, `Tries` -> `try`; other words as they are, in lower case."""
    word = verb.casefold()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zzes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _list_keys(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text) if len(word) > 4}


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
