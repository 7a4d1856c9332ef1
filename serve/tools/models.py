"""Hugging Face models behind tools: loaded from a local folder or the hub's cache, kept within a budget of memory."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from serve.tools.spec import ToolError

MODEL_TIMEOUT_S = 600.0  # a picture may take minutes without a GPU
MODEL_MEMORY_MB = 16_384
HUB_TIMEOUT_S = 5.0  # to answer at all

_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        parts: what its tool calls: the model first, then processor, tokenizer or the like.
        n_bytes: of its parameters and buffers.
    """

    parts: tuple[Any, ...]
    n_bytes: int


class ModelCache:
    """The models used last, as many as fit into a budget; for one thread.

    Attributes:
        budget_bytes: for parameters and buffers of all models together; activations come on top.
        n_loads, n_hits, n_evictions: counted since the start.
    """

    def __init__(self, budget_bytes: int, tell_loading: Callable[[bool], None] = lambda _: None) -> None:
        """`tell_loading` is called with True before each load, and with False behind it."""
        self.budget_bytes = budget_bytes
        self._tell_loading = tell_loading
        self.n_loads = self.n_hits = self.n_evictions = 0
        self._models: OrderedDict[tuple[Callable[[str], LoadedModel], str], LoadedModel] = OrderedDict()

    def get(self, model_id: str, load: Callable[[str], LoadedModel]) -> tuple[Any, ...]:
        """The parts of a model, loaded by `load(model_id)` where they are not in memory.

        One that is larger than the whole budget serves this call and is not kept.

        Args:
            model_id: hub id or folder.
            load: one object for all calls, such as a name at the top level of a module: it is part of the key, since
                one model may be loaded for two tasks.

        Raises:
            ToolError: as `load` does.
        """
        key = (load, model_id)
        if key in self._models:
            self.n_hits += 1
            self._models.move_to_end(key)
            return self._models[key].parts
        self._tell_loading(True)
        try:
            loaded = load(model_id)
        finally:
            self._tell_loading(False)
        self.n_loads += 1
        self._models[key] = loaded
        while self.held_bytes > self.budget_bytes:
            self._models.popitem(last=False)
            self.n_evictions += 1
        return loaded.parts

    @property
    def held_bytes(self) -> int:
        """Bytes of all models in memory."""
        return sum(model.n_bytes for model in self._models.values())

    def counts(self) -> dict[str, int]:
        """For metrics."""
        return {
            "models": len(self._models),
            "held_bytes": self.held_bytes,
            "loads": self.n_loads,
            "hits": self.n_hits,
            "evictions": self.n_evictions,
        }


def load_parts(class_names: tuple[str, ...], model_id: str) -> LoadedModel:
    """Load a model and what prepares its input by the names of transformers' classes, that of the model first.

    Safetensors only, and never code that comes with a model. With HF_HUB_OFFLINE set nothing but local files is
    looked at.

    Raises:
        ToolError: "weights_not_available" where the files are not there, or not in a form that is loaded.
    """
    import transformers

    check_within_reach(model_id)
    options = {"local_files_only": is_offline(), "trust_remote_code": False}
    transformers.logging.disable_progress_bar()  # they would fill the log
    model_class, *part_classes = (getattr(transformers, name) for name in class_names)
    try:
        model = model_class.from_pretrained(model_id, use_safetensors=True, **options)
        parts = [part_class.from_pretrained(model_id, **options) for part_class in part_classes]
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise not_available(model_id, f"{type(error).__name__}") from error
    return LoadedModel((put_on_device(model), *parts), count_bytes(model))


def put_on_device(model: Any) -> Any:
    """A torch module where it is to run, which answers and does not learn."""
    import torch

    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def count_bytes(model: Any) -> int:
    """Bytes of the parameters and buffers of a torch module."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def load_diffusion(class_name: str, model_id: str) -> LoadedModel:
    """Load a pipeline or a model by the name of diffusers' class; diffusers is imported here and nowhere else.

    Safetensors only, and never code that comes with a model.

    Raises:
        ToolError: "weights_not_available" where diffusers or the weights are missing.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ToolError(
            "weights_not_available",
            f"weights or packages are not available: {model_id} needs the package diffusers; install it where "
            f"tools run.",
        ) from error
    import torch

    check_within_reach(model_id)
    diffusers.utils.logging.disable_progress_bar()  # they would fill the log
    loaded_class = getattr(diffusers, class_name)
    options = {"local_files_only": is_offline(), "trust_remote_code": False}
    try:
        loaded = loaded_class.from_pretrained(model_id, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise not_available(model_id, type(error).__name__) from error
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(loaded, torch.nn.Module):
        return LoadedModel((loaded,), count_bytes(loaded))
    loaded.set_progress_bar_config(disable=True)
    modules = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
    return LoadedModel((loaded,), sum(count_bytes(module) for module in modules))


def is_offline() -> bool:
    """Whether the hub may not be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE


def has_weights(model_id: str) -> bool:
    """Whether a model lies on this machine: a local folder, or in the hub's cache."""
    if Path(model_id).is_dir() or os.path.isabs(model_id):
        return Path(model_id).is_dir()
    in_cache = (try_to_load_from_cache(model_id, name) for name in ("config.json", "model_index.json"))
    return any(isinstance(path, str) for path in in_cache)


def find_packaged(package: str, folder: str) -> str | None:
    """The folder of weights that a Python package brings, which is a model's id as any other; None where it is missing.

    The package itself is not imported: it may want others that are not installed.
    """
    found = find_spec(package)
    roots = found.submodule_search_locations if found else None
    path = Path(next(iter(roots))) / folder if roots else None
    return str(path) if path and path.is_dir() else None


def check_within_reach(model_id: str) -> None:
    """Ask once whether the hub answers, where its files are needed: a load asks for each of many files again and again.

    Raises:
        ToolError: "weights_not_available" where it does not.
    """
    if is_offline() or os.path.isabs(model_id) or has_weights(model_id):
        return
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise not_available(model_id, "the hub does not answer") from error


def not_available(model_id: str, reason: str) -> ToolError:
    """The error for a model that cannot be loaded."""
    name = os.path.basename(model_id.rstrip("/")) if os.path.isabs(model_id) else model_id
    how = (
        "HF_HUB_OFFLINE is set, so put it into the local cache or give a folder that holds it as safetensors"
        if is_offline()
        else "let the machine reach the hub once, or give a folder that holds it as safetensors"
    )
    return ToolError("weights_not_available", f"weights of {name} are not available ({reason}): {how}.")


def run_model(model: Any, inputs: Any, **more: Any) -> Any:
    """One forward pass on the model's device, without gradients."""
    import torch

    with torch.inference_mode():
        return model(**inputs.to(model.device), **more)


def generate_tokens(model: Any, max_new_tokens: int = 40, **inputs: Any) -> Any:
    """Greedy generation."""
    import torch

    with torch.inference_mode():
        return model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)


def name_classes(model: Any, logits: Any) -> str:
    """The three likeliest classes of [1, classes] with their probabilities."""
    values, indices = (probabilities := logits.softmax(-1)[0]).topk(min(3, len(probabilities)))
    named = (f"{model.config.id2label[int(i)]} ({float(v):.2f})" for v, i in zip(values, indices, strict=True))
    return ", ".join(named)
