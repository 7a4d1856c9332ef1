"""What networks do with texts: translate, shorten, correct, rate."""

from __future__ import annotations

from functools import partial

from serve.tools.models import ModelCache, generate_tokens, load_parts, name_classes, run_model
from serve.tools.spec import ToolOutput

MAX_NEW_TOKENS = 256
LOAD_REWRITER = partial(load_parts, ("AutoModelForSeq2SeqLM", "AutoTokenizer"))
LOAD_RATER = partial(load_parts, ("AutoModelForSequenceClassification", "AutoTokenizer"))


def rewrite_text(models: ModelCache, model_id: str, text: str) -> ToolOutput:
    """The text in another language, shorter, or corrected: whatever the model was trained for."""
    model, tokenizer = models.get(model_id, LOAD_REWRITER)
    inputs = tokenizer(text, return_tensors="pt", truncation=True)
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    tokens = generate_tokens(model, MAX_NEW_TOKENS, **inputs)
    return ToolOutput(tokenizer.decode(tokens[0], skip_special_tokens=True).strip() or "(the model wrote nothing)")


def rate_text(models: ModelCache, model_id: str, text: str) -> ToolOutput:
    """The three likeliest classes."""
    model, tokenizer = models.get(model_id, LOAD_RATER)
    return ToolOutput(
        name_classes(model, run_model(model, tokenizer(text, return_tensors="pt", truncation=True)).logits)
    )
