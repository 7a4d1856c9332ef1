"""Words that neither a tool's card nor a question should hold (MLLM-Tool, section 8.2)."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"\b(?:nsfw|porn\w*|hentai|erotic\w*|nudes?|nudity|undress\w*|gore|deepfakes?)\b", re.IGNORECASE)
_JOINTS = str.maketrans("/-_", "   ")  # what joins the words of an id


def find_unsafe_words(text: str) -> list[str]:
    """The unsafe words of a text or an id, in lower case, each once, in their order; English alone."""
    return list(dict.fromkeys(word.casefold() for word in _UNSAFE.findall(text.translate(_JOINTS))))
