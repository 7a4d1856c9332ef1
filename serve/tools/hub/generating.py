"""Pictures made by diffusion models. They need the package diffusers; without it each tool says so and nothing else
fails."""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image

from serve.tools.hub.seeing import mark_named
from serve.tools.media import png_file
from serve.tools.models import ModelCache, load_diffusion
from serve.tools.spec import ToolError, ToolOutput

STEPS = 30
MAX_SIDE_PX = 768
SOLID_STEPS = 64
SOLID_SIDE_PX = 128  # one to two minutes on a CPU
RAYS, COARSE_SAMPLES, FINE_SAMPLES = 1024, 64, 128

LOAD_TEXT_TO_IMAGE = partial(load_diffusion, "AutoPipelineForText2Image")
LOAD_INPAINTING = partial(load_diffusion, "AutoPipelineForInpainting")
LOAD_EDITING = partial(load_diffusion, "StableDiffusionInstructPix2PixPipeline")
LOAD_CONTROLNET = partial(load_diffusion, "ControlNetModel")
LOAD_SOLIDS = partial(load_diffusion, "ShapEPipeline")


def _to_picture(image: np.ndarray) -> Image.Image:
    """At a size that the models were trained for, with sides that are multiples of eight."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height, width))
    size = (max(64, round(width * scale) // 8 * 8), max(64, round(height * scale) // 8 * 8))
    return Image.fromarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _tell(text: str, made: Any) -> ToolOutput:
    """The first picture of a pipeline's output, with words."""
    if any(getattr(made, "nsfw_content_detected", None) or ()):  # the picture is black then
        raise ToolError("failed", "the model's own filter held the picture back; ask for it in other words.")
    return ToolOutput(text, png_file(np.asarray(made.images[0].convert("RGB"))))


def generate_picture(models: ModelCache, model_id: str, text: str) -> ToolOutput:
    """A picture of what the words say."""
    (pipeline,) = models.get(model_id, LOAD_TEXT_TO_IMAGE)
    return _tell("Generated a picture from the words.", pipeline(text, num_inference_steps=STEPS))


def generate_conditioned(
    models: ModelCache, model_id: str, base_model_id: str, image: np.ndarray, text: str
) -> ToolOutput:
    """A picture that follows the words and the lines, depth or segments given.

    `model_id` is the ControlNet. It steers the pipeline that makes pictures from words alone, so that one copy of the
    large weights serves all conditions.
    """
    (controlnet,) = models.get(model_id, LOAD_CONTROLNET)
    (base,) = models.get(base_model_id, LOAD_TEXT_TO_IMAGE)
    import diffusers

    pipeline = diffusers.AutoPipelineForText2Image.from_pipe(base, controlnet=controlnet)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(text, image=_to_picture(image), num_inference_steps=STEPS)
    return _tell("Generated a picture that follows the given one.", made)


def edit_picture(models: ModelCache, model_id: str, image: np.ndarray, style: str) -> ToolOutput:
    """The picture changed as told."""
    (pipeline,) = models.get(model_id, LOAD_EDITING)
    made = pipeline(style, image=_to_picture(image), num_inference_steps=STEPS)
    return _tell("Changed the picture as told.", made)


def replace_named(
    models: ModelCache, model_id: str, mask_model_id: str, image: np.ndarray, object: str, replacement: str
) -> ToolOutput:
    """Something else in the place of an object, which the second model marks."""
    mask = mark_named(models, mask_model_id, image, object)
    (pipeline,) = models.get(model_id, LOAD_INPAINTING)
    picture = _to_picture(image)
    marked = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size)
    made = pipeline(
        replacement,
        image=picture,
        mask_image=marked,
        height=picture.height,
        width=picture.width,
        num_inference_steps=STEPS,
    )
    return _tell(f"Put {replacement!r} in the place of {object!r}.", made)


def generate_solid(models: ModelCache, model_id: str, text: str) -> ToolOutput:
    """One view of a solid made from words."""
    (pipeline,) = models.get(model_id, LOAD_SOLIDS)
    made = pipeline(text, num_inference_steps=SOLID_STEPS, guidance_scale=15.0, output_type="latent")
    return ToolOutput(
        "One view of the solid.", png_file(render_view(pipeline.shap_e_renderer, made.images, SOLID_SIDE_PX))
    )


def render_view(renderer: Any, latents: Any, side: int) -> np.ndarray:
    """The first view of what diffusers' `ShapERenderer.decode_to_image` renders, which always renders twenty.

    Args:
        renderer: a `ShapERenderer`.
        latents: float [1, rows, width] of the pipeline.
        side: of the picture in pixels.

    Returns:
        uint8 [side, side, 3].
    """
    import torch
    from diffusers.pipelines.shap_e.camera import create_pan_cameras
    from diffusers.pipelines.shap_e.renderer import StratifiedRaySampler

    with torch.inference_mode():
        weights = renderer.params_proj(latents)
        for name, weight in renderer.mlp.state_dict().items():
            if f"nerstf.{name}" in weights:
                weight.copy_(weights[f"nerstf.{name}"].squeeze(0))
        rays = create_pan_cameras(side).camera_rays[:, : side * side].to(latents.device)  # [1,side*side,2,3]
        colours = []
        for batch in rays.split(RAYS, dim=1):
            _, sampler, coarse = renderer.render_rays(batch, StratifiedRaySampler(), COARSE_SAMPLES)
            colours.append(renderer.render_rays(batch, sampler, FINE_SAMPLES, prev_model_out=coarse)[0])  # [1,n,3]
        picture = torch.cat(colours, dim=1).reshape(side, side, 3).clamp(0, 1)
    return (picture * 255).round().to(torch.uint8).cpu().numpy()
