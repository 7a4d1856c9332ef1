"""Several trained models over one backbone in memory: each brings its adapter, its projector and its catalogue."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.errors import InputError
from model.bundle import Bundle
from model.mllm import ToolLLM


class SharedBackbone:
    """The backbone is there once, in the first bundle's precision; one model is active at a time.

    Attributes:
        mllm: the one model object, whichever adapter is active.
    """

    def __init__(self, bundles: Mapping[str, Bundle], device: str = "cpu", dtype: str | None = None) -> None:
        """Build the first bundle's model and attach the others.

        Args:
            bundles: name -> bundle, at least one.
            device, dtype: as in `Bundle.build_mllm`.

        Raises:
            InputError: as `check_shareable`, and where an adapter does not fit.
        """
        check_shareable(bundles)
        (self._active, first), *others = bundles.items()
        self.mllm: ToolLLM = first.build_mllm(device, dtype)
        self._adapters = {self._active: "default"}
        self._projectors = {self._active: self.mllm.projector}
        for i, (name, bundle) in enumerate(others, start=1):
            self._adapters[name] = f"model{i}"  # PEFT's names are parts of parameter names: no dots
            self._projectors[name] = bundle.attach_to(self.mllm, self._adapters[name])
        self.mllm.to(device).eval()

    def activate(self, name: str) -> ToolLLM:
        """The model of that name; until the next call `mllm` is that one. For one thread at a time."""
        if name != self._active:
            self.mllm.llm.set_adapter(self._adapters[name])
            self.mllm.projector = self._projectors[name]
            self._active = name
        return self.mllm


def check_shareable(bundles: Mapping[str, Bundle]) -> None:
    """Refuse bundles that cannot answer over one backbone and one encoder.

    Raises:
        InputError: names the two bundles and what they differ in.
    """
    (first_name, first), *others = bundles.items()
    for name, bundle in others:
        for what, of_first, of_other in (
            ("backbone", first.info.backbone, bundle.info.backbone),
            ("backbone's files", first.backbone_files(), bundle.backbone_files()),
            ("quantisation", first.info.llm_config.get("quantize"), bundle.info.llm_config.get("quantize")),
            ("encoder", first.encoder_id, bundle.encoder_id),
        ):
            if of_first == of_other:
                continue
            values = f" ({of_first!r} and {of_other!r})" if isinstance(of_first, str) else ""
            raise InputError(
                f"the models {first_name!r} and {name!r} cannot be served together: they differ in their "
                f"{what}{values}; serve them as two applications, or train both over the same backbone and encoder."
            )
