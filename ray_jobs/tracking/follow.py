"""`follow`: keep a link to the bundle of MLflow's champion. A service whose `bundle` is that link takes each over."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlflow

from data_pipeline import storage
from data_pipeline.errors import InputError
from model.llm.bundle import load_bundle
from ray_jobs.config import RunSpec
from ray_jobs.tracking.client import default_uri, patiently
from ray_jobs.tracking.model_versions import CHAMPION, get_champion

logger = logging.getLogger(__name__)


def run(spec: RunSpec) -> dict[str, Any]:
    """Set the link to the present champion; with `follow.every_s` go on watching until interrupted.

    Raises:
        InputError: there is no champion, its bundle is faulty, or nothing answers at the tracking server. While
            watching these are told, and the link stays as it is.
    """
    link = spec.champion_link
    if link.exists() and not link.is_symlink():
        raise InputError(f"{link} is there and is no link; move it away, or set follow.link to another path.")
    while True:
        try:
            result = follow_once(spec.tracking_uri, spec.tracking.registered_model, link)
        except InputError as error:
            if spec.follow.every_s is None:
                raise
            print(f"the link stays: {error}", flush=True)
        else:
            if result["is_new"]:
                version, revision = result["version"], result["revision"]
                print(f"champion          version {version}, revision {revision}: {link}", flush=True)
            if spec.follow.every_s is None:
                return result
        time.sleep(spec.follow.every_s)


def follow_once(uri: str, name: str, link: Path) -> dict[str, Any]:
    """Fetch the champion's bundle if it is not there, check it, and set the link to it in one step.

    Args:
        uri: of the tracking server or database.
        name: of the registered model.
        link: its bundles lie beside it, in `<link>-versions/`; on storage that every serving node sees.

    Raises:
        InputError: see `run`.
    """
    champion = get_champion(uri, name)
    if champion is None:
        raise InputError(
            f"the registered model {name!r} has no version with the alias {CHAMPION!r}; run `export`, or give it to "
            "one in MLflow."
        )
    folder = link.with_name(f"{link.name}-versions") / champion.version
    if not storage.open_folder(folder).is_dir():
        _fetch(uri, name, champion.version, folder)
    bundle = load_bundle(folder)
    is_new = os.path.realpath(link) != os.path.realpath(folder)
    if is_new:
        storage.write_link(link, os.path.relpath(folder, link.parent))  # relative: others may mount it elsewhere
    return {"link": str(link), "version": champion.version, "revision": bundle.revision, "is_new": is_new}


def _fetch(uri: str, name: str, version: str, folder: Path) -> None:
    """Download a version's bundle, whole or not at all."""
    source = f"models:/{name}/{version}"
    # MLflow resolves models:/ at its default, whatever a call is told
    with default_uri(uri), storage.replacing_folder(folder, unless=folder.exists) as new:
        download = new / "download"
        download.mkdir()
        patiently(lambda: mlflow.artifacts.download_artifacts(source, dst_path=str(download)), uri)
        found = list(download.rglob("bundle.json"))
        if len(found) != 1:
            raise InputError(
                f"version {version} of the registered model {name!r} holds {len(found)} bundles; give the alias "
                f"{CHAMPION!r} to a version that `export` registered."
            )
        for path in list(found[0].parent.iterdir()):
            os.replace(path, new / path.name)
        shutil.rmtree(download)
