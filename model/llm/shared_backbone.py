"""Several trained models over one backbone in memory: each brings its adapter, its projector and its catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from data_pipeline.errors import InputError
from model.imagebind.encoders import vector_space
from model.llm.bundle import Bundle
from model.llm.tool_llm import ToolLLM


class SharedBackbone:
    """The backbone is there once, in the first bundle's precision; one model is active at a time. For one thread.

    In float32 a model that is alone is merged into the backbone: a layer then is one product instead of three, and it
    computes the same up to rounding. In half precision the sum would lose digits of the adapter, which stays beside;
    so it does in float32 once the backbone was wanted without it.

    Attributes:
        mllm: the one model object, whichever adapter is active.
        bundles: name -> bundle of each model, the first one's first.
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
        self.bundles = {self._active: first}
        self.mllm: ToolLLM = first.build_mllm(device, dtype)
        self._adapters = {self._active: "default"}
        self._projectors = {self._active: self.mllm.projector}
        self._n_attached = 0
        self._is_merged = self._is_bare = self._was_bare = False
        for name, bundle in others:
            self.attach(name, bundle)
        self._merge_if_alone()

    def activate(self, name: str) -> ToolLLM:
        """The model of that name; until the next call `mllm` is that one."""
        if self._is_bare:
            self._tuner.enable_adapter_layers()
            self._is_bare = False
        if name != self._active:
            self.mllm.llm.set_adapter(self._adapters[name])
            self.mllm.projector = self._projectors[name]
            self._active = name
        return self.mllm

    def activate_bare(self) -> ToolLLM:
        """The backbone as its makers trained it, without an adapter: `mllm` until `activate` is called."""
        self._was_bare = True
        self._unmerge()
        if not self._is_bare:
            self._tuner.disable_adapter_layers()
            self._is_bare = True
        return self.mllm

    def attach(self, name: str, bundle: Bundle) -> None:
        """Add a model, or put another bundle in a model's place; where it fails, everything is as before.

        Raises:
            InputError: it does not share the backbone or the encoder, or its adapter does not fit.
        """
        others = {other: known for other, known in self.bundles.items() if other != name}
        check_shareable({**(others or self.bundles), f"{name} (new)": bundle})
        if self._is_bare:
            self.activate(self._active)
        self._n_attached += 1
        adapter_name = f"model{self._n_attached}"  # PEFT's names are parts of parameter names: no dots
        device = self.mllm.projector.weight.device
        self._unmerge()
        try:
            projector = bundle.attach_to(self.mllm, adapter_name)
        except InputError:
            self.mllm.llm.delete_adapter(adapter_name)
            self._merge_if_alone()
            raise
        self.mllm.to(device).eval()
        replaced = self._adapters.get(name)
        self._adapters[name], self._projectors[name], self.bundles[name] = adapter_name, projector, bundle
        if self._active == name:
            self._active = ""
            self.activate(name)
        if replaced is not None:
            self.mllm.llm.delete_adapter(replaced)
        self._merge_if_alone()

    @property
    def _tuner(self) -> Any:
        return self.mllm.llm.base_model

    def _merge_if_alone(self) -> None:
        if self._was_bare:
            return
        if len(self.bundles) == 1 and self.mllm.llm.dtype == torch.float32:
            self.mllm.llm.merge_adapter()
            self._is_merged = True

    def _unmerge(self) -> None:
        if self._is_merged:
            self.mllm.llm.unmerge_adapter()
            self._is_merged = False


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
            ("encoder", vector_space(first.encoder_id), vector_space(bundle.encoder_id)),
        ):
            if of_first == of_other:
                continue
            values = f" ({of_first!r} and {of_other!r})" if isinstance(of_first, str) else ""
            raise InputError(
                f"the models {first_name!r} and {name!r} cannot be served together: they differ in their "
                f"{what}{values}; serve them as two applications, or train both over the same backbone and encoder."
            )
