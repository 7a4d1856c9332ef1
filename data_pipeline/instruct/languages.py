"""Whether words are in another language of the same script, told offline by their letters.

`py3langid` (naive Bayes over pieces of some letters) compares languages that no other of them passes for: Danish stands
for Norwegian too, Czech for Slovak, Croatian for Serbian and Slovene, Indonesian for Malay, Spanish for Catalan and
Galician. Questions about foreign words (a title, a sentence to translate, a street) are not foreign themselves, so the
verdict is a cautious one: what is quoted does not count, and neither do words of which some three in a row are in the
expected language.
"""

from __future__ import annotations

import re
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

# ISO 639-1, of the Latin script
LANGUAGES = ("cs", "da", "de", "en", "es", "fi", "fr", "hr", "hu", "id", "it", "nl", "pl", "pt", "ro", "sv", "tr", "vi")
MIN_CONFIDENCE = 0.5  # that a text is in a language
MAX_CONFIDENCE = 0.05  # that it is in the language which it is foreign to
MIN_WORDS = 4  # fewer tell no language
_IN_A_ROW = 3
_QUOTED = re.compile(r"""(?<!\w)(?:'[^'].*?'|"[^"].*?"|“.+?”|„.+?[“”]|‘.+?’|«.+?»|».+?«)(?!\w)""", re.DOTALL)


def find_language(text: str) -> str:
    """One of `LANGUAGES`; "" where it cannot be told with `MIN_CONFIDENCE`."""
    if len(text.split()) < MIN_WORDS:
        return ""
    language, confidence = _load().classify(text)
    return language if confidence >= MIN_CONFIDENCE else ""


def is_foreign(text: str, language: str) -> bool:
    """Whether a text is in another of `LANGUAGES` than the given one.

    Args:
        text: of some words; what is quoted in it, and what follows its first colon, may be in any language.
        language: of `find_language`; "" = not known, and nothing is foreign.
    """
    words = _QUOTED.sub(" ", text).partition(":")[0].split()
    if not language or len(words) < MIN_WORDS or dict(_load().rank(" ".join(words)))[language] > MAX_CONFIDENCE:
        return False
    rows = (" ".join(words[start : start + _IN_A_ROW]) for start in range(len(words) - _IN_A_ROW + 1))
    return all(_load().classify(row)[0] != language for row in rows)


@cache
def _load() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier
