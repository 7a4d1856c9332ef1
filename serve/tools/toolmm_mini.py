"""Entries of ToolMM-mini's catalogue that name a Hugging Face model which runs by a task's common interface.

The other entries (diffusers, speechbrain, code that comes with a model) are names only: invoking them says so.
"""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.sources.toolmm_mini.catalog import build_catalog
from serve.tools.hub.seeing import (
    answer_question,
    caption_picture,
    classify_picture,
    detect_objects,
    draw_depth,
    segment_by_name,
    spell_speech,
)
from serve.tools.hub.writing import rate_text, rewrite_text
from serve.tools.models import MODEL_MEMORY_MB, MODEL_TIMEOUT_S
from serve.tools.spec import Argument, ToolOutput, ToolSpec, picture_argument, sound_argument

_PICTURE = (picture_argument("image_path", parameter="image"),)
_TEXT = (Argument("text", "text", "the text to work on"),)
_TASKS: tuple[tuple[Callable[..., ToolOutput], tuple[Argument, ...], tuple[str, ...]], ...] = (
    (
        segment_by_name,
        _PICTURE,
        (
            "nvidia/segformer-b5-finetuned-ade-640-640",
            "nvidia/segformer-b5-finetuned-cityscapes-1024-1024",
            "wu-pr-gw/segformer-b2-finetuned-with-LoveDA",
            "mattmdjaga/segformer_b2_clothes",
        ),
    ),
    (
        detect_objects,
        _PICTURE,
        ("facebook/detr-resnet-50", "hustvl/yolos-tiny", "valentinafeve/yolos-fashionpedia"),
    ),
    (
        classify_picture,
        _PICTURE,
        (
            "dima806/flower_groups_image_detection",
            "nateraw/food",
            "Kaludi/food-category-classification-v2.0",
            "bazyl/gtsrb-model",
            "dennisjooo/Birds-Classifier-EfficientNetB2",
            "farleyknight-org-username/vit-base-mnist",
        ),
    ),
    (
        caption_picture,
        _PICTURE,
        ("Salesforce/blip-image-captioning-large", "nlpconnect/vit-gpt2-image-captioning"),
    ),
    (
        answer_question,
        (*_PICTURE, Argument("question", "text", "what is asked about the picture")),
        ("Salesforce/blip-vqa-base", "dandelin/vilt-b32-finetuned-vqa"),
    ),
    (draw_depth, _PICTURE, ("Intel/dpt-large", "LiheYoung/depth-anything-small-hf")),
    (
        spell_speech,
        (sound_argument(),),
        tuple(
            f"jonatasgrosman/wav2vec2-large-xlsr-53-{language}"
            for language in ("english", "chinese-zh-cn", "french", "japanese")
        ),
    ),
    (
        rewrite_text,
        _TEXT,
        (
            "Helsinki-NLP/opus-mt-en-fr",
            "Helsinki-NLP/opus-mt-en-de",
            "Helsinki-NLP/opus-mt-en-zh",
            "facebook/bart-large-cnn",
            "google/pegasus-xsum",
            "vennify/t5-base-grammar-correction",
            "mrm8488/t5-base-finetuned-wikiSQL",
        ),
    ),
    (
        rate_text,
        _TEXT,
        ("cardiffnlp/twitter-roberta-base-sentiment-latest", "siebert/sentiment-roberta-large-english"),
    ),
)


def _build_tools() -> tuple[ToolSpec, ...]:
    catalog = build_catalog()
    return tuple(
        ToolSpec(
            tool_id,
            run,
            catalog[tool_id].description,
            arguments,
            catalog[tool_id].output_modality,  # pyright: ignore[reportArgumentType]
            method="model",
            model_id=tool_id,
            memory_mb=MODEL_MEMORY_MB,
            timeout_s=MODEL_TIMEOUT_S,
        )
        for run, arguments, tool_ids in _TASKS
        for tool_id in tool_ids
    )


TOOLS = _build_tools()
