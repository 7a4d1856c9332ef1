"""What networks see in a picture: captions, answers, objects, segments, depth; and speech in a sound."""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np

from serve.tools.audio.pitch import WORKING_RATE_HZ, at_working_rate
from serve.tools.hub.yolo import Box, find_named_things, find_things, is_yolo
from serve.tools.images.faces import find_faces
from serve.tools.media import png_file
from serve.tools.models import ModelCache, generate_tokens, load_parts, name_classes, run_model
from serve.tools.spec import Sound, ToolOutput

MIN_SCORE = 0.5
MIN_NAMED_SCORE = 0.1  # zero-shot detectors give low scores
CUT_SIDE_PX, MIN_CUT_PX = 320, 64  # of the picture in which an object is cut out, and of the object and its ground


# how each kind of model is loaded; one name per task, for `ModelCache` keys on it
LOAD_CAPTIONER = partial(load_parts, ("AutoModelForImageTextToText", "AutoImageProcessor", "AutoTokenizer"))
LOAD_ANSWERER = partial(load_parts, ("AutoModelForVisualQuestionAnswering", "AutoProcessor"))
LOAD_DETECTOR = partial(load_parts, ("AutoModelForObjectDetection", "AutoImageProcessor"))
LOAD_NAMED_DETECTOR = partial(load_parts, ("AutoModelForZeroShotObjectDetection", "AutoProcessor"))
LOAD_NAMED_SEGMENTER = partial(load_parts, ("CLIPSegForImageSegmentation", "AutoProcessor"))
LOAD_SEGMENTER = partial(load_parts, ("AutoModelForSemanticSegmentation", "AutoImageProcessor"))
LOAD_DEPTH = partial(load_parts, ("AutoModelForDepthEstimation", "AutoImageProcessor"))
LOAD_CLASSIFIER = partial(load_parts, ("AutoModelForImageClassification", "AutoImageProcessor"))
LOAD_LETTERS = partial(load_parts, ("AutoModelForCTC", "AutoFeatureExtractor", "AutoTokenizer"))


def caption_picture(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """One sentence about the picture, by BLIP, GIT, or an encoder with a decoder."""
    model, processor, tokenizer = models.get(model_id, LOAD_CAPTIONER)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
    tokens = generate_tokens(model, pixel_values=pixels)
    return ToolOutput(tokenizer.decode(tokens[0], skip_special_tokens=True).strip() or "(the model wrote nothing)")


def answer_question(models: ModelCache, model_id: str, image: np.ndarray, question: str) -> ToolOutput:
    """A short answer: ViLT chooses one, BLIP writes one."""
    model, processor = models.get(model_id, LOAD_ANSWERER)
    inputs = processor(images=image, text=question, return_tensors="pt", truncation=True)
    if not hasattr(model.config, "id2label") or hasattr(model, "text_decoder"):
        tokens = generate_tokens(model, **inputs.to(model.device))
        return ToolOutput(processor.decode(tokens[0], skip_special_tokens=True).strip() or "(the model wrote nothing)")
    probabilities = run_model(model, inputs).logits.softmax(-1)[0]
    best = int(probabilities.argmax())
    return ToolOutput(f"{model.config.id2label[best]} (probability {float(probabilities[best]):.2f})")


def _to_boxes(found: dict[str, Any], labels: list[str]) -> list[Box]:
    boxes = []
    for score, label, box in zip(found["scores"], labels, found["boxes"], strict=True):
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        boxes.append((label, float(score), (x1, y1, x2, y2)))
    return sorted(boxes, key=lambda box: -box[1])


def find_all(models: ModelCache, model_id: str, image: np.ndarray) -> list[Box]:
    """Every object that the network knows, the surest first."""
    if is_yolo(model_id):
        return find_things(models, model_id, image)
    model, processor = models.get(model_id, LOAD_DETECTOR)
    outputs = run_model(model, processor(images=image, return_tensors="pt"))
    found = processor.post_process_object_detection(outputs, MIN_SCORE, target_sizes=[image.shape[:2]])[0]
    return _to_boxes(found, [model.config.id2label[int(label)] for label in found["labels"]])


def detect_objects(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """Every object with its box."""
    boxes = find_all(models, model_id, image)
    listed = "; ".join(
        f"{label} ({score:.2f}) at x {b[0]} to {b[2]}, y {b[1]} to {b[3]}" for label, score, b in boxes[:100]
    )
    return ToolOutput(f"Found {len(boxes)} objects{': ' + listed if boxes else ''}.")


def find_named(models: ModelCache, model_id: str, image: np.ndarray, name: str) -> list[Box]:
    """Boxes of what `name` calls, the surest first.

    Raises:
        InputError: see `find_named_things`.
    """
    if is_yolo(model_id):
        return find_named_things(models, model_id, image, name)
    model, processor = models.get(model_id, LOAD_NAMED_DETECTOR)
    inputs = processor(text=[[name]], images=image, return_tensors="pt", truncation=True)
    outputs = run_model(model, inputs)
    found = processor.post_process_grounded_object_detection(
        outputs, threshold=MIN_NAMED_SCORE, target_sizes=[image.shape[:2]]
    )[0]
    return _to_boxes(found, [name] * len(found["scores"]))


def detect_named(models: ModelCache, model_id: str, image: np.ndarray, object: str) -> ToolOutput:
    """The picture with a frame around what was named."""
    boxes = find_named(models, model_id, image, object)
    drawn = image.copy()
    for _, _, (x1, y1, x2, y2) in boxes:
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (0, 255, 0), max(1, drawn.shape[0] // 200))
    return ToolOutput(f"Found {len(boxes)} times {object!r}.", png_file(drawn))


def crop_named(models: ModelCache, model_id: str, image: np.ndarray, object: str) -> ToolOutput:
    """The part of the picture that shows what was named; the whole where it was not found."""
    height, width = image.shape[:2]
    for _, score, (x1, y1, x2, y2) in find_named(models, model_id, image, object):
        part = image[max(0, y1) : min(height, y2), max(0, x1) : min(width, x2)]
        if part.size:
            return ToolOutput(f"Cropped to {object!r} (score {score:.2f}).", png_file(part))
    return ToolOutput(f"{object!r} was not found; the picture is given back whole.", png_file(image))


def mark_named(models: ModelCache, model_id: str, image: np.ndarray, name: str) -> np.ndarray:
    """Where `name` is, bool [H, W]; InputError as of `find_named`."""
    if is_yolo(model_id):
        return cut_out(image, [box for _, _, box in find_named(models, model_id, image, name)])
    model, processor = models.get(model_id, LOAD_NAMED_SEGMENTER)
    inputs = processor(text=[name], images=[image], return_tensors="pt", padding=True, truncation=True)
    logits = run_model(model, inputs).logits
    chance = logits.reshape(-1, *logits.shape[-2:])[0].sigmoid().float().cpu().numpy()
    return cv2.resize(chance, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def cut_out(image: np.ndarray, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """What stands in boxes (x1, y1, x2, y2), without the ground around, bool [H, W]: GrabCut (Rother et al. 2004)."""
    scale = min(1.0, CUT_SIDE_PX / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    whole = np.zeros(small.shape[:2], np.uint8)
    for box in boxes:
        x1, y1, x2, y2 = (round(side * scale) for side in box)
        labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
        labels[y1:y2, x1:x2] = cv2.GC_PR_FGD
        inside = labels == cv2.GC_PR_FGD
        if MIN_CUT_PX < inside.sum() < inside.size - MIN_CUT_PX:  # there is something to tell apart
            cv2.setRNGSeed(0)
            colours = (np.zeros((1, 65)), np.zeros((1, 65)))
            cv2.grabCut(np.ascontiguousarray(small), labels, (0, 0, 1, 1), *colours, 5, cv2.GC_INIT_WITH_MASK)
        whole[inside & np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))] = 1
    return cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0


def segment_named(models: ModelCache, model_id: str, image: np.ndarray, object: str) -> ToolOutput:
    """White where the object is, black elsewhere."""
    mask = mark_named(models, model_id, image, object)
    how = " (a rough outline, by GrabCut)" if is_yolo(model_id) else ""
    text = f"{100 * mask.mean():.1f} % of the picture shows {object!r}{how}."
    return ToolOutput(text, png_file(mask.astype(np.uint8) * 255))


def remove_named(models: ModelCache, model_id: str, image: np.ndarray, object: str) -> ToolOutput:
    """The object painted over from its surroundings."""
    mask = cv2.dilate(mark_named(models, model_id, image, object).astype(np.uint8), np.ones((9, 9), np.uint8))
    filled = cv2.inpaint(image, mask, 5, cv2.INPAINT_TELEA)
    text = (
        f"A network marked {object!r} ({100 * mask.mean():.1f} % of the picture); classical "
        f"inpainting (Telea) filled it."
    )
    return ToolOutput(text, png_file(filled))


def segment_by_name(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """One colour per class, and the share of each class in words."""
    model, processor = models.get(model_id, LOAD_SEGMENTER)
    outputs = run_model(model, processor(images=image, return_tensors="pt"))
    labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])[0].cpu().numpy()
    values, counts = np.unique(labels, return_counts=True)
    shares = ", ".join(
        f"{model.config.id2label[int(values[i])]} {100 * counts[i] / labels.size:.0f} %" for i in np.argsort(-counts)
    )
    palette = np.random.default_rng(0).integers(40, 256, (max(256, labels.max() + 1), 3), np.uint8)
    return ToolOutput(f"Segments: {shares}.", png_file(palette[labels]))


def estimate_depth(models: ModelCache, model_id: str, image: np.ndarray) -> np.ndarray:
    """Nearness as the network gives it, float32 [H, W]."""
    model, processor = models.get(model_id, LOAD_DEPTH)
    depth = run_model(model, processor(images=image, return_tensors="pt")).predicted_depth[0].float().cpu().numpy()
    return cv2.resize(depth, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def draw_depth(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """A grey picture in which near is white."""
    depth = estimate_depth(models, model_id, image)
    scaled = 255 * (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
    return ToolOutput("Relative depth by a network; white is near.", png_file(scaled.astype(np.uint8)))


def draw_normals(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """Surface normals from the slope of the depth: x, y, z as red, green, blue."""
    depth = estimate_depth(models, model_id, image)
    depth = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
    slope_x, slope_y = cv2.Sobel(depth, cv2.CV_32F, 1, 0, ksize=5), cv2.Sobel(depth, cv2.CV_32F, 0, 1, ksize=5)
    normals = np.stack([-slope_x, slope_y, np.full_like(depth, 0.3)], axis=2)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return ToolOutput(
        "Normals from the depth that a network estimates.", png_file((normals * 127.5 + 127.5).astype(np.uint8))
    )


def classify_picture(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """The three likeliest classes."""
    model, processor = models.get(model_id, LOAD_CLASSIFIER)
    logits = run_model(model, processor(images=image, return_tensors="pt")).logits
    return ToolOutput(name_classes(model, logits))


def name_faces(models: ModelCache, model_id: str, image: np.ndarray) -> ToolOutput:
    """Who each face is like, among those that the network knows; nobody where it is not sure."""
    boxes = find_faces(image)
    if not boxes:
        return ToolOutput("No face was found.")
    model, processor = models.get(model_id, LOAD_CLASSIFIER)
    said = []
    for number, (x, y, w, h) in enumerate(boxes, start=1):
        face = image[max(0, y) : y + h, max(0, x) : x + w]
        chances = run_model(model, processor(images=face, return_tensors="pt")).logits.softmax(-1)[0]
        best = int(chances.argmax())
        name = model.config.id2label[best] if float(chances[best]) >= MIN_SCORE else "nobody whom the network knows"
        said.append(f"face {number} at x {x} to {x + w}, y {y} to {y + h}: {name} ({float(chances[best]):.2f})")
    known = f"The network knows {len(chances)} people, and takes others who are like one of them for that one."
    return ToolOutput(f"{'; '.join(said)}. {known}")


def spell_speech(models: ModelCache, model_id: str, audio: Sound) -> ToolOutput:
    """The words, by a model that spells (wav2vec 2.0)."""
    model, extractor, tokenizer = models.get(model_id, LOAD_LETTERS)
    inputs = extractor(at_working_rate(audio), sampling_rate=WORKING_RATE_HZ, return_tensors="pt")
    return ToolOutput(tokenizer.decode(run_model(model, inputs).logits[0].argmax(-1)).strip())
