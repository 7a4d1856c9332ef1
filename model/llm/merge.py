"""A bundle as one language model in Hugging Face form, its adapter merged: for engines that take no such adapter.

    python -m model.llm.merge BUNDLE --out FOLDER [--dtype bfloat16]

The folder holds weights, config and tokenizer; projector and catalogue stay in the bundle.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from data_pipeline import storage
from data_pipeline.errors import InputError
from model.llm.bundle import Bundle, load_bundle

MERGED_FILE = "toolmm.json"  # which bundle the folder was made from


def merge_bundle(bundle: Bundle, folder: Path, dtype: str = "float32") -> None:
    """Write the merged model; the folder appears whole, and an older one of this kind is replaced.

    Args:
        bundle: of a LoRA, rsLoRA or DoRA run, also one with modules that were trained whole.
        folder: where it shall lie.
        dtype: "float32" or "bfloat16", of the weights on disk; they are summed in float32.

    Raises:
        InputError: the folder holds something else, or the bundle's model cannot be built.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MERGED_FILE).is_file():
        raise InputError(f"{folder} is not empty and holds no merged model; choose another folder.")
    mllm = bundle.build_mllm("cpu", "float32")
    merged = mllm.llm.merge_and_unload()
    if dtype == "bfloat16":
        merged = merged.bfloat16()
    with storage.replacing_folder(folder) as partial:
        merged.save_pretrained(partial)
        mllm.tokenizer.save_pretrained(partial)
        storage.write_file(partial / MERGED_FILE, json.dumps({"revision": bundle.revision, "dtype": dtype}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model.llm.merge", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", help="folder or URI of the bundle")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    try:
        bundle = load_bundle(args.bundle)
        merge_bundle(bundle, args.out, args.dtype)
    except InputError as error:
        print(f"python -m model.llm.merge: {error}", file=sys.stderr)
        return 2
    options = "--enable-prompt-embeds --enable-prefix-caching --generation-config vllm"
    print(f"merged into {args.out}; start vLLM with")
    print(f"--model {args.out} --served-model-name {bundle.revision} {options}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
