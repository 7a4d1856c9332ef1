"""`follow`: keep a link to the bundle of MLflow's champion. A service whose `bundle` is that link takes each over.

Bundles lie beside the link, in folders that are named by model, version and registration: what another model or another
server calls version 3 is another folder. Those that nobody can be reading any more are removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow

from data_pipeline import storage
from data_pipeline.errors import InputError
from model.llm.bundle import load_bundle
from ray_jobs.config import RunSpec
from ray_jobs.tracking.client import default_uri, patiently
from ray_jobs.tracking.model_versions import CHAMPION, ChampionInfo, get_champion

KEPT_S = 3600.0  # after the link has left a bundle: a service that was just told of it may be loading it
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
    left_at = None
    while True:
        found_at = os.path.realpath(link)
        if left_at not in (None, found_at):
            print(f"another has set the link to {found_at}; give each `follow` a follow.link of its own", flush=True)
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
        left_at = os.path.realpath(link)
        time.sleep(spec.follow.every_s)


def follow_once(uri: str, name: str, link: Path) -> dict[str, Any]:
    """Fetch the champion's bundle if it is not there, check it, and set the link to it in one step.

    Of the bundles beside the link the present and the previous one stay, those that another link here points to, and
    those that the link has left less than `KEPT_S` ago. Several may follow different models by one link: the last to
    set it stands, and none takes away what another has just fetched.

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
    folder = link.with_name(f"{link.name}-versions") / name_folder(name, champion)
    while True:
        if not storage.open_folder(folder).is_dir():
            _fetch(uri, name, champion.version, folder)
        bundle = load_bundle(folder)
        with storage.locked(folder.parent):
            if not folder.is_dir():  # taken for old by another's `follow`, just before it was linked
                continue
            is_new = os.path.realpath(link) != os.path.realpath(folder)
            if is_new:
                _touch(Path(os.path.realpath(link)), folder)  # until now the link pointed there
                storage.write_link(link, os.path.relpath(folder, link.parent))  # relative: it may be mounted elsewhere
            _remove_old(link, folder)
        return {"link": str(link), "version": champion.version, "revision": bundle.revision, "is_new": is_new}


def name_folder(name: str, champion: ChampionInfo) -> str:
    """Of a version's bundle. The run and the time tell registries apart, and a model that was deleted and made anew."""
    source = hashlib.sha256(f"{name} {champion.run_id} {champion.created_ms}".encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name).lstrip('._')}-{champion.version}-{source[:12]}"


def _touch(previous: Path, current: Path) -> None:
    if previous.parent == Path(os.path.realpath(current.parent)) and previous.is_dir():
        os.utime(previous)


def _remove_old(link: Path, current: Path) -> None:
    """Remove the bundles that `follow_once` does not keep. The caller holds the lock of their folder."""
    storage.clear_partials(current.parent)
    others = [path for path in current.parent.glob("[!.]*") if path != current and (path / "bundle.json").is_file()]
    others.sort(key=lambda path: path.stat().st_mtime)
    linked = {os.path.realpath(path) for path in link.parent.iterdir() if path.is_symlink()}
    for path in others[:-1]:  # the last is the previous one
        age_s = _now_s(current.parent) - path.stat().st_mtime
        if age_s > KEPT_S and os.path.realpath(path) not in linked:
            storage.remove_folder(path)
            logger.info("removed %s", path)


def _now_s(folder: Path) -> float:
    """By the clock of the folder's disk, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


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
