"""Which questions make up each optimizer step of an epoch, and how a step is dealt to ranks and micro steps.

The plan of an epoch depends on (seed, epoch) alone. How many ranks there are only changes how a step is dealt, never
what is in it, so a run that resumes at another world size takes the very same steps (DESIGN, idea 5).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data_pipeline.batches.encoding import EncodedQuestion
from data_pipeline.batches.families import find_families, hash_blocks
from data_pipeline.errors import InputError

_SUBSET_STREAM = 1  # keeps the draw of the mixture's subsets apart from the epochs' permutations
_FAMILY_FRAC = 0.5  # of a step's rows come from one family at the most, or nearly


@dataclass(frozen=True, eq=False)
class PlanIndex:
    """Sizes of N questions: all that planning needs.

    Attributes:
        n_rows: int64 [N]; right answers of each question.
        n_tokens: int64 [N]; tokens of its tree.
        row_tokens: int [sum(n_rows)]; tokens of each (question, answer) row, question by question.
        family: int64 [N]; questions of one number have prompts that begin alike (`families`).
        shared_tokens: int64 [N]; how many tokens of its prompt a question shares with all of its family.
    """

    n_rows: np.ndarray
    n_tokens: np.ndarray
    row_tokens: np.ndarray
    family: np.ndarray
    shared_tokens: np.ndarray

    @classmethod
    def apart(cls, n_rows: np.ndarray, n_tokens: np.ndarray, row_tokens: np.ndarray) -> PlanIndex:
        """Questions that share nothing."""
        return cls(n_rows, n_tokens, row_tokens, np.arange(len(n_rows)), np.zeros(len(n_rows), dtype=np.int64))

    @classmethod
    def from_questions(cls, questions: Sequence[EncodedQuestion]) -> PlanIndex:
        blocks = [hash_blocks(question.prompt_ids) for question in questions]
        family, shared_tokens = find_families(np.concatenate(blocks), np.array([len(each) for each in blocks]))
        return cls(
            family=family,
            shared_tokens=shared_tokens,
            n_rows=np.array([len(question.answers) for question in questions], dtype=np.int64),
            n_tokens=np.array([len(question.tree.input_ids) for question in questions], dtype=np.int64),
            row_tokens=np.array(
                [len(question.prompt_ids) + len(answer) for question in questions for answer in question.answers],
                dtype=np.int64,
            ),
        )

    def __len__(self) -> int:
        return len(self.n_rows)

    @property
    def total_rows(self) -> int:
        return int(self.n_rows.sum())

    def count_tokens(self, questions: np.ndarray) -> int:
        """Tokens of one pack of these questions at the most: what a family shares counts once."""
        first = np.unique(self.family[questions], return_index=True)[1]
        repeated = int(self.shared_tokens[questions].sum() - self.shared_tokens[questions[first]].sum())
        return int(self.n_tokens[questions].sum()) - repeated


def steps_per_epoch(index: PlanIndex, global_batch_size: int, repeats: np.ndarray | None = None) -> int:
    """Optimizer steps of every epoch: its rows / global_batch_size, rounded; at least 1, at most its questions.

    Args:
        index: sizes of all N questions.
        global_batch_size: in question-answer rows.
        repeats: see `plan_epoch`; the rows are those expected, so that all epochs have equally many steps.
    """
    if global_batch_size < 1:
        raise InputError(f"global_batch_size is {global_batch_size}; it must be at least 1 question-answer row.")
    if repeats is None:
        return min(len(index), max(1, round(index.total_rows / global_batch_size)))
    n_questions = int(count_appearances(len(index), repeats, 0, 0).sum())
    if n_questions == 0:
        raise InputError(
            "train.mixture gives every question so small a weight that none is left; raise the weight of a source."
        )
    return min(n_questions, max(1, round(float(repeats @ index.n_rows) / global_batch_size)))


def plan_epoch(
    index: PlanIndex, seed: int, epoch: int, global_batch_size: int, repeats: np.ndarray | None = None
) -> list[np.ndarray]:
    """Cut an epoch's shuffled questions into optimizer steps of about `global_batch_size` question-answer rows.

    Without repeats every question is in exactly one step, with all its answers. Questions of a family are shuffled as
    one, so that they meet in a step and read what they share once; a large family in parts of half a step. The rows
    are shared out evenly: with S = `steps_per_epoch` steps, step s ends at the question at which the running count of
    rows comes nearest to (s + 1) / S of all rows. So there is no small rest at the end, and the loss of a step is
    divided by that step's own weight.

    Args:
        index: sizes of all N questions.
        seed: of the run.
        epoch: 0-based.
        global_batch_size: in question-answer rows, over all ranks and micro steps.
        repeats: float [N], times that each question is in an epoch on average. One of weight w is there floor(w) times,
            and once more in a share w - floor(w) of the epochs; all questions of one weight together are there
            round(w * how many they are) times in every epoch. None: each once.

    Returns:
        one int64 array of question indices per step; a function of the arguments alone.
    """
    if len(index) == 0:
        return []
    n_steps = steps_per_epoch(index, global_batch_size, repeats)
    drawn = np.repeat(np.arange(len(index)), count_appearances(len(index), repeats, seed, epoch))
    order = _shuffle_families(drawn, index, max(1, int(global_batch_size * _FAMILY_FRAC)), seed, epoch)
    rows_after = np.cumsum(index.n_rows[order])  # [questions drawn]
    middles = rows_after - index.n_rows[order] / 2
    ends = np.searchsorted(middles, rows_after[-1] * np.arange(1, n_steps) / n_steps, side="left")
    # A question with very many answers may span several ends: move them apart, so that no step is empty.
    steps = np.arange(n_steps - 1)
    ends = np.maximum.accumulate(np.maximum(ends - steps, 1)) + steps
    ends = np.minimum(ends, len(order) - (n_steps - 1) + steps)
    return np.split(order, ends)


def _shuffle_families(drawn: np.ndarray, index: PlanIndex, most: int, seed: int, epoch: int) -> np.ndarray:
    """The drawn questions shuffled, up to `most` of a family behind one another."""
    rng = np.random.default_rng([seed, epoch])
    has_families = len(np.unique(index.family[drawn])) < len(np.unique(drawn))
    drawn = drawn[rng.permutation(len(drawn))]
    if not has_families:
        return drawn
    _, family = np.unique(index.family[drawn], return_inverse=True)
    by_family = np.argsort(family, kind="stable")
    sizes = np.bincount(family)
    number = np.empty(len(drawn), dtype=np.int64)  # of each within its family
    number[by_family] = np.arange(len(drawn)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    _, block = np.unique(family * len(drawn) + number // most, return_inverse=True)
    return drawn[np.argsort(rng.permutation(int(block.max()) + 1)[block], kind="stable")]


def count_appearances(n_questions: int, repeats: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """int64 [N]: how often each of N questions is in this epoch; see `plan_epoch` for the arguments.

    The questions of one weight that come once more are a window that moves over their shuffled circle from epoch to
    epoch: over many epochs no question is ahead of another of its weight by more than one.
    """
    if repeats is None:
        return np.ones(n_questions, dtype=np.int64)
    times = np.floor(repeats).astype(np.int64)
    for number, weight in enumerate(np.unique(repeats)):
        members = np.flatnonzero(repeats == weight)
        n_extra = round(weight * len(members)) - int(times[members].sum())
        circle = np.random.default_rng([seed, number, _SUBSET_STREAM]).permutation(members)
        times[circle[(epoch * n_extra + np.arange(n_extra)) % len(members)]] += 1
    return times


def deal_step(step: np.ndarray, index: PlanIndex, world_size: int, pack_tokens: int) -> list[list[np.ndarray]]:
    """Deal a step's questions to ranks and micro steps for the layout "packed", with balanced token counts.

    Takes the fewest micro steps with which no pack exceeds `pack_tokens`; a question longer than that is a pack of
    its own, and widens no other. Those of a family stay together as far as a pack, and a rank's
    share of the step, holds them. Packs of one micro step are of like size on all ranks, because ranks wait for each
    other there.

    Args:
        step: question indices.
        index: sizes of all questions.
        world_size: number of ranks.
        pack_tokens: budget of one pack.

    Returns:
        [rank][micro_step] -> question indices int64 [Q]. All ranks have equally many micro steps. A pack is empty
        only where the step has fewer questions than packs.
    """
    bundles, sizes = _bundle_families(step, index, min(pack_tokens, -(-index.count_tokens(step) // world_size)))
    order = np.argsort(-sizes, kind="stable")
    n_long = int((sizes > pack_tokens).sum())
    long, order = order[:n_long].tolist(), order[n_long:]
    n_packs = n_long + -(-int(sizes[order].sum()) // pack_tokens)
    n_micro = max(1, -(-n_packs // world_size))
    while True:
        bins, loads = fill_evenly(order, sizes, world_size * n_micro - n_long)
        if max(loads, default=0) <= pack_tokens:
            break
        n_micro += 1
    bins, loads = [[item] for item in long] + bins, sizes[long].tolist() + loads
    by_load = sorted(range(len(bins)), key=lambda number: -loads[number])
    packs = [
        np.concatenate([np.zeros(0, dtype=np.int64), *(bundles[item] for item in sorted(bins[n]))]) for n in by_load
    ]
    return [[packs[micro * world_size + rank] for micro in range(n_micro)] for rank in range(world_size)]


def _bundle_families(step: np.ndarray, index: PlanIndex, budget: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The questions of a step, those of a family together as far as `budget` tokens hold them; and their tokens."""
    bundles: list[list[int]] = []
    open_bundle: dict[int, int] = {}  # family -> its last bundle
    sizes: list[int] = []
    for question in step.tolist():
        family, n_tokens = int(index.family[question]), int(index.n_tokens[question])
        n_more = n_tokens - int(index.shared_tokens[question])
        number = open_bundle.get(family, -1)
        if number >= 0 and index.shared_tokens[question] > 0 and sizes[number] + n_more <= budget:
            bundles[number].append(question)
            sizes[number] += n_more
        else:
            open_bundle[family] = len(bundles)
            bundles.append([question])
            sizes.append(n_tokens)
    return [np.array(bundle, dtype=np.int64) for bundle in bundles], np.array(sizes, dtype=np.int64)


def fill_evenly(order: np.ndarray, sizes: np.ndarray, n_bins: int) -> tuple[list[list[int]], list[int]]:
    """Deal items to bins one by one, each into the emptiest.

    Args:
        order: items, the longest first.
        sizes: of all items.
        n_bins: at least one, if there is any item.

    Returns:
        the items of each bin, and each bin's summed sizes.
    """
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    heap = [(0, number) for number in range(n_bins)]
    for item in order.tolist():
        load, number = heap[0]
        bins[number].append(item)
        heapq.heapreplace(heap, (load + int(sizes[item]), number))
    loads = [0] * n_bins
    for load, number in heap:
        loads[number] = load
    return bins, loads


def deal_step_rows(
    step: np.ndarray, index: PlanIndex, world_size: int, micro_batch_size: int
) -> list[list[np.ndarray]]:
    """Deal a step's (question, answer) rows to ranks and micro steps for the layout "rows".

    Answers of one question go to different micro batches, as in the papers, where rows are shuffled one by one.

    Returns:
        [rank][micro_step] -> pairs int64 [R, 2] of question index and answer number, R <= micro_batch_size. All ranks
        have equally many micro steps; one is empty only where the step has fewer rows than micro batches.
    """
    counts = index.n_rows[step]
    first = np.cumsum(counts) - counts
    answers = np.arange(int(counts.sum())) - np.repeat(first, counts)
    pairs = np.stack([np.repeat(step, counts), answers], axis=1)  # [rows, 2]
    n_micro = max(1, -(-len(pairs) // (world_size * micro_batch_size)))
    n_batches = world_size * n_micro
    return [[pairs[micro * world_size + rank :: n_batches] for micro in range(n_micro)] for rank in range(world_size)]


@dataclass(frozen=True)
class PackingStatistics:
    """What packing saves over the papers' rows for the same optimizer steps.

    Attributes:
        steps: optimizer steps counted.
        questions: in them.
        rows: question-answer pairs in them.
        packed_tokens: processed in the layout "packed", padding included.
        packed_used_frac: share of these that is not padding.
        row_tokens: processed in the layout "rows", padding included.
        row_used_frac: share of these that is not padding.
        packed_tokens_per_step: mean.
        row_tokens_per_step: mean.
        packed_to_row_frac: packed_tokens / row_tokens.
        packed_to_unpadded_row_frac: packed_tokens / row tokens without their padding.
        micro_steps_per_step: packed, mean.
        rank_imbalance: packed, mean over micro steps of the largest pack over the mean pack of the ranks; 1 is even.
    """

    steps: int
    questions: int
    rows: int
    packed_tokens: int
    packed_used_frac: float
    row_tokens: int
    row_used_frac: float
    packed_tokens_per_step: float
    row_tokens_per_step: float
    packed_to_row_frac: float
    packed_to_unpadded_row_frac: float
    micro_steps_per_step: float
    rank_imbalance: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def packing_statistics(
    steps: Sequence[np.ndarray],
    index: PlanIndex,
    world_size: int,
    pack_tokens: int,
    micro_batch_size: int = 4,
    pad_to_multiple: int = 1,
) -> PackingStatistics:
    """Count the tokens of planned steps in both layouts.

    Args:
        steps: of `plan_epoch`.
        index: sizes of all questions.
        world_size: number of ranks.
        pack_tokens: budget of one pack.
        micro_batch_size: rows padded together in the layout "rows"; 4 in MLLM-Tool's 7B runs.
        pad_to_multiple: what a pack's length is padded to.
    """
    row_starts = np.cumsum(index.n_rows) - index.n_rows
    packed_tokens = used_tokens = row_tokens = n_micro = 0
    imbalances: list[float] = []
    for step in steps:
        ranks = deal_step(step, index, world_size, pack_tokens)
        n_micro += len(ranks[0])
        for packs in zip(*ranks, strict=True):
            used = [index.count_tokens(pack) for pack in packs]
            used_tokens += sum(used)
            sizes = [max(1, size) for size in used]
            packed_tokens += sum(-(-size // pad_to_multiple) * pad_to_multiple for size in sizes)
            imbalances.append(max(sizes) * len(sizes) / sum(sizes))
        for rank in deal_step_rows(step, index, world_size, micro_batch_size):
            lengths = [index.row_tokens[row_starts[pairs[:, 0]] + pairs[:, 1]] for pairs in rank]
            row_tokens += sum(len(batch) * int(batch.max(initial=0)) for batch in lengths)
    chosen = np.concatenate(steps)
    used_rows = int(sum(index.row_tokens[row_starts[q] : row_starts[q] + index.n_rows[q]].sum() for q in chosen))
    return PackingStatistics(
        steps=len(steps),
        questions=len(chosen),
        rows=int(index.n_rows[chosen].sum()),
        packed_tokens=packed_tokens,
        packed_used_frac=used_tokens / packed_tokens,
        row_tokens=row_tokens,
        row_used_frac=used_rows / row_tokens,
        packed_tokens_per_step=packed_tokens / len(steps),
        row_tokens_per_step=row_tokens / len(steps),
        packed_to_row_frac=packed_tokens / row_tokens,
        packed_to_unpadded_row_frac=packed_tokens / used_rows,
        micro_steps_per_step=n_micro / len(steps),
        rank_imbalance=float(np.mean(imbalances)),
    )
