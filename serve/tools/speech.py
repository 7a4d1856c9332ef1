"""Transcription tools of ToolMM-mini's catalogue that run a Hugging Face model."""

from __future__ import annotations

from serve.tools.hub.seeing import spell_speech
from serve.tools.spec import ToolSpec, sound_argument

TOOLS = tuple(
    ToolSpec(
        f"jonatasgrosman/wav2vec2-large-xlsr-53-{suffix}",
        spell_speech,
        f"Transcribes {language} speech.",
        (sound_argument(),),
        "text",
        method="model",
        model_id=f"jonatasgrosman/wav2vec2-large-xlsr-53-{suffix}",
        memory_mb=16_384,
        timeout_s=600.0,
    )
    for suffix, language in (
        ("english", "English"),
        ("chinese-zh-cn", "Chinese"),
        ("french", "French"),
        ("japanese", "Japanese"),
    )
)
