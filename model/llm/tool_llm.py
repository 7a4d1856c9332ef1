"""The multimodal tool LLM: a frozen LLM with LoRA, and a projector from media vectors into its embedding space.

MLLM-Tool, section 3.3; reference `code/model/anyToImageVideoAudio.py`. The loss is the weighted cross entropy of the
answer tokens; hidden states are gathered at those positions before the vocabulary head (DESIGN, idea 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, PretrainedConfig

from data_pipeline.batches.cards import RetrievalTerms
from data_pipeline.batches.packing import PackedBatch
from data_pipeline.errors import InputError
from model.llm.attention import AttentionBackend, AttentionWindow, build_mask
from model.llm.backbone import attach_adapter, load_backbone, load_tokenizer, takes_packs
from model.llm.choice_loss import compute_choice_loss
from model.llm.config import ModelConfig
from model.llm.retrieval_loss import compute_retrieval_loss


class MllmOutput(NamedTuple):
    """Sums over one micro batch; the caller divides them by the weight of the whole step over all ranks.

    Attributes:
        loss_sum: float32 scalar, weighted sum of all losses, with gradient.
        weight_sum: float32 scalar, sum of the weights of the token targets = answer tokens as separate rows.
        n_correct: float32 scalar, weighted number of token targets that the largest logit hits.
        n_choices: float32 scalar, decisions under the trie that bear loss.
        n_chosen: float32 scalar, those of them at which the right child has the largest logit.
        n_asked: float32 scalar, questions with cards beside them.
        n_found: float32 scalar, those of them whose nearest card is a right one.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    n_correct: Tensor
    n_choices: Tensor
    n_chosen: Tensor
    n_asked: Tensor
    n_found: Tensor


class TokenLoss(NamedTuple):
    """The first three of `MllmOutput`."""

    loss_sum: Tensor
    weight_sum: Tensor
    n_correct: Tensor


def compute_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> TokenLoss:
    """The papers' loss: weighted cross entropy, and hits.

    Args:
        logits: [L, V].
        targets: int64 [L].
        weights: float32 [L].
    """
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")  # [L]
    hits = (logits.detach().argmax(dim=-1) == targets).float()
    return TokenLoss((losses * weights).sum(), weights.sum(), (hits * weights).sum())


class ToolLLM(nn.Module):
    """See the module's docstring. T tokens, D LLM width, E encoder width, L loss terms, M media slots.

    Attributes:
        llm: the LLM with its adapter.
        projector: Linear E -> D with bias, in float32 unless the caller casts it.
        tokenizer: of the backbone.
        embed_dim: E.
        backend: how attention is computed.
        max_positions: longest sequence that the backbone has positions for.
        window: how far back its layers see.
    """

    def __init__(
        self, llm: PeftModel, projector: nn.Linear, tokenizer: Any, config: ModelConfig, backend: AttentionBackend
    ) -> None:
        super().__init__()
        self.llm = llm
        self.projector = projector
        self.tokenizer = tokenizer
        self.config = config
        self.backend: AttentionBackend = backend
        self.embed_dim = projector.in_features
        causal_lm = self._causal_lm
        self.max_positions: int = getattr(causal_lm.config, "max_position_embeddings", 1 << 30)
        self.window = AttentionWindow.read(causal_lm.config)
        self._no_packs_because = takes_packs(causal_lm)
        self._holds: list[RemovableHandle] = []  # hooks of `hold_adapter`

    @classmethod
    def build(cls, config: ModelConfig) -> ToolLLM:
        """Load the backbone and attach a fresh adapter and projector, the same on every rank.

        Raises:
            InputError: for a backbone that cannot be loaded or adapted.
        """
        tokenizer = load_tokenizer(config.backbone)
        causal_lm, backend = load_backbone(config)
        if config.gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        width = int(getattr(causal_lm.get_input_embeddings(), "embedding_dim"))  # noqa: B009  (typed as any Module)
        llm = attach_adapter(causal_lm, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            projector = nn.Linear(config.encoder_dim, width, dtype=torch.float32)
        return cls(llm, projector, tokenizer, config, backend)

    @classmethod
    def sketch(cls, config: ModelConfig, shape: PretrainedConfig) -> ToolLLM:
        """The whole model with its adapter on the meta device: every parameter has its shape and type, and no memory.

        It has no tokenizer and cannot compute numbers; `load_trainable_state_dict` gives it its trained parameters. The
        backbone is unquantised, whatever `config.quantize` says.

        Args:
            config: what to build; `backbone` is only named.
            shape: of the backbone.

        Raises:
            InputError: an adapter that the backbone cannot take.
        """
        with torch.device("meta"):
            causal_lm = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, config.dtype))
            width = int(getattr(causal_lm.get_input_embeddings(), "embedding_dim"))  # noqa: B009  (as above)
            projector = nn.Linear(config.encoder_dim, width, dtype=torch.float32)
            return cls(attach_adapter(causal_lm, config), projector, None, config, "sdpa")

    @property
    def _causal_lm(self) -> Any:
        """The LLM with its head; the adapter's layers sit inside it."""
        return self.llm.get_base_model()

    def forward(self, batch: Mapping[str, Tensor]) -> MllmOutput:
        """Loss sums of one micro batch, as `to_tensors` made it.

        Every rank runs every trainable module whatever is in its batch, so collective operations always match.

        Args:
            batch: input_ids [B, T], loss_position [L], loss_target [L], loss_weight [L], media_position [M], media
                [M, E]; for packs also position_ids [B, T] and subtree_end [B, T]: without these, rows are plain
                causal chains; for losses under a trie also the fields of `ChoiceTerms`, named "choice_position" and so
                on, for the retriever's those of `RetrievalTerms`, named "retrieval_question" and so on.

        Raises:
            InputError: for packs on a backbone that takes no position_ids or no 4-D mask, or whose attention window
                they do not fit into.
        """
        embeds = self._embed(batch["input_ids"], batch["media_position"], batch["media"])  # [B, T, D]
        context: dict[str, Any] = {}
        if "subtree_end" in batch:
            if self._no_packs_because:
                raise InputError(
                    f"backbone {self.config.backbone!r} cannot run packed sequences: {self._no_packs_because}; "
                    "set the layout to rows."
                )
            position_ids = context["position_ids"] = batch["position_ids"]
            if not self.window.is_known:
                self.window.check(int(position_ids.max()) + 1, self.config.backbone)
            context["attention_mask"] = self.window.masks(
                lambda size: build_mask(batch["subtree_end"], position_ids, size, self.backend, embeds.dtype)
            )
        causal_lm = self._causal_lm
        hidden = causal_lm.base_model(inputs_embeds=embeds, use_cache=False, **context).last_hidden_state  # [B, T, D]
        weights = batch["loss_weight"]
        positions = torch.cat([batch["loss_position"], batch.get("choice_position", batch["loss_position"][:0])])
        logits = causal_lm.get_output_embeddings()(hidden.flatten(0, 1)[positions])  # [L + C, V]
        loss_sum, weight_sum, n_correct = compute_loss(logits[: len(weights)], batch["loss_target"], weights)
        n_choices = n_chosen = torch.zeros_like(n_correct)
        if "choice_position" in batch:
            choice_loss, n_choices, n_chosen = compute_choice_loss(logits[len(weights) :], batch)
            loss_sum = loss_sum + choice_loss
        n_asked = n_found = torch.zeros_like(n_correct)
        if "retrieval_question" in batch:
            retrieval_loss, n_asked, n_found = compute_retrieval_loss(hidden.flatten(0, 1), batch)
            loss_sum = loss_sum + retrieval_loss
        return MllmOutput(loss_sum, weight_sum, n_correct, n_choices, n_chosen, n_asked, n_found)

    def embed_prompt(self, input_ids: Tensor, media: Tensor | None) -> Tensor:
        """Embed prompts for decoding.

        Args:
            input_ids: int64 [B, T], MEDIA_SLOT_ID at most once per row.
            media: [B, E]; rows without a slot are ignored; None where no row has one.

        Returns:
            inputs_embeds [B, T, D] in the backbone's precision.
        """
        rows, columns = (input_ids < 0).nonzero(as_tuple=True)
        if media is None:
            if len(rows):
                raise InputError("a prompt has a media slot but no media vector came with it; give both or neither.")
            media = torch.zeros(len(input_ids), self.embed_dim, device=input_ids.device)
        return self._embed(input_ids, rows * input_ids.shape[1] + columns, media[rows])

    def _embed(self, input_ids: Tensor, media_position: Tensor, media: Tensor) -> Tensor:
        """Token embeddings [B, T, D] with the projected media [M, E] at the flattened positions [M]."""
        embeds = self._causal_lm.get_input_embeddings()(input_ids.clamp(min=0))  # [B, T, D]
        if len(media) == 0:
            # Idea 6: the projector runs, and gets a zero gradient, on text as well.
            dummy = torch.zeros(1, self.embed_dim, device=embeds.device, dtype=self.projector.weight.dtype)
            return embeds + 0.0 * self.projector(dummy).sum().to(embeds.dtype)
        projected = self.projector(media.to(self.projector.weight.dtype)).to(embeds.dtype)  # [M, D]
        flat = embeds.flatten(0, 1).index_copy(0, media_position, projected)  # [B*T, D]
        return flat.view_as(embeds)

    def hold_adapter(self, is_held: bool) -> None:
        """Train the projector alone from now on, or everything again.

        While held, the gradients of all other trained parameters are zero rather than absent: every rank still reduces
        the same tensors, and the optimizer's moments stay zero.
        """
        if is_held == bool(self._holds):
            return
        for handle in self._holds:
            handle.remove()
        self._holds.clear()
        if is_held:
            projector = set(map(id, self.projector.parameters()))
            for parameter in self.parameters():
                if parameter.requires_grad and id(parameter) not in projector:
                    self._holds.append(parameter.register_hook(torch.zeros_like))

    def trainable_names(self) -> list[str]:
        """Names of the trained parameters (adapter, projector, modules trained whole), in a fixed order."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The trained parameters as detached copies on the CPU; under ZeRO-3 call it inside a gather of all of them."""
        return {
            name: parameter.detach().to("cpu", copy=True).contiguous()
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `trainable_state_dict` returned; names and shapes must match exactly (InputError)."""
        own = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unexpected:
            raise InputError(
                f"these weights belong to another model config: missing {missing[:3]} ({len(missing)} in all), "
                f"unexpected {unexpected[:3]} ({len(unexpected)} in all); use the config that they were trained with."
            )
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise InputError(
                    f"{name} has shape {tuple(state[name].shape)} in these weights and {tuple(parameter.shape)} in "
                    "the model; use the config that they were trained with."
                )
        if any(parameter.is_meta for parameter in own.values()):  # a sketch has nothing to copy into
            values = {name: state[name].to(parameter.dtype) for name, parameter in own.items()}
            self.load_state_dict(values, strict=False, assign=True)
            return
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])


def to_tensors(
    batch: PackedBatch,
    media: np.ndarray | None,
    device: torch.device | str,
    retrieval: RetrievalTerms | None = None,
) -> dict[str, Tensor]:
    """What `ToolLLM.forward` takes.

    Args:
        batch: of `collate` or `build_micro_batch`.
        media: float [M, E], the vectors of the batch's media slots in their order: rows `batch.media_row` of the
            corpus' matrix; None where there is no slot.
        device: to put the tensors on.
        retrieval: what the batch's questions are to be nearest to; None or without cards: no such loss.

    Raises:
        InputError: there are not as many vectors as slots.
    """
    media = np.zeros((0, 1), np.float32) if media is None else media.astype(np.float32)
    if len(media) != len(batch.media_position):
        raise InputError(
            f"a batch has {len(batch.media_position)} media slots but {len(media)} media vectors came with it; embed "
            "the corpus first, and give one vector for each slot."
        )
    arrays: dict[str, np.ndarray] = {
        "input_ids": batch.input_ids.astype(np.int64),
        "loss_position": batch.loss_position.astype(np.int64),
        "loss_target": batch.loss_target.astype(np.int64),
        "loss_weight": batch.loss_weight.astype(np.float32),  # a copy: what comes out of Arrow is read-only
        "media_position": batch.media_position.astype(np.int64),
        "media": media,
    }
    if len(batch.choices.question):
        for name, values in vars(batch.choices).items():
            arrays[f"choice_{name}"] = values.astype(np.float32 if name.endswith("weight") else np.int64)
    if retrieval is not None and len(retrieval.card):
        for name, values in vars(retrieval).items():
            arrays[f"retrieval_{name}"] = values.astype(np.float32 if name == "weight" else np.int64)
    if batch.layout == "packed":
        arrays["position_ids"] = batch.position_ids.astype(np.int64)
        arrays["subtree_end"] = batch.subtree_end.astype(np.int64)
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}
