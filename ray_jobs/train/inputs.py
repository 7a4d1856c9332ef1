"""What a training is made of, built in the driver: tokens, the plan of steps, the validation set."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from data_pipeline.batches.cards import CardForm, encode_card
from data_pipeline.batches.choices import AnswerChoices
from data_pipeline.batches.encoding import encode_dialogue, encode_question, longest_answer
from data_pipeline.batches.paper_sampler import PaperPlan
from data_pipeline.batches.plan import TrainingPlan, UniformPlan, mixture_repeats
from data_pipeline.batches.question_table import QuestionTable
from data_pipeline.batches.stream import BatchForm
from data_pipeline.batches.token_shards import TokenForm, TokenShards, tokenize_shards
from data_pipeline.batches.tokenized import StoredQuestions, TokenizedQuestions, select_questions
from data_pipeline.corpus.files import Corpus
from data_pipeline.corpus.sample import draw_records, kind_of, sample_places
from data_pipeline.errors import InputError
from data_pipeline.records.catalog import UNKNOWN_TOOL_ID, Tool, ToolCatalog
from data_pipeline.records.prompts import render_prompt, render_target
from data_pipeline.records.schema import ToolRecord
from model.decode.trie import ChoiceTrie
from model.llm.backbone import load_tokenizer
from model.llm.config import ModelConfig
from model.llm.gguf import convert_backbone, is_gguf
from model.tiny.backbone import build_tiny_backbone
from ray_jobs.config import RunSpec
from ray_jobs.train.features import MediaVectors, load_media_vectors
from ray_jobs.train.validation import ValidationSet

GPU_BLOCK_TOKENS = 128  # FlexAttention works on blocks of so many, and compiles anew for every other length
CPU_SEQUENCE_TOKENS = 256  # the CPU's attention computes the whole mask; GPUs skip the blocks that are empty
TINY_BACKBONE_RECORDS = 20_000  # whose texts its tokenizer learns from: more teach 2,048 tokens nothing new
CPU_BLOCK_TOKENS = 64  # in bfloat16 oneDNN compiles for every other length and keeps it: 35 MiB each with 30 layers


@dataclass(frozen=True)
class TrainInputs:
    """See the module's docstring.

    Attributes:
        model_config: backbone and encoder's width resolved.
        encoder_id, encoder_name: see `MediaVectors`.
        split: the training split as the plan sees it.
        questions: where ranks read it.
        plan: which questions make each step.
        form: how a micro step becomes arrays.
        validation: held-out questions.
    """

    model_config: ModelConfig
    encoder_id: str
    encoder_name: str
    split: TokenizedQuestions
    questions: StoredQuestions
    plan: TrainingPlan
    form: BatchForm
    validation: ValidationSet


def build_inputs(spec: RunSpec, corpus: Corpus) -> TrainInputs:
    """Tokenise the corpus, if nobody has yet, and plan the training.

    Raises:
        InputError: no usable records, no vectors, a backbone that cannot be loaded, or settings that do not fit.
    """
    vectors = load_media_vectors(spec, corpus, "train", "val")
    model_config = resolve_model(spec, corpus, vectors)
    tokenizer = load_tokenizer(model_config.backbone)
    tool_ids = corpus.catalog.selection_tool_ids
    reserve_tokens = longest_answer(tokenizer, tool_ids)
    tool_choices = _list_choices(spec, tokenizer, tool_ids)
    n_dialogues = corpus.manifest["dialogues"].get("train", {}).get("dialogues", 0)
    if corpus.manifest["counts"]["train"]["questions"] > n_dialogues:
        _check_room(spec, tokenizer, reserve_tokens)
    carded = _list_cards(corpus.catalog) if spec.train.loss.retrieval else []
    form = TokenForm(
        tokenizer,
        spec.train.max_target_tokens,
        reserve_tokens,
        spec.train.max_dialogue_tokens,
        tool_ids,
        _find_ends(spec, tool_choices, len(tool_ids)),
        {tool.call_name: number for number, tool in enumerate(carded)},
    )
    shards = tokenize_shards(spec.tokens_dir, corpus.shard_rows("train"), f"{corpus.data_hash}/train", form)
    split, questions = select_questions(shards, list(vectors.rows), vectors.table.file)
    _show_tokens(shards, split, spec)
    cards = _build_cards(spec, carded, questions, tool_ids, tokenizer) if carded else None
    batches = _build_form(spec, split, tokenizer.pad_token_id or 0, tool_choices, cards)
    validation = _build_validation(spec, tokenizer, vectors, reserve_tokens, corpus, shards.called_tool_ids)
    validation = replace(
        validation, cards=cards.named[: len(tool_ids)] if cards else (), names_tools=spec.train.loss.names_tools
    )
    return TrainInputs(
        model_config=model_config,
        encoder_id=vectors.encoder_id,
        encoder_name=vectors.encoder_name,
        split=split,
        questions=questions,
        plan=build_plan(spec, split),
        form=batches,
        validation=validation,
    )


def _show_tokens(shards: TokenShards, split: TokenizedQuestions, spec: RunSpec) -> None:
    made = "found" if shards.is_found else "written"
    print(f"tokens            of {shards.n_questions} questions {made} in {shards.folder}")
    if split.n_without_vector:
        print(
            f"train: {split.n_without_vector} of {shards.n_questions} training questions are left out: no media vector"
        )
    if split.n_too_long:
        print(
            f"train: {split.n_too_long} dialogues are left out: longer than {spec.train.max_dialogue_tokens} tokens "
            "(train.max_dialogue_tokens)"
        )


def _list_choices(spec: RunSpec, tokenizer: Any, tool_ids: tuple[str, ...]) -> tuple[AnswerChoices, ...]:
    """What the answer that names each tool decides; () where no loss is under the trie."""
    if not spec.train.loss.is_under_trie:
        return ()
    trie = ChoiceTrie(tool_ids, tokenizer)
    return tuple(map(trie.choices_of, tool_ids))


def _build_form(
    spec: RunSpec,
    split: TokenizedQuestions,
    pad_id: int,
    tool_choices: tuple[AnswerChoices, ...],
    cards: CardForm | None,
) -> BatchForm:
    loss = spec.train.loss
    if loss.tokens == 0 and split.is_dialogue.any():
        raise InputError(
            "train.loss.tokens is 0, but the corpus holds dialogues, which learn by that loss alone; set it above 0."
        )
    return BatchForm(
        layout=spec.train.layout,
        pad_id=pad_id,
        pad_to_multiple=length_multiple(spec),
        sequence_tokens=None if spec.train.use_gpu else CPU_SEQUENCE_TOKENS,
        tool_choices=tool_choices,
        token_weight=loss.tokens,
        answer_weight=loss.answers,
        set_weight=loss.answer_set,
        cards=cards,
        retrieval_weight=loss.retrieval,
    )


def _find_ends(spec: RunSpec, tool_choices: tuple[AnswerChoices, ...], n_tools: int) -> tuple[int, ...]:
    """How much of each tool's answer bears loss: without the papers' loss its decisions; () for all of it."""
    if spec.train.loss.tokens:
        return ()
    if not tool_choices:
        return (1,) * n_tools  # no token of an answer counts, and one that is its last is not even laid out
    return tuple(int(choices.depth.max(initial=0)) + 1 for choices in tool_choices)


def _list_cards(catalog: ToolCatalog) -> list[Tool]:
    """The tools in the order of their cards: those that questions are answered with, then those that dialogues call."""
    selected = [catalog[tool_id] for tool_id in catalog.selection_tool_ids]
    return [*selected, *(tool for tool in catalog if tool.tool_id not in set(catalog.selection_tool_ids))]


def _build_cards(
    spec: RunSpec, tools: list[Tool], questions: StoredQuestions, tool_ids: Sequence[str], tokenizer: Any
) -> CardForm:
    """Of the tools that some training record asks for: a tool held out of training is no wrong answer either."""
    answered = QuestionTable(questions.shards, ray.get(questions.rows)).find_answer_tools()
    asked = {tool_ids[number] for number in answered} | questions.shards.called_tool_ids - {UNKNOWN_TOOL_ID}
    return CardForm(
        tools=np.array([number for number, tool in enumerate(tools) if tool.tool_id in asked], dtype=np.int64),
        named=tuple(encode_card(tokenizer, tool.call_name, tool.description) for tool in tools),
        nameless=tuple(encode_card(tokenizer, tool.call_name, tool.description, has_name=False) for tool in tools),
        n_cards=spec.train.loss.retrieval_cards,
        seed=spec.seed,
    )


def length_multiple(spec: RunSpec) -> int:
    """What the lengths of a run's batches are multiples of."""
    if spec.train.use_gpu:
        return GPU_BLOCK_TOKENS
    return CPU_BLOCK_TOKENS if spec.model.dtype == "bfloat16" else 1


def build_plan(spec: RunSpec, split: TokenizedQuestions) -> TrainingPlan:
    """The plan that `train.sampler` names.

    Raises:
        InputError: a split that the settings cannot be met with.
    """
    train = spec.train
    if train.sampler == "paper":
        return PaperPlan(
            split.index, split.modalities, spec.seed, train.global_batch_size, train.micro_batch_size, train.max_workers
        )
    return UniformPlan(
        split.index,
        split.loss_weight,
        split.is_dialogue,
        spec.seed,
        train.global_batch_size,
        train.layout,
        train.pack_tokens,
        train.micro_batch_size,
        mixture_repeats(split.sources, train.mixture),
        split.n_asked,
    )


def resolve_model(spec: RunSpec, corpus: Corpus, vectors: MediaVectors) -> ModelConfig:
    """Fill in the encoder's width, which the lake decides, and the folder of a backbone that is made here."""
    changes: dict[str, Any] = {"encoder_dim": vectors.embed_dim, "seed": spec.seed}
    if spec.model.backbone == "tiny":
        drawn = draw_records(corpus.records("train"), TINY_BACKBONE_RECORDS, spec.seed)[0]
        texts = [_text_of(record) for record in drawn]
        texts += [render_target(tool_id) for tool_id in corpus.catalog.selection_tool_ids]
        changes["backbone"] = str(build_tiny_backbone(spec.work_dir / "backbone", texts, seed=spec.seed))
    elif is_gguf(spec.model.backbone):
        changes["backbone"] = str(convert_backbone(spec.model.backbone, spec.backbones_dir))
    return spec.model.model_copy(update=changes)


def _text_of(record: ToolRecord) -> str:
    """Everything that the model reads and writes of a record but the answers of a question."""
    if record.is_dialogue:
        return record.instruction + "".join(turn.text for turn in record.turns)
    return "".join(piece for piece in render_prompt(record.instruction, record.has_media) if piece)


def _check_room(spec: RunSpec, tokenizer: Any, reserve_tokens: int) -> None:
    """That a long question can be cut to fit is checked here, before any task needs it."""
    for has_media in (True, False):
        long_question = "? " * spec.train.max_target_tokens
        encode_question(tokenizer, long_question, has_media, (), spec.train.max_target_tokens, reserve_tokens)


def _build_validation(
    spec: RunSpec,
    tokenizer: Any,
    vectors: MediaVectors,
    reserve_tokens: int,
    corpus: Corpus,
    seen_tool_ids: frozenset[str],
) -> ValidationSet:
    questions, dialogues = _sample_validation(spec, tokenizer, vectors, corpus)
    encoded = [
        encode_question(
            tokenizer, record.instruction, record.has_media, (), spec.train.max_target_tokens, reserve_tokens
        )
        for record in questions
    ]
    return ValidationSet(
        records=questions,
        prompt_ids=[question.prompt_ids for question in encoded],
        media=[vectors.get(record) for record in questions],
        tool_ids=list(corpus.catalog.selection_tool_ids),
        batch_size=spec.evaluate.batch_size,
        dialogues=dialogues,
        dialogue_ids=[encode_dialogue(tokenizer, record.instruction, ()).prompt_ids for record in dialogues],
        seen_tool_ids=seen_tool_ids,
        turn_max_new_tokens=spec.evaluate.turn_max_new_tokens,
    )


def _sample_validation(
    spec: RunSpec, tokenizer: Any, vectors: MediaVectors, corpus: Corpus
) -> tuple[list[ToolRecord], list[ToolRecord]]:
    """The questions and the dialogues to validate with. The split is read twice, and held not once."""
    kinds: tuple[list[Hashable], list[Hashable]] = ([], [])  # of those that can be used
    places: tuple[list[int], list[int]] = ([], [])  # in the split
    for place, record in enumerate(corpus.records("val")):
        if record.is_dialogue:
            dialogue = encode_dialogue(tokenizer, record.instruction, record.turns)
            is_usable = len(dialogue.prompt_ids) + len(dialogue.answers[0]) <= spec.train.max_dialogue_tokens
        else:
            is_usable = vectors.has(record)
        if is_usable:
            kinds[record.is_dialogue].append(kind_of(record))
            places[record.is_dialogue].append(place)
    limits = spec.train.validation_questions, spec.train.validation_dialogues
    chosen = [
        {own[number] for number in sample_places(of_kind, limit, spec.seed)}
        for own, of_kind, limit in zip(places, kinds, limits, strict=True)
    ]
    found: tuple[list[ToolRecord], list[ToolRecord]] = ([], [])
    for place, record in enumerate(corpus.records("val")):
        if place in chosen[record.is_dialogue]:
            found[record.is_dialogue].append(record)
    return found
