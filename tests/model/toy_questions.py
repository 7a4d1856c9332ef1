"""Made-up questions: words tell two of the tools, words with a medium's vector the other two."""

from __future__ import annotations

import numpy as np

from data_pipeline.records.schema import Modality, ToolRecord

TOOLS = ("blur", "translate", "dehaze", "denoise")
_THINGS = ("garden", "letter", "street", "portrait", "rain", "harbour", "kitchen", "dog")
MEDIA = {
    tool + str(i): np.random.default_rng(i).normal(np.eye(8)[2 + 4 * (tool == "dehaze")], 0.2).astype(np.float32)
    for tool in ("dehaze", "denoise")
    for i in range(20)
}


def make_questions(n: int) -> list[ToolRecord]:
    """So many questions, every tool in turn."""
    generator = np.random.default_rng(1)
    questions = []
    for i in range(n):
        tool, thing = TOOLS[i % len(TOOLS)], generator.choice(_THINGS)
        sha256 = f"{tool}{generator.integers(20)}"
        has_media = sha256 in MEDIA
        words = f"please improve the {thing} number {i}" if has_media else f"{tool} the {thing} number {i}"
        questions.append(
            ToolRecord(
                record_id=str(i),
                source="toy",
                modality=Modality.IMAGE if has_media else Modality.TEXT,
                instruction=words,
                media_uri=sha256 if has_media else "",
                media_sha256=sha256 if has_media else "",
                valid_tool_ids=(tool,),
            )
        )
    return questions
