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
