"""Poses: OpenPose's picture of made joints, and of people whose joints a tiny network sees at a place that is known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessorPil

from serve.tools.all_tools import load_tools
from serve.tools.hub import poses
from serve.tools.hub.seeing import Box
from serve.tools.models import ModelCache

POSE = "gpt4tools/pose-detection-on-image"
NOSE, NECK, RIGHT_WRIST, LEFT_WRIST = (255, 0, 0), (255, 85, 0), (170, 255, 0), (0, 255, 85)  # OpenPose's


def save_vitpose(folder: Path) -> None:
    """It sees all of COCO's joints in the second of four patches across and down."""
    backbone = VitPoseBackboneConfig(image_size=(32, 32), patch_size=(8, 8), mlp_ratio=1, out_indices=[1],
                                     hidden_size=8, num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))
    with torch.no_grad():
        embeddings = model.backbone.embeddings
        for weight in (embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings,
                       model.head.conv.weight):  # fmt: skip
            weight.zero_()
        embeddings.position_embeddings[0, 1 + 4 + 1, 0] = 10.0
        model.head.conv.weight[:, 0, 1, 1] = 1.0
    model.save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def middle_of(drawn: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """(x, y) of what has exactly one colour."""
    rows, columns = np.nonzero((drawn == colour).all(axis=2))
    return float(columns.mean()), float(rows.mean())


def test_joints_have_openposes_colours_and_a_neck() -> None:
    canvas = np.zeros((512, 512, 3), np.uint8)
    joints = {
        0: (250.0, 50.0),
        5: (300.0, 120.0),
        6: (200.0, 120.0),
        8: (150.0, 200.0),
        10: (130.0, 300.0),
        9: (400.0, 300.0),
    }
    assert poses.draw_person(canvas, joints) == 7, "the neck is one more"
    assert middle_of(canvas, NOSE) == (250, 50)
    assert middle_of(canvas, NECK) == (250, 120)
    assert middle_of(canvas, RIGHT_WRIST) == (130, 300)
    assert middle_of(canvas, LEFT_WRIST) == (400, 300)
    assert canvas[120, 225].tolist() == [153, 0, 0], "from the neck to the right shoulder"
    assert canvas[250, 140].tolist() == [153, 153, 0], "the right forearm"
    assert canvas[300, 300].tolist() == [0, 0, 0], "no elbow, no forearm"
    alone = np.zeros((512, 512, 3), np.uint8)
    assert poses.draw_person(alone, {5: (300.0, 120.0)}) == 1, "one shoulder makes no neck"


def test_every_person_is_drawn_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_vitpose(tmp_path / "vitpose")
    seen: list[Box] = [
        ("person", 0.9, (0, 0, 40, 40)), ("dog", 0.9, (0, 0, 9, 9)), ("person", 0.8, (80, 40, 120, 80)),
    ]  # fmt: skip
    asked: list[str] = []
    monkeypatch.setattr(poses, "find_all", lambda models, model_id, image: asked.append(model_id) or seen)
    spec = load_tools({POSE: str(tmp_path / "vitpose"), "gpt4tools/detection": "lab/detector"})[POSE]
    image, models = np.zeros((100, 140, 3), np.uint8), ModelCache(10**9)
    output = spec.run(models, *spec.model_ids, image=image)
    assert asked == ["lab/detector"]
    assert output.text == "Found 2 people with 18, 18 joints."
    assert output.file is not None
    drawn = np.asarray(Image.open(io.BytesIO(output.file.data)))
    rows, columns = np.nonzero(drawn.any(axis=2))
    first = columns < 60
    # the network looks at a square of 50 around each middle, (20, 20) and (100, 60), and sees them a quarter before it
    assert (columns[first].mean(), rows[first].mean()) == pytest.approx((13.75, 13.75), abs=3)
    assert (columns[~first].mean(), rows[~first].mean()) == pytest.approx((93.75, 53.75), abs=3)
    seen.clear()
    output = spec.run(models, *spec.model_ids, image=image)
    assert output.text == "No person was found, so there is no pose."
