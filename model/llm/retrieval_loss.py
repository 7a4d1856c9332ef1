"""The retriever's loss: a question nearer to its right tools' cards than to the others at hand (DESIGN, idea 10)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

SCALE = 20.0  # of the cosine, as in sentence-transformers' contrastive losses


def compute_retrieval_loss(hidden: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Contrastive loss over the cards of the micro batch (InfoNCE; van den Oord et al. 2018, arXiv 1807.03748).

    p(card | question) is a softmax over SCALE times the cosines; the loss is -log of the right cards' summed p,
    weighted and summed over the questions.

    Args:
        hidden: [tokens, D], the flattened last hidden states.
        batch: the fields of `RetrievalTerms` as tensors, named "retrieval_question" and so on.

    Returns:
        float32 scalars: loss with gradient, number of questions, number of those whose nearest card is right.
    """
    questions = to_vectors(hidden[batch["retrieval_question"]])  # [Q, D]
    cards = to_vectors(hidden[batch["retrieval_card"]])  # [K, D]
    log_p = (SCALE * questions @ cards.T).log_softmax(dim=1)  # [Q, K]
    is_right = batch["retrieval_is_right"] > 0
    right = log_p.masked_fill(~is_right, float("-inf")).logsumexp(dim=1)  # [Q]
    n_found = is_right.gather(1, log_p.detach().argmax(dim=1, keepdim=True)).sum().float()
    return -(batch["retrieval_weight"] * right).sum(), log_p.new_tensor(len(right)), n_found


def to_vectors(hidden: Tensor) -> Tensor:
    """What is compared: the last hidden states [n, D] at the ends of prompts and cards, of length 1, float32."""
    return F.normalize(hidden.float(), dim=-1)
