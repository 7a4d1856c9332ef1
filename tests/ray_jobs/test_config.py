"""Run configs: strict keys, typed overrides, every fault at once, and the files that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import InputError
from ray_jobs.config import CONFIGS, RunSpec, config_names, load_run_spec
from ray_jobs.train_options import TrainOptions


def test_defaults_hold_without_a_file() -> None:
    spec = load_run_spec(None, [])
    assert spec == RunSpec()
    assert (spec.train.lr, spec.train.warmup_steps, spec.model.lora_r) == (5e-4, 10, 32), "MLLM-Tool Table 4"


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_loads_and_holds_only_differences(name: str) -> None:
    spec = load_run_spec(name, [])
    assert spec == load_run_spec(str(CONFIGS / f"{name}.yaml"), [])
    tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    assert spec.name == name, "a config's runs lie in a folder of its name"
    assert spec != RunSpec(name=name), "a config that changes nothing is none"


MLLM_TOOL_BACKBONES = {
    "vicuna_7b": "lmsys/vicuna-7b-v1.5",
    "vicuna_13b": "lmsys/vicuna-13b-v1.5",
    "llama_7b": "huggyllama/llama-7b",
    "llama_13b": "huggyllama/llama-13b",
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2_chat_7b": "meta-llama/Llama-2-7b-chat-hf",
    "llama2_chat_13b": "meta-llama/Llama-2-13b-chat-hf",
}


@pytest.mark.parametrize("name", MLLM_TOOL_BACKBONES)
def test_mllm_tool_s_table_4(name: str) -> None:
    """Its values, and its 4 GPUs with 4 and 8 accumulated micro batches."""
    spec = load_run_spec(name, [])
    train, model = spec.train, spec.model
    is_13b = name.endswith("13b")
    assert (train.epochs, train.global_batch_size, train.micro_batch_size) == ((10, 32, 1) if is_13b else (5, 64, 4))
    assert train.global_batch_size // (train.micro_batch_size * train.max_workers) == (8 if is_13b else 4)
    assert (train.lr, train.betas, train.weight_decay, train.warmup_steps) == (5e-4, (0.9, 0.95), 0.001, 10)
    assert (train.schedule, train.max_target_tokens, train.max_workers) == ("linear", 512, 4)
    assert (model.lora_r, model.lora_alpha, model.lora_dropout, model.lora_target) == (32, 32, 0.1, "attention")
    assert (model.adapter, model.dtype, model.quantize, model.modules_to_save) == ("lora", "bfloat16", "none", [])
    assert model.backbone == MLLM_TOOL_BACKBONES[name]
    assert (spec.prepare.source, spec.embed.encoder, train.use_gpu) == ("toolmmbench", "imagebind_huge", True)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("gpt4tools_vicuna_13b", "lmsys/vicuna-13b-v1.5"), ("gpt4tools_opt_13b", "facebook/opt-13b")],
)
def test_gpt4tools_values(name: str, backbone: str) -> None:
    """Its supplement's Table 6; for OPT with the learning rate of Vicuna."""
    spec = load_run_spec(name, [])
    train, model = spec.train, spec.model
    assert (train.epochs, train.global_batch_size, train.zero_stage, train.max_workers) == (3, 512, 2, 8)
    assert (train.lr, train.betas, train.weight_decay, train.warmup_steps) == (3e-4, (0.9, 0.999), 0.0, 100)
    assert train.max_dialogue_tokens == train.pack_tokens == 2048
    assert (model.lora_r, model.lora_alpha, model.lora_dropout, model.lora_target) == (16, 16, 0.05, "attention")
    assert (model.backbone, model.dtype, spec.prepare.source) == (backbone, "bfloat16", "gpt4tools")


def test_a_resolved_config_gives_itself_again(tmp_path: Path) -> None:
    spec = load_run_spec("demo", ["train.lr=1e-3", "prepare.path=/data/x", "train.max_steps=7"])
    path = tmp_path / "resolved.yaml"
    path.write_text(spec.to_yaml(), encoding="utf-8")
    assert load_run_spec(str(path), []) == spec


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr=5e-4", "train", "lr", 5e-4),
        ("train.lr=1.5E-3", "train", "lr", 1.5e-3),
        ("train.epochs=3", "train", "epochs", 3),
        ("train.use_gpu=true", "train", "use_gpu", True),
        ("train.max_steps=null", "train", "max_steps", None),
        ("train.betas=[0.8, 0.9]", "train", "betas", (0.8, 0.9)),
        ("model.modules_to_save=[lm_head]", "model", "modules_to_save", ["lm_head"]),
        ("tracking.uri=http://host:5000/a=b", "tracking", "uri", "http://host:5000/a=b"),
        ("prepare.path=/data/my corpus", "prepare", "path", Path("/data/my corpus")),
        ("prepare.path=/data/my #1 corpus: old", "prepare", "path", Path("/data/my #1 corpus: old")),
        ("prepare.path='/data/my #1 corpus'", "prepare", "path", Path("/data/my #1 corpus")),
        ("prepare.path=*.jsonl", "prepare", "path", Path("*.jsonl")),
        ("prepare.path=2024", "prepare", "path", Path("2024")),
        ("train.use_gpu=off", "train", "use_gpu", False),
        ("train.use_gpu=yes", "train", "use_gpu", True),
        ("train.warmup_steps=1_000", "train", "warmup_steps", 1000),
        ("train.warmup_steps=012", "train", "warmup_steps", 12),
        (" train.epochs = 3 ", "train", "epochs", 3),
        ("evaluate.agent_model=no", "evaluate", "agent_model", "no"),
    ],
)
def test_overrides_are_typed(override: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(load_run_spec("demo", [override]), section), key)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_an_override_wins_over_the_file_and_the_last_over_the_first() -> None:
    spec = load_run_spec("demo", ["train.epochs=2", "name=mine", "train.epochs=9"])
    assert (spec.train.epochs, spec.name) == (9, "mine")
    assert spec.train.workers == load_run_spec("demo", []).train.workers


def test_an_unknown_key_lists_the_valid_ones_and_a_close_match() -> None:
    with pytest.raises(InputError) as error:
        load_run_spec("demo", ["train.epoch=3"])
    text = str(error.value)
    assert "unknown key 'train.epoch' (did you mean 'epochs'?)" in text
    assert f"valid keys there are {', '.join(sorted(TrainOptions.model_fields))}" in text
    with pytest.raises(InputError, match=r"unknown key 'zzz'; valid keys there are audit, embed, evaluate, export, "):
        load_run_spec(None, ["zzz=1"])


def test_all_faults_come_in_one_message() -> None:
    overrides = ["train.epochs=0", "train.learning=1", "model.lora_dropout=2", "evaluate.top_k=many", "name=a/b"]
    with pytest.raises(InputError) as error:
        load_run_spec("demo", overrides)
    text = str(error.value)
    assert "5 fault(s)" in text
    for part in ("train.epochs = 0", "'train.learning'", "model.lora_dropout = 2", "evaluate.top_k = 'many'", "name ="):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs"], "'epochs' is not of the form key.path=value"),
        (["=3"], "not of the form"),
        (["name.x=3"], "'name' is a value, not a section"),
        (["train=5"], r"train = 5: input should be a valid dictionary"),
        (["train.epochs=3", "train=fast"], "train = 'fast'"),
        (["train.lr=-1.5E-3"], r"train\.lr = -0\.0015: input should be greater than 0"),
        (["train.betas=[1, 2"], "not valid YAML"),
        (["prepare.path='/data' # old"], "not valid YAML"),
        (["train.max_steps="], r"'train\.max_steps=' has no value; give one, or write train\.max_steps=null"),
        (["train={lr: 1, lr: 2}"], "the key 'lr' stands twice; leave one of them"),
        (["train.lr=inf"], "should be a finite number"),
        (["train.workers=many"], r"1 fault\(s\): train\.workers = 'many': input should be a valid integer.* or input"),
        (["train.workers=[4]"], r"1 fault\(s\): train\.workers = \[4\]: "),
        (["train.workers=[8, 4]"], "more workers at least than at most; swap the two"),
        (["train.epochs=2", "train.projector_epochs=3"], r"train\.projector_epochs=3 is more than train\.epochs=2"),
        (["prepare.also=[{source: jsonl, pth: x}]"], r"unknown key 'prepare\.also\.0\.pth' \(did you mean 'path'\?\)"),
    ],
)
def test_a_malformed_override_is_an_input_error(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_run_spec("demo", overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [", "not valid YAML"),
        (b"- a\n- b\n", "must hold a mapping of config keys, not a list"),
        (b"just words", "not a str"),
        (b"1: 2\n", "keys should be strings"),
        (b"name: \xff\n", "not UTF-8"),
        ("name: x\n".encode("utf-16"), "not UTF-8"),
        (b"name: a\ntrain: {lr: 1}\nname: b\n", r"the key 'name' stands twice \(lines 1 and 3\); leave one of them"),
        (b"train:\n  lr: 1\n  epochs: 2\n  lr: 3\n", r"the key 'lr' stands twice \(lines 2 and 4\)"),
        (b"train: {lr: 1}\n# ...\ntrain: {epochs: 2}\n", r"the key 'train' stands twice \(lines 1 and 3\)"),
        (b"train: [lr, 3]\n", "train = .*: it is a section of keys"),
        (b"train.lr: 3\n", "unknown key 'train.lr' .in a file, sections are written as mappings"),
        (b"seed: !!int x\n", "not valid YAML"),
        (b"seed: " + b"[" * 5000, "not valid YAML"),
        (b"#" * (2**20 + 1), "more than 1048576 bytes"),
        (b"train: {lr: 1e-3, lr2: 1}\n", "'train.lr2'"),
    ],
)
def test_a_bad_file_is_an_input_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_run_spec(str(path), [])


@pytest.mark.parametrize("name", ["on", "no", "12", "012", "1e3", "2024-01-01", "2024-13-45", "1_0", "1.10"])
def test_a_name_is_the_text_that_stands_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"name: {name}\n", encoding="utf-8")
    assert load_run_spec(str(path), []).name == name
    assert load_run_spec(None, [f"name={name}"]).name == name
    path.write_text(load_run_spec(None, [f"name={name}"]).to_yaml(), encoding="utf-8")
    assert load_run_spec(str(path), []).name == name, "the resolved config gives itself again"


def test_a_file_may_leave_out_and_share(tmp_path: Path) -> None:
    """A section without keys changes nothing, merge keys override nothing that is said twice, 5e-4 is a number."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "embed: &actors {num_actors: 3}\nevaluate: {<<: *actors, num_actors: 2, top_k: 4}\n"
        "train:\n  # lr: 1\ntune: {parameters: {train.lr: [5e-4, 1e-3]}}\n",
        encoding="utf-8",
    )
    spec = load_run_spec(str(path), ["train.epochs=2"])
    assert (spec.evaluate.num_actors, spec.evaluate.top_k, spec.embed.num_actors, spec.train.epochs) == (2, 4, 3, 2)
    assert spec.tune.parameters == {"train.lr": [5e-4, 1e-3]}
    assert load_run_spec(str(path), []).train == TrainOptions()


def test_a_mapping_for_a_section_sets_the_keys_that_it_names() -> None:
    spec = load_run_spec("demo", ["train.epochs=3", "train={lr: 1e-4}", "train.mixture={a: 1}", "train.mixture={b: 2}"])
    assert (spec.train.epochs, spec.train.lr, spec.train.workers) == (3, 1e-4, 2)
    assert spec.train.mixture == {"b": 2}, "which is no section: a value like others"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give the path of a YAML file or one of"):
        load_run_spec(str(tmp_path), [])
    with pytest.raises(InputError, match="no run config ''"):
        load_run_spec("", [])
    with pytest.raises(InputError, match="/proc/self/mem cannot be read: Input/output error"):
        load_run_spec("/proc/self/mem", [])


def test_homes_and_variables_are_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    overrides = [
        "runs_dir=~/runs",
        "lake_dir=$DATA/lake",
        "follow.link=${DATA}/champion",
        "prepare.path=~/records.jsonl",
        "prepare.media_root=~/",
        "prepare.also=[{source: jsonl, path: $DATA/more.jsonl}]",
        "embed.encoder=~/encoder",
        "model.backbone=$HOME/vicuna",
        "tune.parameters={model.backbone: [~/a, lmsys/vicuna-7b-v1.5]}",
        "tracking.uri=sqlite:///~/mlflow.db",
    ]
    path = tmp_path / "run.yaml"
    path.write_text("lake_dir: ~/other\nprepare: {catalog: $HOME/catalog.txt}\n", encoding="utf-8")
    spec = load_run_spec(str(path), overrides)
    assert [str(place) for place in (spec.runs_dir, spec.lake_dir, spec.follow.link)] == [
        "/home/me/runs",
        "/data/lake",
        "/data/champion",
    ]
    prepare = spec.prepare
    assert [str(place) for place in (prepare.path, prepare.media_root, prepare.catalog, prepare.also[0].path)] == [
        "/home/me/records.jsonl",
        "/home/me",
        "/home/me/catalog.txt",
        "/data/more.jsonl",
    ]
    assert (spec.embed.encoder, spec.model.backbone) == ("/home/me/encoder", "/home/me/vicuna")
    assert spec.tune.parameters == {"model.backbone": ["/home/me/a", "lmsys/vicuna-7b-v1.5"]}
    assert spec.tracking_uri == "sqlite:////home/me/mlflow.db"
    with pytest.raises(
        InputError, match=r"prepare\.path = '\$NOWHERE/x': the environment variable 'NOWHERE' is not set"
    ):
        load_run_spec(None, ["prepare.path=$NOWHERE/x"])


def test_an_unknown_config_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"no run config 'demmo': give the path of a YAML file or one of .*demo"):
        load_run_spec("demmo", [])


def test_paths_of_a_run_follow_from_its_name(tmp_path: Path) -> None:
    spec = RunSpec(name="a", runs_dir=tmp_path)
    assert spec.corpus_dir == tmp_path / "a" / "corpus"
    assert spec.lake_path == tmp_path / "a" / "lake"
    assert spec.tracking_uri == f"sqlite:///{tmp_path}/a/mlflow.db"
    shared = RunSpec.model_validate(
        {"runs_dir": tmp_path, "lake_dir": tmp_path / "lake", "tracking": {"uri": "http://x"}}
    )
    assert (shared.lake_path, shared.tracking_uri) == (tmp_path / "lake", "http://x")


def test_mlflows_variable_names_the_server_where_the_config_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlflow.lab:5000")
    found = [load_run_spec(None, [f"runs_dir={tmp_path}", *more]) for more in ([], ["tracking.uri=http://other:5000"])]
    assert [spec.tracking_uri for spec in found] == ["http://mlflow.lab:5000", "http://other:5000"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert load_run_spec(None, ["name=a", f"runs_dir={tmp_path}"]).tracking_uri == f"sqlite:///{tmp_path}/a/mlflow.db"
