"""Pictures made by diffusion models. They need the package diffusers; without it each tool says so and nothing else
fails."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from serve.tools.hub.seeing import mark_named
from serve.tools.media import png_file
from serve.tools.models import LoadedModel, ModelCache, load_pipeline
from serve.tools.spec import ToolOutput

BASE_MODEL_ID = "runwayml/stable-diffusion-v1-5"
MASK_MODEL_ID = "CIDAS/clipseg-rd64-refined"
STEPS = 30
MAX_SIDE_PX = 768


def load_text_to_image(model_id: str) -> LoadedModel:
    """Words to a picture."""
    return load_pipeline(model_id, "AutoPipelineForText2Image")


def load_inpainting(model_id: str) -> LoadedModel:
    """Words, picture and mask to a picture."""
    return load_pipeline(model_id, "AutoPipelineForInpainting")


def load_editing(model_id: str) -> LoadedModel:
    """An instruction and a picture to a picture."""
    return load_pipeline(model_id, "StableDiffusionInstructPix2PixPipeline")


def load_controlled(model_id: str) -> LoadedModel:
    """Words and a condition (edges, depth, ...) to a picture; `model_id` is the ControlNet."""
    return load_pipeline(BASE_MODEL_ID, "StableDiffusionControlNetPipeline", controlnet_id=model_id)


def load_shapes(model_id: str) -> LoadedModel:
    """Words to views of a solid."""
    return load_pipeline(model_id, "ShapEPipeline")


def _to_picture(image: np.ndarray) -> Image.Image:
    """At a size that the models were trained for, with sides that are multiples of eight."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height, width))
    size = (max(64, round(width * scale) // 8 * 8), max(64, round(height * scale) // 8 * 8))
    return Image.fromarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def generate_picture(models: ModelCache, model_id: str, text: str) -> ToolOutput:
    """A picture of what the words say."""
    (pipeline,) = models.get(model_id, load_text_to_image)
    picture = pipeline(text, num_inference_steps=STEPS).images[0]
    return ToolOutput("Generated a picture from the words.", png_file(np.asarray(picture.convert("RGB"))))


def generate_conditioned(models: ModelCache, model_id: str, image_path: np.ndarray, text: str) -> ToolOutput:
    """A picture that follows the words and the lines, depth or segments given."""
    (pipeline,) = models.get(model_id, load_controlled)
    picture = pipeline(text, image=_to_picture(image_path), num_inference_steps=STEPS).images[0]
    return ToolOutput("Generated a picture that follows the given one.", png_file(np.asarray(picture.convert("RGB"))))


def edit_picture(models: ModelCache, model_id: str, image_path: np.ndarray, style: str) -> ToolOutput:
    """The picture changed as told."""
    (pipeline,) = models.get(model_id, load_editing)
    picture = pipeline(style, image=_to_picture(image_path), num_inference_steps=STEPS).images[0]
    return ToolOutput("Changed the picture as told.", png_file(np.asarray(picture.convert("RGB"))))


def replace_named(
    models: ModelCache, model_id: str, image_path: np.ndarray, object: str, replacement: str
) -> ToolOutput:
    """Something else in the place of an object."""
    (pipeline,) = models.get(model_id, load_inpainting)
    mask = mark_named(models, MASK_MODEL_ID, image_path, object)
    picture = _to_picture(image_path)
    marked = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size)
    made = pipeline(replacement, image=picture, mask_image=marked, num_inference_steps=STEPS).images[0]
    return ToolOutput(f"Put {replacement!r} in the place of {object!r}.", png_file(np.asarray(made.convert("RGB"))))


def generate_solid(models: ModelCache, model_id: str, text: str) -> ToolOutput:
    """One view of a solid made from words."""
    (pipeline,) = models.get(model_id, load_shapes)
    view = pipeline(text, num_inference_steps=64, frame_size=256).images[0][0]
    return ToolOutput("One view of the solid.", png_file(np.asarray(view.convert("RGB"))))
