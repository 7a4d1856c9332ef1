"""The models that one application serves: names that clients choose by, over one backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.catalog import ToolCatalog
from serve.schemas import RequestError


@dataclass(frozen=True)
class ServedModel:
    """What the ingress knows of a model.

    Attributes:
        name: what clients call it.
        catalog: the tools that it was trained on.
        revision: of its bundle.
    """

    name: str
    catalog: ToolCatalog
    revision: str


def find_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """The model that a request names; `RequestError` (404) where there is none."""
    model = models.get(name)
    if model is None:
        raise RequestError(
            f"There is no model {name[:80]!r}; GET /v1/models lists them.", 404, "model_not_found", "model"
        )
    return model
