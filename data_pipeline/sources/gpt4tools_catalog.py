"""The 31 tools of GPT4Tools: 23 that its training data use and 8 that only its test data use.

Names: GPT4Tools, supplement Tables 1 and 2. What is said about them is ours.
"""

from __future__ import annotations

import hashlib
import re

from data_pipeline.records.catalog import Tool

PREFIX = "gpt4tools/"

# name, what it does, its arguments, what comes back
_SEEN: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Get Photo Description", "tell what an image shows", ("image_path",), "text"),
    ("Answer Question About The Image", "answer a question about an image", ("image_path", "question"), "text"),
    ("Detect the Given Object", "find one named object in an image", ("image_path", "object"), "image"),
    ("Segment the Given Object", "cut out the mask of one named object", ("image_path", "object"), "image"),
    ("Segment the Image", "divide a whole image into segments", ("image_path",), "image"),
    ("Edge Detection On Image", "draw the canny edges of an image", ("image_path",), "image"),
    ("Line Detection On Image", "draw the straight lines of an image", ("image_path",), "image"),
    ("Hed Detection On Image", "draw the soft hed boundary of an image", ("image_path",), "image"),
    ("Sketch Detection On Image", "turn an image into a scribble sketch", ("image_path",), "image"),
    ("Pose Detection On Image", "find the human poses in an image", ("image_path",), "image"),
    ("Predict Depth On Image", "estimate the depth map of an image", ("image_path",), "image"),
    ("Predict Normal Map On Image", "estimate the normal map of an image", ("image_path",), "image"),
    ("Generate Image From User Input Text", "make a new image from words alone", ("text",), "image"),
    ("Generate Image Condition On Canny Image", "make an image that follows edges", ("image_path", "text"), "image"),
    ("Generate Image Condition On Depth", "make an image that follows a depth map", ("image_path", "text"), "image"),
    (
        "Generate Image Condition On Sketch Image",
        "make an image that follows a sketch",
        ("image_path", "text"),
        "image",
    ),
    (
        "Generate Image Condition On Segmentations",
        "make an image that follows segments",
        ("image_path", "text"),
        "image",
    ),
    ("Generate Image Condition On Pose Image", "make an image that follows a pose", ("image_path", "text"), "image"),
    (
        "Generate Image Condition On Soft Hed Boundary Image",
        "make an image that follows a soft hed boundary",
        ("image_path", "text"),
        "image",
    ),
    (
        "Generate Image Condition On Normal Map",
        "make an image that follows a normal map",
        ("image_path", "text"),
        "image",
    ),
    ("Instruct Image Using Text", "give an image another style", ("image_path", "style"), "image"),
    ("Remove Something From The Photo", "erase an object from a photo", ("image_path", "object"), "image"),
    (
        "Replace Something From The Photo",
        "put something else in the place of an object",
        ("image_path", "object", "replacement"),
        "image",
    ),
)
_UNSEEN: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Text Detection On Image", "read the text written in an image", ("image_path",), "text"),
    ("Detection", "list every object of an image with its box", ("image_path",), "text"),
    ("Image Super-Resolution", "enhance the resolution of an image", ("image_path",), "image"),
    ("Generate 3D Asset From User Input Text", "make a 3D model from words alone", ("text",), "image"),
    ("Crop the Given Object", "crop an image to one named object", ("image_path", "object"), "image"),
    ("Assess the Image Quality", "score the quality of an image", ("image_path",), "text"),
    ("Recognize Face", "tell who appears in an image", ("image_path",), "text"),
    ("Detect Face", "tag the faces in an image", ("image_path",), "image"),
)
_ALIASES = {"detect-the-give-object": "detect-the-given-object"}  # the released data's spelling


def find_tool_id(name: str) -> str:
    """The id of the tool that a dialogue calls `name`; capitals and punctuation do not count."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:  # a name in another script
        slug = hashlib.sha256(name.encode()).hexdigest()[:12]
    return PREFIX + _ALIASES.get(slug, slug)


def _build_tool(name: str, purpose: str, arguments: tuple[str, ...], output_modality: str) -> Tool:
    return Tool(
        tool_id=find_tool_id(name),
        description=purpose[0].upper() + purpose[1:] + ".",
        input_modality="image" if "image_path" in arguments else "text",
        output_modality=output_modality,
        name=name,
        usage=f"to {purpose}. Input: {', '.join(arguments)}",
        arguments=arguments,
    )


GPT4TOOLS_TOOLS = tuple(_build_tool(*entry) for entry in _SEEN + _UNSEEN)
UNSEEN_TOOL_IDS = tuple(find_tool_id(entry[0]) for entry in _UNSEEN)
