"""ToolMM-mini: a fair corpus, the same for the same seed, and honest about what is held out."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.errors import InputError
from data_pipeline.media.load import load_media
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID
from data_pipeline.records.schema import SPLITS, AmbiguityType, Modality, ToolRecord
from data_pipeline.sources.toolmm_mini import SIZES, build_catalog, count_questions, generate
from data_pipeline.sources.toolmm_mini.clips import CLIP_RENDERERS
from data_pipeline.sources.toolmm_mini.media_files import MEDIA_KINDS, file_suffix, render_media, seeded_generator
from data_pipeline.sources.toolmm_mini.pictures import PICTURE_RENDERERS
from data_pipeline.sources.toolmm_mini.questions import load_grammar
from data_pipeline.sources.toolmm_mini.scenes import render_scene
from data_pipeline.sources.toolmm_mini.sounds import RATE_HZ, SOUND_RENDERERS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ToolRecord]]:
    out_dir = tmp_path_factory.mktemp("mini")
    return out_dir, list(generate(out_dir, "test", seed=0))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def test_the_catalogue_is_large_and_covers_every_modality_and_backend() -> None:
    catalog = build_catalog()
    assert len(catalog) >= 40
    assert UNKNOWN_TOOL_ID in catalog
    tools = [tool for tool in catalog if tool.tool_id != UNKNOWN_TOOL_ID]
    assert {tool.input_modality for tool in tools} == {modality.value for modality in Modality}
    assert all(tool.description and tool.output_modality for tool in tools)
    assert all((tool.backend == "local") == tool.tool_id.startswith("local/") for tool in tools)
    assert all(tool.backend == "huggingface" or tool.backend == "local" for tool in tools)


def test_same_seed_same_records_and_bytes(corpus: tuple[Path, list[ToolRecord]], tmp_path: Path) -> None:
    out_dir, records = corpus
    again = list(generate(tmp_path, "test", seed=0))
    assert again == records
    for record in records:
        if record.has_media:
            data = (tmp_path / record.media_uri).read_bytes()
            assert data == (out_dir / record.media_uri).read_bytes()
            assert hashlib.sha256(data).hexdigest() == record.media_sha256


def test_another_seed_gives_other_media_and_words(corpus: tuple[Path, list[ToolRecord]], tmp_path: Path) -> None:
    _, records = corpus
    other = list(generate(tmp_path, "test", seed=1))
    assert not {r.media_sha256 for r in other if r.has_media} & {r.media_sha256 for r in records if r.has_media}
    assert {r.instruction for r in other} != {r.instruction for r in records}


def test_records_are_distinct_and_name_catalogued_tools(corpus: tuple[Path, list[ToolRecord]]) -> None:
    _, records = corpus
    catalog = build_catalog()
    assert len({r.record_id for r in records}) == len(records)
    assert len({(r.instruction, r.media_sha256) for r in records}) == len(records)
    for record in records:
        assert all(tool_id in catalog for tool_id in record.candidate_tool_ids)
        assert set(record.valid_tool_ids) <= set(record.candidate_tool_ids)
        if record.is_ambiguous:
            assert len(record.candidate_tool_ids) >= 3
            assert set(record.valid_tool_ids) < set(record.candidate_tool_ids)
        else:
            assert record.candidate_tool_ids == record.valid_tool_ids


def test_every_type_modality_and_form_of_answer_occurs(corpus: tuple[Path, list[ToolRecord]]) -> None:
    _, records = corpus
    for split in SPLITS:
        part = [r for r in records if r.split == split]
        assert {r.ambiguity_type for r in part} == set(AmbiguityType)
        assert {r.modality for r in part} == set(Modality)
        assert any(len(r.valid_tool_ids) > 1 for r in part)
        assert any(len(r.valid_tool_ids) == 1 for r in part)
        unknown = [r for r in part if r.valid_tool_ids == (UNKNOWN_TOOL_ID,)]
        assert {r.modality for r in unknown} == set(Modality)
    ambiguous = {r.modality for r in records if r.is_ambiguous}
    assert ambiguous == {Modality.IMAGE, Modality.AUDIO, Modality.VIDEO}


def test_no_held_out_wording_or_medium_is_in_training(corpus: tuple[Path, list[ToolRecord]]) -> None:
    _, records = corpus
    words, media = defaultdict(set), defaultdict(set)
    for record in records:
        words[record.split].add(record.instruction)
        if record.has_media:
            media[record.split].add(record.media_sha256)
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not words[first] & words[second]
        assert not media[first] & media[second]


def test_the_grammar_holds_out_wordings_made_of_known_words() -> None:
    grammar = load_grammar()
    known = set[str]()
    for source in grammar.families + grammar.tasks:
        known |= set().union(*map(_words, source.wordings["train"]))
    for source in grammar.families + grammar.tasks:
        train = set(source.wordings["train"])
        for split in ("val", "test"):
            assert not train & set(source.wordings[split])
            new = set().union(*map(_words, source.wordings[split])) - known
            assert not new, f"words that training never shows: {new}"
    for family in grammar.families:
        assert len(family.wordings["train"]) >= 30, family.name
        assert len(family.tools) >= 3, family.name
        assert set(family.tools) <= set(MEDIA_KINDS[family.modality])
    for task in grammar.tasks:
        assert set(task.kinds) <= set(MEDIA_KINDS.get(task.modality, ()))


def test_every_test_tool_occurs_in_training(corpus: tuple[Path, list[ToolRecord]]) -> None:
    _, records = corpus
    in_training = {tool_id for r in records if r.split == "train" for tool_id in r.valid_tool_ids}
    assert {tool_id for r in records for tool_id in r.valid_tool_ids} == in_training
    assert in_training == set(build_catalog().tool_ids)


def test_words_of_an_ambiguous_question_come_with_every_kind_of_medium(
    corpus: tuple[Path, list[ToolRecord]],
) -> None:
    """Balanced classes: whoever ignores the medium is right at chance only."""
    _, records = corpus
    answers = defaultdict(Counter)
    for record in records:
        if record.is_ambiguous:
            answers[record.split, record.instruction, record.candidate_tool_ids][record.valid_tool_ids] += 1
    families = {family.candidate_tool_ids: set(family.tools.values()) for family in load_grammar().families}
    for (_, _, candidates), counts in answers.items():
        assert set(counts) == families[candidates]
        assert len(set(counts.values())) == 1


def test_tool_frequencies_have_a_long_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's proportions, without rendering its media: every medium is replaced by its kind's name."""
    monkeypatch.setattr(
        # the package's `generate` is the function
        importlib.import_module("data_pipeline.sources.toolmm_mini.generate"),
        "render_media",
        lambda modality, kind, rng: f"{kind} {rng.integers(2**60)}".encode(),
    )
    records = list(generate(tmp_path, "demo", seed=0))
    counts = Counter(r.split for r in records)
    assert 2000 <= len(records) <= 3000
    assert count_questions("demo") == len(records), "what a progress bar is told beforehand"
    assert 0.17 <= counts["test"] / len(records) <= 0.24
    files = Counter(r.modality for r in {r.media_uri: r for r in records if r.has_media}.values())
    assert 600 <= files[Modality.IMAGE] <= 1000
    assert 150 <= files[Modality.AUDIO] <= 300
    assert 60 <= files[Modality.VIDEO] <= 120
    asked = sorted(Counter(t for r in records if r.split == "train" for t in r.valid_tool_ids).values())
    assert asked[-1] >= 5 * asked[0]
    assert asked[0] >= 3
    for family in load_grammar().families:
        per_answer = Counter(
            r.valid_tool_ids
            for r in records
            if r.is_ambiguous and r.split == "test" and r.candidate_tool_ids == family.candidate_tool_ids
        )
        assert len(set(per_answer.values())) == 1, family.name


def test_unknown_size_is_refused_with_the_names_of_the_sizes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=", ".join(SIZES)):
        generate(tmp_path, "huge", seed=0)


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.AUDIO, Modality.VIDEO])
def test_media_decode_through_the_product_s_loaders(modality: Modality, corpus: tuple[Path, list[ToolRecord]]) -> None:
    out_dir, records = corpus
    record = next(r for r in records if r.modality is modality)
    loaded = load_media(modality, out_dir / record.media_uri)
    assert loaded.dtype == np.float32
    assert np.isfinite(loaded).all()
    assert loaded.std() > 0.05


@pytest.mark.parametrize("kind", PICTURE_RENDERERS)
def test_pictures_differ_by_seed_and_have_one_form(kind: str) -> None:
    first, second = (PICTURE_RENDERERS[kind](seeded_generator(kind, i)) for i in range(2))
    assert first.shape == second.shape == (256, 256, 3)
    assert first.dtype == np.uint8
    assert (first != second).any()
    assert first.std() > 3


@pytest.mark.parametrize("kind", SOUND_RENDERERS)
def test_sounds_are_audible_and_not_overdriven(kind: str) -> None:
    sound = SOUND_RENDERERS[kind](seeded_generator(kind))
    assert sound.dtype == np.float32
    assert len(sound) == int(2.5 * RATE_HZ)
    assert 0.5 < np.abs(sound).max() < 1.0


def test_motion_is_what_its_name_says() -> None:
    for index in range(3):
        frames = {kind: CLIP_RENDERERS[kind](seeded_generator(kind, index)).astype(float) for kind in CLIP_RENDERERS}
        assert (frames["still"][0] == frames["still"][-1]).all()
        changed = (np.abs(frames["bounce"][0] - frames["bounce"][-1]).max(axis=2) > 8).mean()
        assert 0.02 < changed < 0.3  # the ball only
        steps = np.abs(np.diff(frames["cut"], axis=0)).mean(axis=(1, 2, 3))
        assert (steps > 1).sum() == 1
        means = frames["flicker"].mean(axis=(1, 2, 3))
        assert max(means[0], means[-1]) > 1.5 * min(means[0], means[-1])


def test_a_scene_s_depth_normals_and_segments_agree() -> None:
    scene = render_scene(seeded_generator("scene"), with_person=True)
    assert np.allclose(np.linalg.norm(scene.normals, axis=2), 1, atol=1e-2)
    assert (scene.depth[scene.segments == 0] == 1).all()
    assert scene.segments.max() >= 4
    assert len(scene.people) == 1
    x, y = (round(v) for v in scene.people[0]["neck"])
    assert scene.segments[y, x] == scene.segments.max()  # the person stands in front


def test_barcodes_are_valid() -> None:
    detector = cv2.barcode.BarcodeDetector()
    found = [detector.detectAndDecode(PICTURE_RENDERERS["barcode"](seeded_generator("bars", i)))[0] for i in range(5)]
    assert sum(len(number) in (12, 13) for number in found) >= 3  # the detector itself misses some


def test_a_medium_depends_on_its_own_seed_alone() -> None:
    alone = render_media(Modality.IMAGE, "street", seeded_generator("a", 1))
    render_media(Modality.IMAGE, "bird", seeded_generator("a", 2))
    assert render_media(Modality.IMAGE, "street", seeded_generator("a", 1)) == alone
    assert file_suffix(Modality.IMAGE, "street") == ".jpg"
