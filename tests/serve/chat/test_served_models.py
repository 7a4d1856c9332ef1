"""What an ingress knows of the models, while the predictor changes them."""

from __future__ import annotations

import asyncio

import pytest

from data_pipeline.records.catalog import Tool, ToolCatalog
from serve.chat.served_models import ServedModels
from serve.engine.messages import ServedModel
from serve.http.schemas import RequestError

CATALOG = ToolCatalog([Tool("deblur", "Sharpens.")])


class _Predictor:
    def __init__(self, *models: ServedModel) -> None:
        self._models = list(models)
        self.n_asked = 0
        self.list_models = self

    async def remote(self) -> list[ServedModel]:
        self.n_asked += 1
        return self._models


def test_the_predictor_is_asked_only_about_another_revision() -> None:
    predictor = _Predictor(ServedModel("a", CATALOG, "new"))
    models = ServedModels([ServedModel("a", CATALOG, "old")], predictor)
    for revision, n_asked in (("old", 0), ("new", 1), ("new", 1)):
        asyncio.run(models.learn("a", revision))
        assert predictor.n_asked == n_asked
    assert models.revisions == {"a": "new"}


def test_a_model_may_go_while_it_answers() -> None:
    models = ServedModels([ServedModel("a", CATALOG, "1")], _Predictor(ServedModel("b", CATALOG, "1")))
    asyncio.run(models.refresh())
    asyncio.run(models.learn("a", "1"))
    assert models.names == ["b"]
    with pytest.raises(RequestError):
        models.find("a")
