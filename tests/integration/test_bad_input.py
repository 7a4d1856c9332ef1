"""Bad input to the commands: one clear sentence, exit code 2, no traceback, and nothing half-written.

Media that cannot be decoded are in tests/data_pipeline/media/test_load.py and tests/ray_jobs/embed/test_job.py, files
of predictions in tests/ray_jobs/score/test_job.py, damaged bundles in tests/model/llm/test_bundle.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.corpus.files import Corpus
from data_pipeline.media.feature_lake import FeatureLake
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.cli import main
from ray_jobs.train.features import save_embed_info
from ray_jobs.train.job import TrainSummary

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

ENCODER_ID = "toy-00000000-mllm_tool"
WIDTH = 4
Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail on its input, leave nothing behind and say why; gives what it said."""

    def run(folder: Path, *arguments: str) -> str:
        before = list_tree(folder)
        capsys.readouterr()
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        said = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1, captured.err
        assert captured.err.rstrip("\n").endswith(said[0]), "the message is the last that is printed"
        assert "Traceback" not in captured.err
        assert not any(line.startswith("{") for line in captured.out.splitlines()), "no JSON line without a result"
        assert list_tree(folder) == before, "nothing is left behind"
        return said[0].removeprefix("error: ")

    return run


def list_tree(folder: Path) -> list[str]:
    """Everything but empty folders of runs."""
    paths = [path for path in folder.rglob("*") if path.is_file() or path.parent.parent.name == "runs"]
    return sorted(str(path.relative_to(folder)) for path in paths)


def write_records(folder: Path, rows: list[object]) -> list[str]:
    """A user's own records, as overrides for `prepare`."""
    (folder / "catalog.txt").write_text("a\nb\n", encoding="utf-8")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [f"runs_dir={folder / 'runs'}", "prepare.source=jsonl", f"prepare.path={folder / 'records.jsonl'}"]


TEXT = {"instruction": "do it", "tools": ["a"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([TEXT, "", '{"instruction": "do'], r"records\.jsonl, line 3: not valid JSON"),
        ([TEXT, {"instruction": "x", "tools": ["zebra"]}], r"line 2: tool 'zebra' is not in the catalogue; add it"),
        ([TEXT, {"instruction": "x"}], "line 2: .*no tool is named"),
        ([TEXT, {"instruction": "x", "tools": ["a"], "tool": "a"}], "line 2: unknown key 'tool'; the keys are"),
        (
            [TEXT, {"instruction": "x", "tools": ["a"], "media": "https://h/x.png"}],
            r"records\.jsonl, line 2: .*address",
        ),
        ([TEXT, {"instruction": "x", "tools": ["a"], "split": "dev"}], "line 2: split is 'dev'; it must be one of"),
        ([], "no usable record"),
    ],
)
def test_bad_records(tmp_path: Path, fails: Fails, rows: list[object], message: str) -> None:
    overrides = write_records(tmp_path, rows)
    assert matches(message, fails(tmp_path, "prepare", *overrides))


def matches(pattern: str, text: str) -> bool:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
    return True


def test_bad_places_of_records(tmp_path: Path, fails: Fails) -> None:
    overrides = write_records(tmp_path, [TEXT])
    said = fails(tmp_path, "prepare", *overrides, f"prepare.media_root={tmp_path / 'nowhere'}")
    assert matches("media_root .*nowhere is not a folder", said)
    said = fails(tmp_path, "prepare", *overrides, f"prepare.path={tmp_path / 'absent.jsonl'}")
    assert matches(r"no file .*absent\.jsonl", said)
    said = fails(tmp_path, "prepare", *overrides, f"prepare.catalog={tmp_path / 'absent.jsonl'}")
    assert matches("no tool catalogue at", said)
    assert "did you mean 'epochs'?" in fails(tmp_path, "prepare", *overrides, "train.epoch=3")
    said = fails(tmp_path, "prepare", "prepare.source=toolmmbench", f"runs_dir={tmp_path / 'runs'}")
    assert matches("needs `path`", said)


def test_a_place_that_cannot_be_written_to(tmp_path: Path, fails: Fails) -> None:
    overrides = write_records(tmp_path, [TEXT, TEXT | {"instruction": "do that"}])
    (tmp_path / "taken").write_text("", encoding="utf-8")
    for place in (tmp_path / "taken", tmp_path / "taken" / "runs"):
        said = fails(tmp_path, "prepare", *overrides, f"runs_dir={place}")
        assert matches(
            f"^{tmp_path / 'taken'}.*: (not a directory; )?a file is where a folder is expected; move it away, or name",
            said,
        )
    assert matches("the environment variable 'NOPE' is not set", fails(tmp_path, "prepare", "runs_dir=$NOPE/runs"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "tracking.uri '/.*/mlruns' is a folder of files, to which MLflow .* no longer writes"),
        ("htp://localhost:5000", r"MLflow knows no 'htp' \(did you mean 'http'\?\); it takes http, https, sqlite"),
        ("sqlite://mlflow.db", "names no database file; write sqlite:///mlflow.db"),
        ("sqlite:////{folder}", "names a folder; name a file in it"),
    ],
)
def test_a_tracking_uri_that_is_none(run: Path, tmp_path: Path, fails: Fails, uri: str, message: str) -> None:
    (run / "lake" / "quarantine").mkdir(exist_ok=True)
    assert matches(message, fails(tmp_path, *train_command(run), f"tracking.uri={uri.format(folder=run)}"))


@pytest.mark.slow
def test_a_command_of_its_own_fails_alike(tmp_path: Path) -> None:
    """With a Ray of its own, whose chatter must not bury the message."""
    command = [sys.executable, "-m", "ray_jobs", "prepare", *write_records(tmp_path, [TEXT, "{"])]
    repo = Path(__file__).resolve().parents[2]
    result = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert matches(
        r"^error: .*records\.jsonl, line 2: not valid JSON .*write one JSON object a line\.\n$", result.stderr
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A run `r` with a corpus of 24 texts and 8 pictures whose vectors are in the lake."""
    folder = tmp_path_factory.mktemp("prepared")
    rows: list[object] = [{"instruction": f"text {i}", "tools": ["ab"[i % 2]]} for i in range(24)]
    for i in range(8):
        (folder / f"{i}.png").write_bytes(f"picture {i}".encode())
        rows.append({"instruction": "look", "media": f"{i}.png", "tools": ["ab"[i % 2]]})
    assert main(["prepare", *write_records(folder, rows), "name=r"]) == 0
    run_dir = folder / "runs" / "r"
    corpus = Corpus.open(run_dir / "corpus")
    hashes = {record.media_sha256 for split in ("train", "val", "test") for record in corpus.records(split)} - {""}
    lake = FeatureLake.create(run_dir / "lake", ENCODER_ID, WIDTH, "float32")
    lake.write_features(sorted(hashes), "image", np.ones((len(hashes), WIDTH), np.float32))
    save_embed_info(run_dir, ENCODER_ID, corpus.catalog.content_hash)
    build_tiny_backbone(
        folder / "backbone", ["text look a b"] * 3, vocab_size=300, hidden_size=8, n_layers=1, n_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    shutil.copytree(prepared, tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "r"


def train_command(run: Path, *overrides: str) -> list[str]:
    backbone = run.parent.parent / "backbone"
    return [
        "train",
        f"runs_dir={run.parent}",
        "name=r",
        f"model.backbone={backbone}",
        "train.max_failures=0",
        *overrides,
    ]


def test_training_without_what_it_needs(run: Path, tmp_path: Path, fails: Fails) -> None:
    said = fails(tmp_path, *train_command(run), "name=other")
    assert matches("no corpus at .*other.*run `prepare` first", said)
    said = fails(tmp_path, *train_command(run), "model.backbone=/no/such/vicuna")
    assert matches("there is no backbone folder '/no/such/vicuna'", said)
    said = fails(tmp_path, *train_command(run), "model.backbone=nobody/nothing")
    assert matches("the tokenizer of backbone 'nobody/nothing' cannot be loaded", said)
    (run / "embed.json").unlink()
    said = fails(tmp_path, *train_command(run))
    assert matches(r"has \d media but .*embed\.json is missing; run `embed` first", said)


def test_no_room_for_a_question(run: Path, tmp_path: Path, fails: Fails) -> None:
    said = fails(tmp_path, *train_command(run), "train.max_target_tokens=16")
    assert matches(r"^max_target_tokens leaves -?\d+ tokens for a question", said)


def test_a_corrupt_shard(run: Path, tmp_path: Path, fails: Fails) -> None:
    shard = run / "corpus" / "train" / "part-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    for command in (train_command(run), ["embed", *train_command(run)[1:]]):
        assert matches(r"part-00000\.parquet cannot be used: .*run `prepare` again", fails(tmp_path, *command))
    shard.write_bytes(content[:100])
    assert matches("100 bytes instead of", fails(tmp_path, *train_command(run)))


def test_a_catalogue_that_changed(run: Path, tmp_path: Path, fails: Fails) -> None:
    """By hand, and by preparing the corpus anew under the vectors that are there."""
    catalog = run / "corpus" / "catalog.jsonl"
    original = catalog.read_text()
    catalog.write_text(original + '{"tool_id": "c"}\n')
    assert matches("was altered since `prepare` wrote it", fails(tmp_path, *train_command(run)))
    catalog.write_text(original)
    folder = run.parent.parent
    (folder / "catalog.txt").write_text("a\nb\nc\n")
    source = ["prepare.source=jsonl", f"prepare.path={folder / 'records.jsonl'}"]
    assert main(["prepare", f"runs_dir={run.parent}", "name=r", *source]) == 0
    said = fails(tmp_path, *train_command(run))
    assert matches("the tool catalogue of .* changed after `embed` ran .*run `embed` again", said)


def test_a_damaged_lake(run: Path, tmp_path: Path, fails: Fails) -> None:
    (shard,) = (run / "lake" / ENCODER_ID / "features").glob("*.parquet")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert matches("feature lake file .* is damaged .*run `embed` again", fails(tmp_path, *train_command(run)))
    (run / "embed.json").write_text('{"encoder_id": "x"')
    assert matches(r"embed\.json is damaged .*run `embed` again", fails(tmp_path, *train_command(run)))


def test_an_unknown_encoder(run: Path, tmp_path: Path, fails: Fails) -> None:
    said = fails(tmp_path, "embed", f"runs_dir={run.parent}", "name=r", "embed.encoder=nonesuch")
    assert matches("unknown encoder 'nonesuch'; give", said)


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_evaluating_or_exporting_what_is_not_there(run: Path, tmp_path: Path, fails: Fails, verb: str) -> None:
    command = [verb, f"runs_dir={run.parent}", "name=r"]
    assert matches(r"train\.json is missing; run `train` first", fails(tmp_path, *command))
    (run / "train.json").write_text('{"best_checkpoint": ')
    assert matches(r"train\.json is damaged .*run `train` again", fails(tmp_path, *command))
    corpus = Corpus.open(run / "corpus")
    checkpoint = run / "checkpoints" / "best"
    fields = {
        "metrics": {},
        "mlflow_run_id": "x",
        "encoder_id": ENCODER_ID,
        "model_config": {"backbone": "/gone/vicuna"},
        "max_target_tokens": 64,
    }
    TrainSummary(str(checkpoint), str(checkpoint), data_hash="0" * 64, **fields).save(run)
    assert matches("the checkpoint .*best is gone or incomplete", fails(tmp_path, *command))
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainables.safetensors").touch()
    said = fails(tmp_path, *command)
    assert matches("is not the one that the model was trained on; run `train` on it", said)
    TrainSummary(str(checkpoint), str(checkpoint), data_hash=corpus.data_hash, **fields).save(run)
    assert matches("there is no backbone folder '/gone/vicuna'", fails(tmp_path, *command))
