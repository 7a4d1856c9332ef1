"""Tools with a model, proved with tiny random models that the test saves to disk."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slow_model import SLOW
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    T5Config,
    T5ForConditionalGeneration,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from serve.tools.all_tools import load_tools
from serve.tools.media import png_file, wav_file
from serve.tools.models import LoadedModel, ModelCache, find_packaged, load_parts
from serve.tools.run import Caller, ToolRunner
from serve.tools.spec import Sound, ToolError

SIZE = {"height": 32, "width": 32}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEGMENT = "nvidia/segformer-b5-finetuned-ade-640-640"
REWRITE = "Helsinki-NLP/opus-mt-en-fr"
RATE = "siebert/sentiment-roberta-large-english"
SPEECH = "jonatasgrosman/wav2vec2-large-xlsr-53-english"


def save_tokenizer(folder: Path) -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "what", "is", "this", "?"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_models(root: Path) -> dict[str, str]:
    torch.manual_seed(0)
    folders = {
        name: root / name for name in ("caption", "answer", "detect", "depth", "speech", "segment", "rewrite", "rate")
    }
    tokenizer = save_tokenizer(folders["caption"])
    vision = ViTConfig(image_size=32, patch_size=8, **TINY)
    text = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, is_decoder=True, add_cross_attention=True, **TINY
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    VisionEncoderDecoderModel(config).save_pretrained(folders["caption"])
    ViTImageProcessorPil(size=SIZE).save_pretrained(folders["caption"])

    tokenizer = save_tokenizer(folders["answer"])
    labels = {0: "yes", 1: "no", 2: "blue"}
    vilt = ViltConfig(
        vocab_size=len(tokenizer), image_size=32, patch_size=8, max_position_embeddings=40, id2label=labels, **TINY
    )
    ViltForQuestionAnswering(vilt).save_pretrained(folders["answer"])
    ViltProcessor(ViltImageProcessorPil(size={"shortest_edge": 32}), tokenizer).save_pretrained(folders["answer"])

    kinds = {0: "cat", 1: "cup"}
    yolos = YolosForObjectDetection(
        YolosConfig(image_size=[32, 32], patch_size=8, num_detection_tokens=4, id2label=kinds, **TINY)
    )
    with torch.no_grad():
        yolos.class_labels_classifier.layers[-1].bias[1] += 20.0  # every token sees a cup
    yolos.save_pretrained(folders["detect"])
    YolosImageProcessorPil(size=SIZE, do_pad=False).save_pretrained(folders["detect"])

    dpt = DPTConfig(image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
                    fusion_hidden_size=8, **{**TINY, "num_hidden_layers": 4})  # fmt: skip
    DPTForDepthEstimation(dpt).save_pretrained(folders["depth"])
    DPTImageProcessorPil(size=SIZE, keep_aspect_ratio=False).save_pretrained(folders["depth"])

    letters = {letter: number for number, letter in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"])}
    folders["speech"].mkdir()
    (folders["speech"] / "vocab.json").write_text(json.dumps(letters))
    Wav2Vec2CTCTokenizer(str(folders["speech"] / "vocab.json")).save_pretrained(folders["speech"])
    Wav2Vec2FeatureExtractor().save_pretrained(folders["speech"])
    wav2vec = Wav2Vec2Config(vocab_size=len(letters), conv_dim=[16] * 3, conv_stride=[5, 4, 4], conv_kernel=[10, 8, 8],
                             num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **TINY)  # fmt: skip
    Wav2Vec2ForCTC(wav2vec).save_pretrained(folders["speech"])

    segformer = SegformerConfig(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
                                patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
                                decoder_hidden_size=16, id2label={0: "road", 1: "sky", 2: "tree"})  # fmt: skip
    segmenter = SegformerForSemanticSegmentation(segformer)
    with torch.no_grad():
        segmenter.decode_head.classifier.bias[1] += 50.0  # everything is sky
    segmenter.save_pretrained(folders["segment"])
    SegformerImageProcessorPil(size=SIZE).save_pretrained(folders["segment"])

    tokenizer = save_tokenizer(folders["rewrite"])
    t5 = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0,
                  eos_token_id=3, decoder_start_token_id=0)  # fmt: skip
    T5ForConditionalGeneration(t5).save_pretrained(folders["rewrite"])
    tokenizer = save_tokenizer(folders["rate"])
    bert = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, id2label={0: "bad", 1: "good"}, **TINY)
    BertForSequenceClassification(bert).save_pretrained(folders["rate"])
    return {
        SEGMENT: str(folders["segment"]),
        REWRITE: str(folders["rewrite"]),
        RATE: str(folders["rate"]),
        "gpt4tools/get-photo-description": str(folders["caption"]),
        "gpt4tools/answer-question-about-the-image": str(folders["answer"]),
        "gpt4tools/detection": str(folders["detect"]),
        "gpt4tools/predict-depth-on-image": str(folders["depth"]),
        "gpt4tools/predict-normal-map-on-image": str(folders["depth"]),
        SPEECH: str(folders["speech"]),
    }


@pytest.fixture(scope="module")
def model_ids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def runner(model_ids: dict[str, str]) -> Iterator[ToolRunner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        runner = ToolRunner(model_cache_bytes=400_000)
        # as a host does, not folder by folder
        runner.start(has_models=True, specs=[*load_tools(model_ids).values(), SLOW])
        yield runner
        runner.close()


def picture() -> bytes:
    return png_file(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).data


def test_tiny_models_answer_and_stay_loaded(runner: ToolRunner, model_ids: dict[str, str]) -> None:
    tools = load_tools(model_ids)

    def call(tool_id: str, **values: str):
        return runner.run(tools[tool_id], {"image_path": "a", **values}, {"a": picture()})

    assert call("gpt4tools/get-photo-description").text
    answer = call("gpt4tools/answer-question-about-the-image", question="what is this ?").text
    assert answer.split()[0] in ("yes", "no", "blue")
    assert call("gpt4tools/detection").text.startswith("Found 4 objects: cup (1.00)")
    depth = call("gpt4tools/predict-depth-on-image").file
    assert depth is not None
    assert np.asarray(Image.open(io.BytesIO(depth.data))).shape == (40, 60)
    segments = call(SEGMENT)
    assert segments.text == "Segments: sky 100 %."
    assert segments.file is not None
    assert np.asarray(Image.open(io.BytesIO(segments.file.data))).shape == (40, 60, 3)
    call("gpt4tools/predict-depth-on-image")
    loads, hits = runner.model_counts["loads"], runner.model_counts["hits"]
    normals = call("gpt4tools/predict-normal-map-on-image").file
    assert normals is not None
    assert np.asarray(Image.open(io.BytesIO(normals.data))).shape == (40, 60, 3)
    assert runner.model_counts["loads"] == loads  # the depth model serves both tools
    assert runner.model_counts["hits"] == hits + 1
    sound = wav_file(Sound(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 16_000)).data
    assert set(runner.run(tools[SPEECH], {"audio": "s"}, {"s": sound}).text) <= set("abcdefgh </sunk>")
    assert runner.run(tools[REWRITE], {"text": "what is this ?"}, {}).text
    rated = runner.run(tools[RATE], {"text": "what is this ?"}, {}).text
    assert re.fullmatch(r"(good|bad) \(0\.\d\d\), (good|bad) \(0\.\d\d\)", rated)
    assert runner.model_counts["held_bytes"] <= 400_000


def test_loading_has_its_own_limit_and_a_call_ends_when_its_caller_leaves(runner: ToolRunner) -> None:
    loaded = runner.run(SLOW, {"load_s": 2.0, "work_s": 0.1}, {}).text  # a call may take one second
    assert runner.run(SLOW, {"load_s": 2.0, "work_s": 0.1}, {}).text == loaded
    caller = Caller()
    threading.Timer(0.3, caller.leave).start()
    with pytest.raises(ToolError, match="nobody waits") as caught:
        runner.run(replace(SLOW, timeout_s=60.0), {"load_s": 2.0, "work_s": 50.0}, {}, caller=caller)
    assert caught.value.code == "interrupted"
    assert runner.run(SLOW, {"load_s": 2.0, "work_s": 0.1}, {}).text == loaded, "the weights are still there"


@pytest.mark.parametrize(
    ("tool_id", "words"),
    [
        ("gpt4tools/get-photo-description", "HF_HUB_OFFLINE"),
        ("gpt4tools/generate-image-from-user-input-text", "HF_HUB_OFFLINE"),
    ],
)
def test_missing_weights_are_told_by_that_tool_alone(runner: ToolRunner, tool_id: str, words: str) -> None:
    spec = load_tools()[tool_id]
    with pytest.raises(ToolError, match=words) as caught:
        runner.run(spec, {argument.name: "a" for argument in spec.arguments}, {"a": picture()})
    assert caught.value.code == "weights_not_available"


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network a load would ask for each file, several times each, for half a minute."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("serve.tools.models.HUB_TIMEOUT_S", 0.2)
        with pytest.raises(ToolError, match=r"nobody/nothing are not available \(the hub does not answer\)") as caught:
            load_parts(("AutoModel",), "nobody/nothing")
        assert caught.value.code == "weights_not_available"
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_pickled_weights_are_not_loaded(runner: ToolRunner, model_ids: dict[str, str], tmp_path: Path) -> None:
    source = Path(model_ids["gpt4tools/detection"])
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    spec = load_tools({"gpt4tools/detection": str(tmp_path)})["gpt4tools/detection"]
    with pytest.raises(ToolError) as caught:
        runner.run(spec, {"image_path": "a"}, {"a": picture()})
    assert caught.value.code == "weights_not_available"
    assert str(tmp_path) not in caught.value.message


def test_a_packages_weights_are_found_without_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_in_package" / "weights").mkdir(parents=True)
    (tmp_path / "net_in_package" / "__init__.py").write_text("import what_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_packaged("net_in_package", "weights") == str(tmp_path / "net_in_package" / "weights")
    assert find_packaged("net_in_package", "others") is None
    assert find_packaged("no_such_package", "weights") is None


def test_the_cache_keeps_the_models_used_last_within_its_budget() -> None:
    loaded: list[str] = []

    def load(model_id: str) -> LoadedModel:
        loaded.append(model_id)
        return LoadedModel((model_id,), 100 if model_id == "huge" else 4)

    cache = ModelCache(10)
    for model_id in ("a", "b", "a", "c", "a", "b", "huge"):
        assert cache.get(model_id, load) == (model_id,)
    assert loaded == ["a", "b", "c", "b", "huge"]  # c pushed b out, for a had been used since
    assert cache.counts() == {"models": 0, "held_bytes": 0, "loads": 5, "hits": 2, "evictions": 5}


def test_a_model_that_two_tasks_load_is_kept_for_each() -> None:
    cache = ModelCache(10)
    loaders = [partial(lambda task, model_id: LoadedModel((task, model_id), 1), task) for task in ("see", "read")]
    assert [cache.get("a", load)[0] for load in loaders * 2] == ["see", "read", "see", "read"]
    assert (cache.n_loads, cache.n_hits) == (2, 2)
