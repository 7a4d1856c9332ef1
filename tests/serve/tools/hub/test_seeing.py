"""What networks see, on tiny models that the test saves to disk with weights that make the right answer known."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from data_pipeline.records.schema import Modality
from data_pipeline.sources.toolmm_mini.media_files import render_media
from serve.tools.all_tools import load_tools
from serve.tools.images import faces
from serve.tools.media import ToolLimits, decode_media
from serve.tools.models import ModelCache

SIZE = {"height": 16, "width": 16}
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
DETECT, CROP, SEGMENT, REMOVE, NAME = (
    f"gpt4tools/{slug}"
    for slug in (
        "detect-the-given-object", "crop-the-given-object", "segment-the-given-object",
        "remove-something-from-the-photo", "recognize-face",
    )
)  # fmt: skip
CLASSIFY = "nateraw/food"


def save_owlvit(folder: Path, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig) -> None:
    """Two by two patches, and it sees the object in each of them where the patch stands."""
    vision = {"image_size": 16, "patch_size": 8, **TINY}
    model = OwlViTForObjectDetection(
        OwlViTConfig(text_config=text_config.to_dict(), vision_config=vision, projection_dim=8)
    )
    with torch.no_grad():
        for layer in (model.class_head.dense0, model.class_head.logit_shift, model.class_head.logit_scale,
                      model.box_head.dense2):  # fmt: skip
            layer.weight.zero_()
            layer.bias.zero_()
        model.class_head.logit_shift.bias.fill_(2.0)
    model.save_pretrained(folder)
    OwlViTProcessor(
        image_processor=OwlViTImageProcessorPil(size=SIZE, crop_size=SIZE, do_center_crop=False),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def save_grounding_dino(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cup", "."]
    (folder / "vocab").mkdir(parents=True)
    (folder / "vocab" / "vocab.txt").write_text("\n".join(words))
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2,
                      out_features=["stage1", "stage2"])  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=BertConfig(vocab_size=len(words), max_position_embeddings=32, **TINY),
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=8, decoder_ffn_dim=8, num_queries=3,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_n_points=1, decoder_n_points=1,
        num_feature_levels=2, max_text_len=16,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoProcessor(
        image_processor=GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}),
        tokenizer=BertTokenizerFast(str(folder / "vocab" / "vocab.txt"), model_max_length=16),
    ).save_pretrained(folder)


def save_classifier(folder: Path, surety: float = 30.0) -> None:
    """It takes everybody for Bob."""
    config = ViTConfig(image_size=16, patch_size=8, id2label={0: "Ada", 1: "Bob", 2: "Eve"}, **TINY)
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([0.0, surety, -0.1]))
        model.classifier.weight.zero_()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)


@pytest.fixture(scope="module")
def tools(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig, clipseg: Path
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_owlvit(root / "owlvit", tokenizer, text_config)
    save_classifier(root / "classifier")
    folders = {
        DETECT: root / "owlvit", CROP: root / "owlvit", SEGMENT: clipseg, REMOVE: clipseg,
        NAME: root / "classifier", CLASSIFY: root / "classifier",
    }  # fmt: skip
    return load_tools({tool_id: str(folder) for tool_id, folder in folders.items()})


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache(10**9)


def call(tools: dict[str, Any], models: ModelCache, tool_id: str, image: np.ndarray, **values: str) -> tuple[str, Any]:
    """The words and the picture."""
    spec = tools[tool_id]
    output = spec.run(models, *spec.model_ids, image=image, **values)
    return output.text, np.asarray(Image.open(io.BytesIO(output.file.data))) if output.file else None


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_what_is_named_is_framed_and_cut_out(tools: dict[str, Any], models: ModelCache) -> None:
    image = noise()
    text, framed = call(tools, models, DETECT, image, object="cup")
    assert text == "Found 4 times 'cup'."
    changed = np.argwhere((framed != image).any(axis=2))
    assert (changed.min(axis=0) == (10, 15)).all()  # the first patch's box: 15 to 45 across, 10 to 30 down
    text, part = call(tools, models, CROP, image, object="cup")
    assert text == "Cropped to 'cup' (score 0.88)."  # the sigmoid of two
    assert (part == image[10:30, 15:45]).all()


def test_another_detector_of_named_things_may_take_its_place(models: ModelCache, tmp_path: Path) -> None:
    torch.manual_seed(1)  # whose weights see all three
    save_grounding_dino(tmp_path / "dino")
    tools = load_tools({DETECT: str(tmp_path / "dino")})
    text, framed = call(tools, models, DETECT, noise(), object="cup")
    assert text == "Found 3 times 'cup'."
    assert framed.shape == (40, 60, 3)


def test_what_is_named_is_marked_and_painted_over(tools: dict[str, Any], models: ModelCache) -> None:
    text, mask = call(tools, models, SEGMENT, noise(), object="a cup that is far too long a name for this model")
    assert text == "100.0 % of the picture shows 'a cup that is far too long a name for this model'."
    assert mask.shape == (40, 60)
    assert (mask == 255).all()
    text, filled = call(tools, models, REMOVE, noise(), object="cup")
    assert text.startswith("A network marked 'cup' (100.0 % of the picture)")
    assert filled.shape == (40, 60, 3)


def test_pictures_and_faces_are_named(
    tools: dict[str, Any], models: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "has_network", lambda: False)  # which sees no face in a drawing
    assert call(tools, models, CLASSIFY, noise())[0] == "Bob (1.00), Ada (0.00), Eve (0.00)"
    assert call(tools, models, NAME, noise())[0] == "No face was found."
    data = render_media(Modality.IMAGE, "portrait", np.random.default_rng(1))
    portrait = decode_media("image", data, ToolLimits())
    assert isinstance(portrait, np.ndarray)
    text, _ = call(tools, models, NAME, portrait)
    assert re.match(r"face 1 at x \d+ to \d+, y \d+ to \d+: Bob \(1\.00\)\. The network knows 3 people", text)
    save_classifier(tmp_path / "unsure", surety=0.1)
    unsure = load_tools({NAME: str(tmp_path / "unsure")})
    assert ": nobody whom the network knows (0.37)." in call(unsure, models, NAME, portrait)[0]
