"""Losses that learn what is decoded: the likelihood of answers under a trie of answers (DESIGN, idea 9)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from data_pipeline.batches.choices import NO_CHILD


def compute_choice_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Two losses under the trie, each summed with its own weights.

    p(a), the very probability that constrained decoding ranks by (`model.decode.tools`), is the product of the
    softmaxes over the children alone of the branching nodes on the way to answer a. The losses are the weighted sum
    over the right answers of -log p(a), which is the cross entropy at branching nodes, and the weighted sum over the
    questions of -log of their right answers' summed p(a), which asks for one of them and not for each.

    Args:
        logits: [C, V], at the tokens that decide.
        batch: the fields of `ChoiceTerms` as tensors, named "choice_position" and so on.

    Returns:
        float32 scalars: loss with gradient, number of decisions, number of those that the largest logit gets right.
    """
    children = batch["choice_children"]  # [C, W]
    is_child = children != NO_CHILD
    scores = logits.float().gather(1, children.clamp(min=0)).masked_fill(~is_child, float("-inf"))  # [C, W]
    taken = batch["choice_taken"].unsqueeze(1)  # [C, 1]
    chosen = scores.log_softmax(dim=1).gather(1, taken).squeeze(1)  # [C]
    question, n_questions = batch["choice_question"], len(batch["choice_set_weight"])
    log_p = chosen.new_zeros(len(question)).index_add(0, batch["choice_answer"], chosen)  # [A]
    largest = log_p.new_full((n_questions,), float("-inf")).scatter_reduce(0, question, log_p.detach(), "amax")  # [Q]
    spread = log_p.new_zeros(n_questions).index_add(0, question, (log_p - largest[question]).exp())  # [Q]
    log_p_set = largest + spread.log()  # [Q]
    loss = -(batch["choice_answer_weight"] * log_p).sum() - (batch["choice_set_weight"] * log_p_set).sum()
    is_decision = is_child.sum(dim=1) > 1  # what fills up the batch has one child
    is_hit = scores.detach().argmax(dim=1) == taken.squeeze(1)
    return loss, is_decision.sum().float(), (is_hit & is_decision).sum().float()
