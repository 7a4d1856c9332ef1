"""Two judges of what was generated: one who asks for exactly the right thing, and one whom a good guess contents.

Both are prompts to the teacher (MLLM-Tool, section 3.3 has strict and broad words for the same reason). Where they
differ, the words do not settle the matter, and a person decides.
"""

from __future__ import annotations

import re

from data_pipeline.instruct.cases import Case

MAX_TOKENS = 20  # of a judge's answer, which is one word

_VERDICT = re.compile(r"\W*(?P<verdict>yes|no)\b", re.IGNORECASE)
_MARK = "Answer with one word, yes or no."


def render_judge_prompts(case: Case) -> tuple[str, str]:
    """The strict judge's prompt and the generous one's."""
    shown = f'{case.situation}The user says: "{case.words}"\nThe assistant\n{case.proposal}\n\n'
    strict = (
        "Be strict. Say yes only if this is exactly what the user asks for, with nothing missing, nothing added and "
        "every value as the user gave it; otherwise no. "
    )
    broad = (
        "Be generous. Say yes if a user who says this could well mean it so, even if it could also be meant otherwise; "
        "no only if it does something else. "
    )
    return shown + strict + _MARK, shown + broad + _MARK


def parse_verdict(text: str) -> str:
    """ "yes", "no", or "unclear" for an answer that does not begin with either."""
    found = _VERDICT.match(text)
    return found["verdict"].casefold() if found else "unclear"


def describe_judges(strict: str, broad: str) -> str:
    """What a person should know of two verdicts; "" where both say yes, or one is missing."""
    if not strict or not broad or strict == broad == "yes":
        return ""
    return f"both judges: {strict}" if strict == broad else f"the judges disagree: strict {strict}, generous {broad}"
