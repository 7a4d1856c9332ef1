"""`doctor`: what this machine and installation can do, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from data_pipeline.errors import InputError
from model.imagebind.encoders import load_encoder
from ray_jobs.config import RunSpec

PACKAGES = ("torch", "ray", "transformers", "peft", "deepspeed", "mlflow", "pyarrow", "av", "pillow", "numpy")


def _try_tracking(spec: RunSpec) -> str:
    try:
        return spec.tracking_uri
    except InputError as error:
        return f"none: {error}"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def run(spec: RunSpec) -> dict[str, Any]:
    """Print versions, hardware, and whether the encoder's weights and the tracking store are there."""
    import torch

    report: dict[str, Any] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "free_disk_gib": round(shutil.disk_usage(_existing(spec.work_dir)).free / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "ray_address": os.environ.get("RAY_ADDRESS", "none: a local Ray is started"),
        "tracking_uri": _try_tracking(spec),
    }
    report |= {f"version_{name}": _version(name) for name in PACKAGES}
    for name in ("tiny_imagebind", "imagebind_huge"):
        report[f"encoder_{name}"] = _try_encoder(name)
    for key, value in report.items():
        print(f"{key:<26}{value if value != [] else 'none'}")
    return report


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _try_encoder(name: str) -> str:
    try:
        return load_encoder(name).encoder_id
    except ValueError as error:
        return f"not usable: {error}"
