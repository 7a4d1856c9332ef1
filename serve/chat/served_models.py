"""The models that one application serves: names that clients choose by, over one backbone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serve.engine.calls import ask
from serve.engine.messages import ServedModel
from serve.http.schemas import RequestError


class ServedModels:
    """What an ingress replica knows of the models. The predictor's replicas take over new bundles by themselves, so an
    answer may come from a newer one than is known here; then this asks anew."""

    def __init__(self, models: Iterable[ServedModel], predictor: Any) -> None:
        self._models = {model.name: model for model in models}
        self._predictor = predictor

    @property
    def names(self) -> list[str]:
        """The main model first."""
        return list(self._models)

    @property
    def revisions(self) -> dict[str, str]:
        """Name -> revision of the bundle."""
        return {name: model.revision for name, model in self._models.items()}

    def find(self, name: str) -> ServedModel:
        """The model that a request names; `RequestError` (404) where there is none."""
        model = self._models.get(name)
        if model is None:
            raise no_such_model(name)
        return model

    async def learn(self, name: str, revision: str) -> None:
        """Take note of the revision that answered; the model may be gone by now."""
        if self.revisions.get(name) != revision:
            await self.refresh()

    async def refresh(self) -> None:
        """Ask a replica of the predictor what it serves."""
        models: list[ServedModel] = await ask(self._predictor.list_models)
        self._models = {model.name: model for model in models}


def no_such_model(name: str) -> RequestError:
    """What a request is told that names another."""
    return RequestError(f"There is no model {name[:80]!r}; GET /v1/models lists them.", 404, "model_not_found", "model")
