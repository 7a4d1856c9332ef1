"""Tools that make pictures, on tiny random pipelines that the test saves to disk; each paints one known colour."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    HeunDiscreteScheduler,
    PriorTransformer,
    ShapEPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.shap_e import ShapERenderer
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from serve.tools.all_tools import load_tools
from serve.tools.hub import generating
from serve.tools.media import png_file
from serve.tools.models import ModelCache
from serve.tools.run import ToolRunner
from serve.tools.spec import ToolError

TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
UNET = {
    "block_out_channels": (8, 8), "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 2,
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
}  # fmt: skip
COLOUR = (255, 0, 51)
GENERATE = "gpt4tools/generate-image-from-user-input-text"
EDIT = "gpt4tools/instruct-image-using-text"
REPLACE = "gpt4tools/replace-something-from-the-photo"
SEGMENT = "gpt4tools/segment-the-given-object"
CONDITION = "gpt4tools/generate-image-condition-on-canny-image"
SOLID = "gpt4tools/generate-3d-asset-from-user-input-text"


def build_parts(in_channels: int, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig) -> dict[str, Any]:
    vae = AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=16,
                        down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
        vae.decoder.conv_out.bias.copy_(torch.tensor(COLOUR) / 127.5 - 1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **UNET
    )
    return {
        "vae": vae,
        "text_encoder": CLIPTextModel(text_config),
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": DDIMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def build_safety_checker(text_config: CLIPTextConfig) -> dict[str, Any]:
    """One that finds fault with every picture."""
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **TINY).to_dict(),
        text_config=text_config.to_dict(),
        projection_dim=8,
    )
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2.0)
    return {
        "requires_safety_checker": True,
        "safety_checker": checker,
        "feature_extractor": CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    }  # fmt: skip


def save_solids(folder: Path, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig) -> None:
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=8, d_hidden=8, n_output=12, background=(0.1, 0.1, 0.1)
    )
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, embedding_dim=8, num_embeddings=32, embedding_proj_dim=8,
        time_embed_dim=8, num_layers=1, clip_embed_dim=16, additional_embeddings=0, time_embed_act_fn="gelu",
        norm_in_type="layer", encoder_hid_proj_type=None, added_emb_type=None,
    )  # fmt: skip
    scheduler = HeunDiscreteScheduler(beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample",
                                      use_karras_sigmas=True, clip_sample=True, clip_sample_range=1.0)  # fmt: skip
    encoder = CLIPTextModelWithProjection(text_config)
    ShapEPipeline(
        prior=prior, text_encoder=encoder, tokenizer=tokenizer, scheduler=scheduler, shap_e_renderer=renderer
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def model_ids(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig, clipseg: Path
) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pipelines")
    torch.manual_seed(0)
    StableDiffusionPipeline(**build_parts(4, tokenizer, text_config)).save_pretrained(root / "generate")
    StableDiffusionInpaintPipeline(**build_parts(9, tokenizer, text_config)).save_pretrained(root / "replace")
    StableDiffusionInstructPix2PixPipeline(**build_parts(8, tokenizer, text_config)).save_pretrained(root / "edit")
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 8), **UNET)
    with torch.no_grad():
        for convolution in (controlnet.controlnet_mid_block, *controlnet.controlnet_down_blocks):
            torch.nn.init.normal_(convolution.weight)  # zero at first, so that it would steer nothing
        torch.nn.init.normal_(controlnet.controlnet_cond_embedding.conv_out.weight)
    controlnet.save_pretrained(root / "condition")
    save_solids(root / "solid", tokenizer, text_config)
    return {
        tool_id: str(root / name)
        for tool_id, name in (
            (GENERATE, "generate"), (REPLACE, "replace"), (EDIT, "edit"),
            (CONDITION, "condition"), (SOLID, "solid"),
        )
    } | {SEGMENT: str(clipseg)}  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> Iterator[ToolRunner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        runner = ToolRunner()
        yield runner
        runner.close()


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)


def pixels_of(output: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(output.file.data)))


def test_calls_make_pictures_in_their_own_process(runner: ToolRunner, model_ids: dict[str, str]) -> None:
    tools = load_tools(model_ids)
    runner.start(True, [tools[GENERATE], tools[REPLACE]])  # shut in with the files of both, so it need not start again
    made = pixels_of(runner.run(tools[GENERATE], {"text": "a red cup"}, {}))
    assert made.shape == (16, 16, 3)
    assert (made == COLOUR).all()
    values = {"image_path": "a", "object": "cup", "replacement": "a jug"}
    replaced = runner.run(tools[REPLACE], values, {"a": png_file(picture()).data})
    assert replaced.text == "Put 'a jug' in the place of 'cup'."
    assert pixels_of(replaced).shape == (64, 80, 3)
    assert (pixels_of(replaced) == COLOUR).all()
    assert runner.model_counts["models"] == 3  # the second tool has one for the mask and one for the picture


def test_a_picture_is_changed(model_ids: dict[str, str]) -> None:
    spec = load_tools(model_ids)[EDIT]
    edited = spec.run(ModelCache(0), *spec.model_ids, image=picture(), style="redder")
    assert pixels_of(edited).shape == (64, 80, 3)
    assert (pixels_of(edited) == COLOUR).all()


def test_a_solid_is_shown_as_the_reference_renders_it(
    model_ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "SOLID_STEPS", 2)
    monkeypatch.setattr(generating, "SOLID_SIDE_PX", 8)
    spec, models = load_tools(model_ids)[SOLID], ModelCache(10**9)
    assert pixels_of(spec.run(models, *spec.model_ids, text="a cup")).shape == (8, 8, 3)
    renderer = models.get(model_ids[SOLID], generating.LOAD_SOLIDS)[0].shap_e_renderer
    latents = torch.randn(1, 32, 8)
    torch.manual_seed(1)
    view = generating.render_view(renderer, latents, 8)
    torch.manual_seed(1)
    [reference, *_] = renderer.decode_to_image(latents, "cpu", size=8, ray_batch_size=64)
    assert np.ptp(view) > 0
    assert view == pytest.approx(reference.clamp(0, 1).mul(255).numpy(), abs=0.51)


def test_a_condition_steers_the_model_that_paints_from_words(model_ids: dict[str, str]) -> None:
    tools, models = load_tools(model_ids), ModelCache(10**9)
    spec = tools[CONDITION]
    assert spec.model_ids == (model_ids[CONDITION], model_ids[GENERATE])
    pipeline = models.get(model_ids[GENERATE], generating.LOAD_TEXT_TO_IMAGE)[0]
    torch.nn.init.normal_(pipeline.vae.decoder.conv_out.weight)  # no longer one colour

    def paint(grey: int) -> np.ndarray:
        torch.manual_seed(0)
        condition = np.full((64, 80, 3), grey, np.uint8)
        return pixels_of(spec.run(models, *spec.model_ids, image=condition, text="a cup"))

    black, white = paint(0), paint(255)
    assert black.shape == (64, 80, 3)
    assert (paint(0) == black).all()
    assert (white != black).mean() > 0.1
    assert models.counts()["loads"] == 2


def test_a_picture_that_the_filter_holds_back_is_no_result(
    tmp_path: Path, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig
) -> None:
    parts = build_parts(4, tokenizer, text_config) | build_safety_checker(text_config)
    StableDiffusionPipeline(**parts).save_pretrained(tmp_path)
    with pytest.raises(ToolError, match="other words"):
        generating.generate_picture(ModelCache(0), str(tmp_path), "a cup")


def test_pickled_parts_of_a_pipeline_are_not_loaded(
    tmp_path: Path, tokenizer: CLIPTokenizer, text_config: CLIPTextConfig
) -> None:
    StableDiffusionPipeline(**build_parts(4, tokenizer, text_config)).save_pretrained(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.unlink()
    torch.save(CLIPTextModel(text_config).state_dict(), weights.with_name("pytorch_model.bin"))
    with pytest.raises(ToolError) as caught:
        generating.generate_picture(ModelCache(0), str(tmp_path), "a cup")
    assert caught.value.code == "weights_not_available"
