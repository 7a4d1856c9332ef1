"""How long the training questions of a run are: counted in its corpus, or assumed where there is none yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from data_pipeline import storage
from data_pipeline.batches.encoding import EncodedQuestion, encode_dialogue, encode_question
from data_pipeline.batches.steps import PlanIndex
from data_pipeline.batches.tokenized import TokenizedQuestions
from data_pipeline.corpus.files import Corpus
from data_pipeline.corpus.sample import draw_records
from data_pipeline.errors import InputError
from data_pipeline.records.schema import Modality, ToolRecord
from model.llm.gguf import find_converted, is_gguf
from ray_jobs.config import RunSpec

# Without a tokenizer, tokens are guessed from characters: a subword vocabulary of 32,000 has about 4 characters of
# English to a token, and fewer of tools' names.
CHARS_PER_TOKEN = 3.9
NAME_CHARS_PER_TOKEN = 2.7
FIXED_PROMPT_TOKENS = 14  # begin, "### Human:", the media slot in its tags, "### Assistant:"
SHARED_ANSWER_TOKENS = 7  # "{'api_name': ", which all answers of a question begin with
END_ANSWER_TOKENS = 3  # "}" and "###"


COUNTED_RECORDS = 12_000  # of a corpus, at the most: some ten seconds; a larger one is scaled from a sample


@dataclass(frozen=True)
class _Assumed:
    """Questions of one modality of a source; characters are means."""

    modality: Modality
    questions: int
    rows: int
    question_chars: int
    answer_chars: int
    is_dialogue: bool = False


# toolmmbench: numbers from MLLM-Tool's Table 3; characters from its released files (training: sound, video; test: all).
# gpt4tools: 71.4K items (supplement, section 1.1) in 229 MB of JSON (its README); how much of it is answer is a guess.
# toolmm-mini, toolmm-mini-dialogues: counted in what `prepare` makes in the size "demo".
ASSUMED: dict[str, tuple[_Assumed, ...]] = {
    "toolmmbench": (
        _Assumed(Modality.TEXT, 5563, 31280, 191, 29),
        _Assumed(Modality.AUDIO, 562, 2944, 95, 31),
        _Assumed(Modality.IMAGE, 3938, 10085, 92, 36),
        _Assumed(Modality.VIDEO, 82, 224, 77, 34),
    ),
    "gpt4tools": (_Assumed(Modality.TEXT, 71400, 71400, 2950, 250, is_dialogue=True),),
    "toolmm-mini": (
        _Assumed(Modality.TEXT, 270, 431, 51, 25),
        _Assumed(Modality.AUDIO, 491, 554, 52, 28),
        _Assumed(Modality.IMAGE, 813, 1096, 52, 28),
        _Assumed(Modality.VIDEO, 255, 269, 52, 21),
    ),
    "metatool": (_Assumed(Modality.TEXT, 15600, 15600, 120, 11),),  # 76 % of the released queries: our split
    "apibench": (_Assumed(Modality.TEXT, 795, 795, 123, 34),),  # PyTorch Hub
    "toolmm-mini-dialogues": (_Assumed(Modality.TEXT, 900, 900, 1206, 176, is_dialogue=True),),
    "toolmm-mini-described": (_Assumed(Modality.TEXT, 1400, 1400, 1236, 236, is_dialogue=True),),
}


@dataclass(frozen=True)
class CorpusSizes:
    """The training split as planning sees it.

    Attributes:
        split: without its tokens: `index`, `loss_weight`, `modalities` and `sources` alone.
        loss_tokens: int64 [N]; loss positions of each question's tree.
        origin: where the numbers come from, for people.
        is_assumed: whether any of them is not counted.
    """

    split: TokenizedQuestions
    loss_tokens: np.ndarray
    origin: str
    is_assumed: bool


def load_corpus_sizes(spec: RunSpec) -> CorpusSizes:
    """Count the run's corpus if `prepare` has made it; assume what the source is known to have otherwise.

    Raises:
        InputError: a damaged corpus, one without training questions, or none of a source that nothing is known of.
    """
    if not storage.is_empty(storage.open_folder(spec.corpus_dir)):
        corpus = Corpus.open(spec.corpus_dir)
        # media that are absent have no hash, and their questions are left out of the training
        usable = (record for record in corpus.records("train") if not record.has_media or record.media_sha256)
        records, n_records = draw_records(usable, COUNTED_RECORDS, spec.seed)
        if not records:
            raise InputError(f"the corpus at {corpus.path} has no usable training question; see its report.md.")
        tokenizer = _find_tokenizer(spec)
        if tokenizer is not None:
            sizes = _count_tokens(spec, records, tokenizer)
        else:
            sizes = _guess_tokens(
                [_describe(record) for record in records],
                [record.source for record in records],
                "questions counted in the corpus, tokens assumed from their characters: no tokenizer here",
            )
        return sizes if n_records == len(records) else _scale(sizes, len(records), n_records)
    items: list[_Question] = []
    sources: list[str] = []
    for options in spec.prepare.sources:
        if options.source not in ASSUMED:
            raise InputError(
                f"nothing is known of the size of source {options.source!r} before `prepare` has run; run it first."
            )
        own = [question for group in ASSUMED[options.source] for question in _spread(group)]
        items += own
        sources += [options.source] * len(own)
    return _guess_tokens(items, sources, f"assumed: the published size of {', '.join(dict.fromkeys(sources))}")


@dataclass(frozen=True)
class _Question:
    modality: str
    prompt_chars: int
    answer_chars: tuple[int, ...]
    is_dialogue: bool


def _spread(group: _Assumed) -> list[_Question]:
    """The group's rows over its questions, as evenly as they go."""
    ends = np.linspace(0, group.rows, group.questions + 1).round().astype(int)
    return [
        _Question(group.modality.value, group.question_chars, (group.answer_chars,) * int(n), group.is_dialogue)
        for n in np.diff(ends)
    ]


def _describe(record: ToolRecord) -> _Question:
    if record.is_dialogue:
        answers: tuple[int, ...] = (sum(len(turn.text) for turn in record.turns),)
    else:
        answers = tuple(len(tool_id) for tool_id in record.valid_tool_ids)
    return _Question(record.modality.value, len(record.instruction), answers, record.is_dialogue)


def _guess_tokens(questions: Sequence[_Question], sources: list[str], origin: str) -> CorpusSizes:
    tree, rows, weight, losses = [], [], [], []
    for question in questions:
        prompt = round(question.prompt_chars / CHARS_PER_TOKEN)
        if question.is_dialogue:
            answers, shared = [round(chars / CHARS_PER_TOKEN) for chars in question.answer_chars], 0
        else:
            prompt, shared = prompt + FIXED_PROMPT_TOKENS, SHARED_ANSWER_TOKENS
            fixed = SHARED_ANSWER_TOKENS + END_ANSWER_TOKENS
            answers = [fixed + round(chars / NAME_CHARS_PER_TOKEN) for chars in question.answer_chars]
        tree.append(prompt + shared + sum(answer - shared for answer in answers))
        rows.append(np.array([prompt + answer for answer in answers], dtype=np.int64))
        weight.append(sum(answers))
        losses.append(tree[-1] - prompt)
    index = PlanIndex.apart(
        n_rows=np.array([len(question.answer_chars) for question in questions], dtype=np.int64),
        n_tokens=np.array(tree, dtype=np.int64),
        row_tokens=np.concatenate(rows),
    )
    modalities = [question.modality for question in questions]
    dialogues = [question.is_dialogue for question in questions]
    return _build(index, weight, losses, dialogues, modalities, sources, 0, origin, is_assumed=True)


def _count_tokens(spec: RunSpec, records: list[ToolRecord], tokenizer: Any) -> CorpusSizes:
    encoded: list[EncodedQuestion] = []
    kept: list[ToolRecord] = []
    for record in records:
        if record.is_dialogue:
            question = encode_dialogue(tokenizer, record.instruction, record.turns)
            if len(question.prompt_ids) + len(question.answers[0]) > spec.train.max_dialogue_tokens:
                continue
        else:
            question = encode_question(
                tokenizer, record.instruction, record.has_media, record.valid_tool_ids, spec.train.max_target_tokens
            )
        encoded.append(question)
        kept.append(record)
    if not encoded:
        raise InputError(
            f"all {len(records)} training dialogues are longer than train.max_dialogue_tokens = "
            f"{spec.train.max_dialogue_tokens}; raise it."
        )
    return _build(
        PlanIndex.from_questions(encoded),
        [sum(question.n_loss_tokens) for question in encoded],
        [len(question.tree.loss_target) for question in encoded],
        [record.is_dialogue for record in kept],
        [record.modality.value for record in kept],
        [record.source for record in kept],
        len(records) - len(kept),
        "counted in the corpus with the backbone's tokenizer",
        is_assumed=False,
    )


def _scale(sizes: CorpusSizes, n_counted: int, n_records: int) -> CorpusSizes:
    """The sizes of all records from those of a sample: each question stands for equally many.

    Families grow with their members; what is alone in the sample stays alone.
    """
    split, index = sizes.split, sizes.split.index
    n_questions = round(len(index) * n_records / n_counted)
    like = np.arange(n_questions) * len(index) // n_questions  # [n_questions], the sampled question of each
    starts = np.cumsum(index.n_rows) - index.n_rows
    n_rows = index.n_rows[like]
    within = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    is_alone = index.shared_tokens[like] == 0
    scaled = PlanIndex(
        n_rows=n_rows,
        n_tokens=index.n_tokens[like],
        row_tokens=index.row_tokens[np.repeat(starts[like], n_rows) + within],
        family=np.where(is_alone, len(index) + np.arange(n_questions), index.family[like]),
        shared_tokens=index.shared_tokens[like],
    )
    return CorpusSizes(
        TokenizedQuestions(
            scaled,
            split.loss_weight[like],
            split.n_asked[like],
            split.is_dialogue[like],
            [split.modalities[number] for number in like],
            [split.sources[number] for number in like],
            round(split.n_too_long * n_records / n_counted),
        ),
        sizes.loss_tokens[like],
        f"{sizes.origin}; {n_counted:,} of {n_records:,} records, a sample",
        sizes.is_assumed,
    )


def _build(
    index: PlanIndex,
    loss_weight: Sequence[int],
    loss_tokens: Sequence[int],
    is_dialogue: Sequence[bool],
    modalities: list[str],
    sources: list[str],
    n_too_long: int,
    origin: str,
    is_assumed: bool,
) -> CorpusSizes:
    weight, dialogues = np.array(loss_weight, dtype=np.float64), np.array(is_dialogue, dtype=bool)
    n_asked = (~dialogues).astype(np.int64)  # of the cards in front of calls nothing depends on here
    split = TokenizedQuestions(index, weight, n_asked, dialogues, modalities, sources, n_too_long)
    return CorpusSizes(split, np.array(loss_tokens, dtype=np.int64), origin, is_assumed)


def _find_tokenizer(spec: RunSpec) -> Any:
    """The backbone's tokenizer if it is on this machine, else None."""
    backbone = find_backbone(spec)
    if backbone == "tiny":
        return None
    try:
        return AutoTokenizer.from_pretrained(backbone, local_files_only=True)
    except (OSError, ValueError):
        return None


def find_backbone(spec: RunSpec) -> str:
    """The backbone's folder or id; "tiny" if the run has not built its own yet."""
    if is_gguf(spec.model.backbone):
        return find_converted(spec.model.backbone, spec.backbones_dir)
    if spec.model.backbone != "tiny":
        return spec.model.backbone
    folder = spec.work_dir / "backbone"
    return str(folder) if (folder / "config.json").is_file() else "tiny"
