"""The bundle: the folder in which a trained model travels from training to serving (DESIGN 4.6).

    adapter/               PEFT format; loads in plain `peft.PeftModel.from_pretrained`
    projector.safetensors  weight [D, E] and bias [D]
    catalog.jsonl          the tools that answers may name
    wide.safetensors       only where a wide head was trained (`model.wide`)
    backbone/              only where the backbone is a small local folder; a hub model is named by its id
    bundle.json            what belongs together, with the sha256 of every file above

Only safetensors, JSON and a tokenizer's text files are read: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from peft import LoraConfig, set_peft_model_state_dict
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data_pipeline import storage
from data_pipeline.batches.encoding import MAX_TARGET_TOKENS
from data_pipeline.errors import InputError
from data_pipeline.locations import Location, locate
from data_pipeline.records.catalog import CATALOG_FILE, ToolCatalog
from data_pipeline.records.dialogue import DIALOGUE_FORMAT, DIALOGUE_VERSION
from data_pipeline.records.prompts import PROMPT_FORMAT, PROMPT_VERSION
from model.imagebind.encoders import vector_space
from model.llm.bundle_info import BundleInfo, parse_info
from model.llm.config import ModelConfig
from model.llm.gguf import PACKAGED, open_packaged, packaged_name
from model.llm.tool_llm import ToolLLM
from model.scoring.calibration import UNCALIBRATED, Calibration
from model.wide.head import EQUAL_WEIGHT, WeightedHead, WideHead

MAX_COPIED_BACKBONE_BYTES = 64 * 2**20  # a tiny backbone travels along; a real one is fetched by its id

_INFO = "bundle.json"
_PROJECTOR = "projector.safetensors"
_ADAPTER = "adapter"
_BACKBONE = "backbone"
_WIDE = "wide.safetensors"
_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_FILES = ("adapter_config.json", _WEIGHTS)
_BACKBONE_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}  # weights, configs, tokenizers; no pickles


@dataclass(frozen=True)
class Bundle:
    """A checked bundle.

    Attributes:
        folder: where it lies on this machine.
        info: the content of `bundle.json`.
        catalog: the tools.
        revision: 12 hex digits that name this very bundle.
        location: path or URI that it was opened at.
    """

    folder: Path
    info: BundleInfo
    catalog: ToolCatalog
    revision: str
    location: str = ""

    @property
    def encoder_name(self) -> str:
        return self.info.encoder_name

    @property
    def finds_cards(self) -> bool:
        """Whether it was trained to find tools by their descriptions (`train.loss.retrieval`)."""
        loss = self.info.resolved_config.get("train", {}).get("loss", {})
        return isinstance(loss, dict) and loss.get("retrieval", 0) > 0

    @property
    def encoder_id(self) -> str:
        return self.info.encoder_id

    @cached_property
    def wide(self) -> WeightedHead | None:
        """The wide head, if it has one; InputError where its file is none."""
        if _WIDE not in self.info.files:
            return None
        return WeightedHead(WideHead.from_bytes((self.folder / _WIDE).read_bytes()), self.info.wide_weight)

    def build_mllm(self, device: str = "cpu", dtype: str | None = None) -> ToolLLM:
        """The trained model in evaluation mode.

        Args:
            device: "cpu", "cuda", "cuda:1", ...
            dtype: "float32" or "bfloat16", unquantised; None: as trained.

        Raises:
            InputError: the adapter or the projector does not fit the backbone, or it was trained on a quantised one and
                this machine cannot quantise.
        """
        changes: dict[str, Any] = {"gradient_checkpointing": False, "backbone": self.backbone_source()}
        if dtype is not None:
            changes |= {"dtype": dtype, "quantize": "none"}
        mllm = ToolLLM.build(_parse_llm_config({**self.info.llm_config, **changes}, self.folder))
        self._load_adapter(mllm, "default")
        self._load_projector(mllm.projector)
        return mllm.to(device).eval()

    def attach_to(self, mllm: ToolLLM, adapter_name: str) -> nn.Linear:
        """Put this bundle's adapter beside those that a model over the same backbone has; none is switched.

        Args:
            mllm: of another bundle.
            adapter_name: as PEFT shall know it: letters and digits, not there yet.

        Returns:
            this bundle's projector.

        Raises:
            InputError: the adapter or the projector does not fit the backbone.
        """
        config = LoraConfig.from_pretrained(str(self.folder / _ADAPTER))
        mllm.llm.add_adapter(adapter_name, config)
        self._load_adapter(mllm, adapter_name)
        projector = self.load_projector(mllm.projector.out_features, mllm.projector.weight.dtype)
        return projector.to(mllm.projector.weight.device)

    def load_projector(self, width: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The projector alone, for a backbone of that width; InputError where it does not fit."""
        projector = nn.Linear(int(self.info.llm_config["encoder_dim"]), width, dtype=dtype)
        self._load_projector(projector)
        return projector.eval()

    def backbone_source(self) -> str:
        """Where the backbone is loaded from: a folder, or the id of a hub model."""
        if self.info.has_backbone:
            return str(self.folder / _BACKBONE)
        return str(open_packaged(self.info.backbone)) if self.info.backbone in PACKAGED else self.info.backbone

    @property
    def adapter_folder(self) -> Path:
        """In PEFT's form."""
        return self.folder / _ADAPTER

    def backbone_files(self) -> dict[str, str]:
        """File -> sha256 of a backbone that the bundle carries; equal for equal backbones."""
        return {path: sha256 for path, sha256 in self.info.files.items() if path.startswith(f"{_BACKBONE}/")}

    def _load_adapter(self, mllm: ToolLLM, adapter_name: str) -> None:
        adapter = _load_tensors(self.folder / _ADAPTER / _WEIGHTS)
        try:
            result = set_peft_model_state_dict(mllm.llm, adapter, adapter_name=adapter_name)
        except RuntimeError as error:
            raise InputError(
                f"bundle {self.folder}: the adapter does not fit the backbone; give the one it was trained on."
            ) from error
        if result.unexpected_keys:
            raise InputError(
                f"bundle {self.folder}: the backbone has no place for {result.unexpected_keys[0]!r} of the adapter; "
                "give the one it was trained on."
            )
        own = [name for name in result.missing_keys if adapter_name in name.split(".")]
        absent = [name for name in own if "lora_" in name or "modules_to_save" in name]
        if absent:
            raise InputError(f"bundle {self.folder}: the adapter lacks {absent[0]!r}; export the run again.")

    def _load_projector(self, projector: nn.Linear) -> None:
        try:
            projector.load_state_dict(_load_tensors(self.folder / _PROJECTOR))
        except RuntimeError as error:
            raise InputError(
                f"bundle {self.folder}: {_PROJECTOR} does not fit the backbone's width; export the run again."
            ) from error


def save_bundle(
    folder: Location,
    *,
    mllm: ToolLLM,
    catalog: ToolCatalog,
    encoder_id: str,
    encoder_name: str,
    model_config: ModelConfig,
    data_hash: str,
    metrics: Mapping[str, Any],
    resolved_config: Mapping[str, Any],
    git_revision: str,
    backbone: str | None = None,
    max_target_tokens: int = MAX_TARGET_TOKENS,
    writes_dialogues: bool = True,
    calibration: Calibration = UNCALIBRATED,
    wide: WeightedHead | None = None,
    adapter_dtype: Literal["float32", "bfloat16"] = "float32",
) -> BundleInfo:
    """Write a bundle, which appears whole; an older bundle of that name is replaced.

    Args:
        folder: where it shall lie, on a disk or in a bucket.
        mllm: the model with its trained values; it may be a sketch else.
        catalog: the tools that it was trained on.
        encoder_id: `Encoder.encoder_id` of the feature lake that it was trained on.
        encoder_name: what `load_encoder` is given for that encoder; a folder must be there when serving too.
        model_config: what `mllm` was built from.
        data_hash: `Corpus.data_hash`.
        metrics, resolved_config, git_revision: its quality; the run config with all defaults; the code, "" if unknown.
        backbone: hub id or folder; default: where the language model came from. A packaged one's is told by its name.
        max_target_tokens: as in training.
        writes_dialogues, calibration: see `BundleInfo`.
        wide: what answers together with the language model, if anything does.
        adapter_dtype: of the adapter's weights on disk; PEFT computes with them in float32 either way.

    Raises:
        InputError: the folder holds something else, or the backbone cannot travel.
    """
    found = storage.open_folder(folder)
    if not storage.exists(found / _INFO) and not storage.is_empty(found):
        raise InputError(f"{folder} is not empty and not a bundle; choose another folder for the bundle.")
    backbone = backbone or model_config.backbone
    with storage.replacing_folder(folder) as partial, storage.staged_locally(partial) as temporary:
        has_backbone = _copy_small_backbone(Path(backbone), temporary / _BACKBONE)
        backbone = _BACKBONE if has_backbone else packaged_name(Path(backbone)) or backbone
        _save_adapter(mllm, temporary / _ADAPTER, backbone, getattr(torch, adapter_dtype))
        projector = {name: value.detach().cpu().contiguous() for name, value in mllm.projector.state_dict().items()}
        save_file(projector, temporary / _PROJECTOR)
        catalog.save_jsonl(temporary / CATALOG_FILE)
        if wide is not None:
            storage.write_file(temporary / _WIDE, wide.head.to_bytes())
        info = BundleInfo(
            backbone=backbone,
            has_backbone=has_backbone,
            encoder_id=encoder_id,
            encoder_name=encoder_name,
            prompt_format=PROMPT_FORMAT,
            prompt_version=PROMPT_VERSION,
            dialogue_format=DIALOGUE_FORMAT,
            dialogue_version=DIALOGUE_VERSION,
            max_target_tokens=max_target_tokens,
            writes_dialogues=writes_dialogues,
            calibration=calibration,
            wide_weight=EQUAL_WEIGHT if wide is None else wide.weight,
            catalog_hash=catalog.content_hash,
            data_hash=data_hash,
            llm_config={**model_config.model_dump(mode="json"), "backbone": backbone},
            resolved_config=dict(resolved_config),
            metrics=dict(metrics),
            git_revision=git_revision,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path: storage.hash_file(temporary / path) for path in _relative_files(temporary)},
        )
        storage.write_file(temporary / _INFO, info.model_dump_json(indent=2) + "\n")
    return info


def load_bundle(folder: str | Location) -> Bundle:
    """Read and check a bundle: all files are there and unchanged, and this code renders the prompt of its training.

    Args:
        folder: where it lies; out of a bucket it is fetched once, into this user's cache.

    Raises:
        InputError: says which of it is wrong, and how to mend it.
    """
    location = locate(folder).absolute()
    try:
        folder = storage.fetch_folder(location).resolve()  # a link may be set elsewhere while its files are read
    except FileNotFoundError:
        raise InputError(f"no bundle at {location}; give the folder that `export` wrote.") from None
    if not (folder / _INFO).is_file():
        raise InputError(f"no bundle at {folder} (it has no {_INFO}); give the folder that `export` wrote.")
    raw = (folder / _INFO).read_bytes()
    info = parse_info(raw, folder / _INFO)
    _check_wording(info, folder)
    _check_files(info, folder)
    catalog = ToolCatalog.load_jsonl(folder / CATALOG_FILE)
    if catalog.content_hash != info.catalog_hash:
        raise InputError(
            f"bundle {folder}: {CATALOG_FILE} is not the catalogue that the model was trained on (hash "
            f"{catalog.content_hash[:12]}, trained on {info.catalog_hash[:12]}); export the run again."
        )
    return Bundle(folder, info, catalog, hashlib.sha256(raw).hexdigest()[:12], str(location))


def find_bundle(folder: str) -> str:
    """Where the bundle of a path or URI lies now: what its link points to, or its version in a bucket."""
    found = storage.open_folder(locate(folder))
    return str(found.resolve() if isinstance(found, Path) else found)


def check_encoder(bundle: Bundle, encoder_id: str) -> None:
    """Refuse an encoder other than the one whose vectors the model learned to read (by `vector_space`).

    Args:
        bundle: the trained model.
        encoder_id: `Encoder.encoder_id` of the encoder that was loaded.

    Raises:
        InputError: names both.
    """
    if vector_space(encoder_id) != vector_space(bundle.encoder_id):
        raise InputError(
            f"bundle {bundle.folder} was trained on vectors of encoder {bundle.encoder_id!r}, but {encoder_id!r} was "
            "loaded; give that encoder, or embed the corpus with this one and train anew."
        )


def _check_wording(info: BundleInfo, folder: Path) -> None:
    for what, trained, rendered in (
        ("prompt", (info.prompt_format, info.prompt_version), (PROMPT_FORMAT, PROMPT_VERSION)),
        ("dialogues", (info.dialogue_format, info.dialogue_version), (DIALOGUE_FORMAT, DIALOGUE_VERSION)),
    ):
        if trained != rendered:
            raise InputError(
                f"bundle {folder} was trained on {what} {trained[0]!r} version {trained[1]}, this code renders "
                f"{rendered[0]!r} version {rendered[1]}; use the code of revision {info.git_revision or 'then'}, or "
                "train anew."
            )


def _check_files(info: BundleInfo, folder: Path) -> None:
    required = [CATALOG_FILE, _PROJECTOR, *(f"{_ADAPTER}/{name}" for name in _ADAPTER_FILES)]
    for path in [*required, *info.files]:
        pure = PurePosixPath(path)
        if path not in info.files or pure.is_absolute() or ".." in pure.parts:
            raise InputError(f"{folder / _INFO} lists no proper hash for {path!r}; export the run again.")
        if not (folder / path).is_file():
            raise InputError(f"bundle {folder} lacks the file {path}; copy the bundle whole, or export the run again.")
        if storage.hash_file(folder / path) == info.files[path]:
            continue
        if path == CATALOG_FILE:
            raise InputError(
                f"bundle {folder}: {CATALOG_FILE} was changed after training, but the model knows only the tools it "
                "was trained on; restore the file, or train on the new catalogue and export again."
            )
        raise InputError(f"bundle {folder}: {path} was changed or damaged (its sha256 differs); copy the bundle again.")
    unlisted = [path for path in _relative_files(folder) if "/" in path and path not in info.files]
    if unlisted:
        raise InputError(f"bundle {folder} holds a file that it does not list, {unlisted[0]}; remove it.")


def _relative_files(folder: Path) -> list[str]:
    """Every file below the folder but `bundle.json` and notes of `storage`, as sorted POSIX paths."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())
    return sorted(path for path in paths if path != _INFO)


def _copy_small_backbone(source: Path, target: Path) -> bool:
    """Copy a small local backbone; False for a hub id and for a folder too large to travel."""
    if not source.is_dir():
        return False
    files = [path for path in sorted(source.iterdir()) if path.is_file() and path.suffix in _BACKBONE_SUFFIXES]
    if sum(path.stat().st_size for path in files) > MAX_COPIED_BACKBONE_BYTES:
        return False
    if not any(path.suffix == ".safetensors" for path in files):
        raise InputError(f"backbone {source} has no safetensors weights; save it with save_pretrained first.")
    target.mkdir()
    for path in files:
        shutil.copyfile(path, target / path.name)
    return True


def _save_adapter(mllm: ToolLLM, folder: Path, backbone: str, dtype: torch.dtype) -> None:
    # modules_to_save holds trained embeddings already; "auto" would look for the backbone on the hub
    mllm.llm.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    if dtype is not torch.float32:  # else as trained
        weights = load_file(folder / _WEIGHTS)
        save_file({name: weight.to(dtype) for name, weight in weights.items()}, folder / _WEIGHTS, {"format": "pt"})
    for path in folder.iterdir():
        if path.name not in _ADAPTER_FILES:  # PEFT's model card
            path.unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = backbone  # not the path of the machine that trained it
    storage.write_file(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _parse_llm_config(values: Mapping[str, Any], folder: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            f"{folder / _INFO}: llm_config {'.'.join(map(str, fault['loc']))!r}: {fault['msg']}; export the run again."
        ) from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy the bundle again.") from error
