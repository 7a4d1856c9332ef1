"""What nodes are asked, and what is made of those that do not answer."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from ray_jobs.cluster import ask_nodes

BROKEN = RayTaskError("look", "Traceback\nModuleNotFoundError: no module named 'torch'", ModuleNotFoundError("torch"))


class Task:
    """A remote function; its references are (the node, the arguments)."""

    def __init__(self, node_id: str = "") -> None:
        self._node_id = node_id

    def options(self, *, scheduling_strategy: Any) -> Task:
        assert not scheduling_strategy.soft
        return Task(scheduling_strategy.node_id)

    def remote(self, *arguments: str) -> tuple[str, ...]:
        return (self._node_id, *arguments)


def test_nodes_that_do_not_answer_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    well, broken, silent = (name * 28 for name in ("aa", "bb", "cc"))  # ids are 28 bytes
    cancelled = []

    def get(reference: tuple[str, ...]) -> str:
        if reference[0] == broken:
            raise BROKEN
        return f"{reference[1]} seen"

    def wait(references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return references[:-1], references[-1:]

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "cancel", lambda reference, force: cancelled.append(reference))
    assert ask_nodes([], Task(), "x", patience_s=1.0) == ({}, {})
    nodes = [{"NodeID": node_id} for node_id in (well, broken, silent)]
    found, missing = ask_nodes(nodes, Task(), "x", patience_s=1.5)
    assert found == {well: "x seen"}
    assert missing == {broken: "ModuleNotFoundError: no module named 'torch'", silent: "no answer within 1.5 s"}
    assert cancelled == [(silent, "x")]
