"""What training costs, by formula: bytes of model states under ZeRO, bytes of activations, floating-point operations.

- States: Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), section 3 and Figure 1, with the frozen part kept apart.
- Activations: counted as in Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: the tensors that the backward pass
  reads. A frozen linear layer needs its weight for that, not its input, so it keeps nothing; an adapted one keeps the
  input of the adapter.
- Operations: Kaplan et al. 2020 (arXiv 2001.08361), Table 1, and Hoffmann et al. 2022 (arXiv 2203.15556), appendix F: 2
  per weight and token forward and 4 backward, of which a frozen weight has only the 2 that carry the gradient to its
  input.

Letters: T tokens, D width, F feed-forward width, V vocabulary, r rank, b bytes of one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from model.llm.tool_llm import ToolLLM

FP32_BYTES = 4
NF4_BITS = 4.127  # with double quantisation: Dettmers et al. 2023, arXiv 2305.14314, section 3
FLASH_BACKWARD = 2.5  # backward over forward of attention: Dao 2023, arXiv 2307.08691, section 4.1
# What the linear layers read, by their names: layers that read the same tensor keep it once.
_READS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"), "attention input"),
    **dict.fromkeys(("o_proj", "out_proj", "dense"), "attention output"),
    **dict.fromkeys(("gate_proj", "up_proj", "fc1"), "mlp input"),
    **dict.fromkeys(("down_proj",), "mlp product"),
    **dict.fromkeys(("fc2",), "mlp activation"),
}
_KEPT_ANYWAY = {"attention output", "mlp activation"}  # by the attention kernel and by the ReLU


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a `ToolLLM`; build it with `measure`.

    Attributes:
        trainable, frozen: parameters.
        frozen_bytes: of the frozen parameters as they are stored.
        trainable_number_bytes: b of a trained parameter in the forward pass.
        layer_weights: frozen weights of the layers' linear parts.
        adapter_weights: A and B matrices of all adapted layers.
        head_weights: D x V.
        is_head_trained: whether the head is trained whole.
        n_layers, width: of the backbone.
        token_bytes: activations that one token keeps in one layer, mean over the layers.
        end_token_bytes: activations that one token keeps outside the layers.
        loss_bytes: activations that one loss position keeps.
        attention_width: heads x width of a head.
        number_bytes: b of an activation.
        largest_bytes: of the largest frozen parameter.
    """

    trainable: int
    frozen: int
    frozen_bytes: int
    trainable_number_bytes: int
    layer_weights: int
    adapter_weights: int
    head_weights: int
    is_head_trained: bool
    n_layers: int
    width: int
    token_bytes: float
    end_token_bytes: int
    loss_bytes: int
    attention_width: int
    number_bytes: int
    largest_bytes: int

    @classmethod
    def measure(cls, mllm: ToolLLM, on_gpu: bool) -> ModelSize:
        """Count a model, which may be on the meta device.

        Args:
            mllm: built by `ToolLLM.build` or `ToolLLM.sketch`.
            on_gpu: dropout keeps its mask as one byte a number there, and as a number on a CPU.
        """
        causal_lm: Any = mllm.llm.get_base_model()
        config, b = causal_lm.config, FP32_BYTES if mllm.config.dtype == "float32" else 2
        trained = [parameter for parameter in mllm.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in mllm.parameters() if not parameter.requires_grad]
        head = causal_lm.get_output_embeddings()
        inside_head = {id(module) for module in head.modules()}
        linears = [
            module
            for module in causal_lm.modules()
            if isinstance(module, nn.Linear) and id(module) not in inside_head and not module.weight.requires_grad
        ]
        frozen_bytes = sum(parameter.numel() * parameter.element_size() for parameter in frozen)
        if mllm.config.quantize == "nf4":
            quantized = sum(linear.weight.numel() for linear in linears)
            frozen_bytes -= quantized * b - int(quantized * NF4_BITS / 8)
        adapted = [(name, module) for name, module in causal_lm.named_modules() if isinstance(module, LoraLayer)]
        is_head_trained = any(parameter.requires_grad for parameter in head.parameters())
        vocabulary, width = int(config.vocab_size), int(config.hidden_size)
        return cls(
            trainable=sum(parameter.numel() for parameter in trained),
            frozen=sum(parameter.numel() for parameter in frozen),
            frozen_bytes=frozen_bytes,
            trainable_number_bytes=b,
            layer_weights=sum(linear.weight.numel() for linear in linears),
            adapter_weights=sum(
                p.numel() for n, p in causal_lm.named_parameters() if ".lora_A." in n or ".lora_B." in n
            ),
            head_weights=vocabulary * width,
            is_head_trained=is_head_trained,
            n_layers=int(config.num_hidden_layers),
            width=width,
            token_bytes=_layer_bytes(config, b, on_gpu)
            + sum(_adapter_bytes(adapted, b, on_gpu)) / int(config.num_hidden_layers),
            end_token_bytes=_norm_bytes(config, b),
            loss_bytes=vocabulary * FP32_BYTES + (width * b if is_head_trained else 0),
            attention_width=int(config.num_attention_heads) * _head_width(config),
            number_bytes=b,
            largest_bytes=max((parameter.numel() * parameter.element_size() for parameter in frozen), default=0),
        )


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one worker; `offloaded` are in CPU memory instead."""

    weights: float
    gradients: float
    optimizer: float
    offloaded: float


def compute_state_bytes(size: ModelSize, zero_stage: int, workers: int, offload_optimizer: bool = False) -> StateBytes:
    """Weights, gradients and optimizer state of one worker.

    Gradients are summed in fp32. The optimizer keeps two moments in fp32 and, but for plain fp32 training without
    ZeRO, an fp32 copy of the weights.
    Buffers for communication, and the layer that ZeRO-3 has gathered at a time, come on top.

    Args:
        size: of the model.
        zero_stage: 1 shares out the optimizer state, 2 the gradients as well, 3 also the weights, frozen ones included.
        workers: that share.
        offload_optimizer: keep the optimizer state in CPU memory; from stage 1 on.
    """
    own = size.trainable * size.trainable_number_bytes
    has_copy = zero_stage > 0 or size.trainable_number_bytes != FP32_BYTES
    optimizer = size.trainable * FP32_BYTES * (3 if has_copy else 2) / (workers if zero_stage >= 1 else 1)
    is_offloaded = offload_optimizer and zero_stage >= 1
    return StateBytes(
        weights=(size.frozen_bytes + own) / (workers if zero_stage == 3 else 1),
        gradients=size.trainable * FP32_BYTES / (workers if zero_stage >= 2 else 1),
        optimizer=0.0 if is_offloaded else optimizer,
        offloaded=optimizer if is_offloaded else 0.0,
    )


@dataclass(frozen=True)
class StartBytes:
    """CPU memory while the weights are loaded.

    Attributes:
        own: of one worker.
        mapped: the backbone's files, in memory once a node whatever the number of workers there; the system takes these
            pages back when it needs them.
    """

    own: float
    mapped: float


def compute_start_bytes(
    size: ModelSize, zero_stage: int, workers: int, number_bytes: int, is_cast: bool, is_whole: bool
) -> StartBytes:
    """Files are mapped, and what lies there in the run's type takes no more; in another one each worker has its copy.

    Args:
        size: of the model.
        zero_stage: 3: a worker has its part, and one weight at a time whole.
        workers: that share.
        number_bytes: b of a number in the files.
        is_cast: whether the files have another type than the run.
        is_whole: whether each worker loads all of it whatever the stage (`ray_jobs.train.partitioned`).
    """
    trained = size.trainable * FP32_BYTES
    mapped = size.frozen * number_bytes  # modules that are trained whole are copies of frozen ones
    if zero_stage == 3 and not is_whole:
        return StartBytes(size.frozen_bytes / workers + size.largest_bytes + trained, mapped)
    return StartBytes((size.frozen_bytes if is_cast else 0) + trained, mapped)


def compute_export_bytes(size: ModelSize, is_cast: bool) -> float:
    """CPU memory that writing a bundle takes: the trained weights, mapped, and where the adapter is written in 16 bits
    (`is_cast`) a copy of it."""
    return size.trainable * FP32_BYTES + (2 * size.adapter_weights if is_cast else 0)


def compute_activation_bytes(
    size: ModelSize, n_tokens: int, n_losses: int, gradient_checkpointing: bool, mask_bytes: int = 0
) -> float:
    """Bytes that one micro step keeps for its backward pass, at their peak.

    With checkpointing each layer keeps its input alone, and one layer at a time is computed again.

    Args:
        size: of the model.
        n_tokens: T, padding included.
        n_losses: positions at which the vocabulary head runs.
        gradient_checkpointing: recompute the layers.
        mask_bytes: of the attention mask, if it is a tensor.
    """
    layers = n_tokens * size.token_bytes * size.n_layers
    if gradient_checkpointing:
        layers = n_tokens * (size.width * size.number_bytes * size.n_layers + size.token_bytes)
    return layers + n_tokens * size.end_token_bytes + n_losses * size.loss_bytes + mask_bytes


def compute_flops(size: ModelSize, n_tokens: int, n_losses: int, n_pairs: float, gradient_checkpointing: bool) -> float:
    """Floating-point operations of one micro step, forward and backward; a multiplication and an addition are two.

    Args:
        size: of the model.
        n_tokens: T, padding included.
        n_losses: positions at which the vocabulary head runs.
        n_pairs: (query, key) pairs that the attention kernel computes in one layer.
        gradient_checkpointing: the layers' forward pass is computed twice.
    """
    attention = 4 * size.attention_width * n_pairs * size.n_layers
    forward = 2 * (size.layer_weights + size.adapter_weights) * n_tokens + attention
    backward = (2 * size.layer_weights + 4 * size.adapter_weights) * n_tokens + FLASH_BACKWARD * attention
    head = (6 if size.is_head_trained else 4) * size.head_weights * n_losses
    return forward * (2 if gradient_checkpointing else 1) + backward + head


def _layer_bytes(config: Any, b: int, on_gpu: bool) -> int:
    """Bytes that one token keeps in one layer, adapter apart."""
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    attention_width = heads * _head_width(config)
    # Query, key, value and output as the kernel takes them, and fp32 sums of exponentials per head. Grouped keys and
    # values are repeated for the masked kernel.
    attention = 4 * attention_width * b + heads * FP32_BYTES
    if getattr(config, "intermediate_size", None):  # gated: gate, its SiLU and the other factor
        return 2 * _norm_bytes(config, b) + attention + 3 * int(config.intermediate_size) * b
    residual_dropout = 2 * width * (1 if on_gpu else b) if getattr(config, "dropout", 0.0) else 0
    return 2 * _norm_bytes(config, b) + attention + int(config.ffn_dim) * b + residual_dropout


def _norm_bytes(config: Any, b: int) -> int:
    """RMSNorm computes in fp32 and keeps its input as such; LayerNorm keeps the input as it is, mean and deviation."""
    width = int(config.hidden_size)
    return (width + 1) * FP32_BYTES if hasattr(config, "rms_norm_eps") else width * b + 2 * FP32_BYTES


def _adapter_bytes(adapted: list[tuple[str, Any]], b: int, on_gpu: bool) -> Iterator[int]:
    """Bytes that one token keeps in each adapted layer."""
    kept: set[tuple[str, str]] = set()
    for name, module in adapted:
        parent, _, leaf = name.rpartition(".")
        dropout = any(getattr(layer, "p", 0.0) > 0 for layer in module.lora_dropout.values())
        rank = sum(module.r.values())
        n_bytes = rank * b
        reads = _READS.get(leaf, leaf)
        if dropout:  # what is left of the input, and the mask; drawn anew by each layer
            n_bytes += module.in_features * (b + (1 if on_gpu else b))
        elif reads not in _KEPT_ANYWAY and (parent, reads) not in kept:
            kept.add((parent, reads))
            n_bytes += module.in_features * b
        if any(module.use_dora.values()):  # the frozen and the adapter's output, both scaled by the trained magnitude
            n_bytes += 2 * module.out_features * b
        yield n_bytes


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
