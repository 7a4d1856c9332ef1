"""The run config's section `train`, and which of its settings go together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import InputError
from model.llm.config import ModelConfig

MAX_BUCKET = 500_000_000  # gradients that DeepSpeed reduces at a time, by its default; no more than are trained
WorkerCount = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the run config: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LossOptions(Section):
    """What training minimises: the sum of these, weighted. The first is the papers'; see `model.llm.choice_loss`."""

    tokens: float = Field(default=1.0, ge=0)  # cross entropy, mean over all answer tokens
    answers: float = Field(default=0.0, ge=0)  # -log p(answer) under the catalogue's trie, mean over the right answers
    answer_set: float = Field(default=0.0, ge=0)  # -log p(any right answer) under the trie, mean over the questions
    retrieval: float = Field(default=0.0, ge=0)  # contrastive: questions beside tool cards, mean over the questions
    retrieval_cards: int = Field(default=32, ge=2)  # cards of one micro step of a worker, beside its pack_tokens

    @property
    def is_under_trie(self) -> bool:
        return self.answers > 0 or self.answer_set > 0

    @property
    def names_tools(self) -> bool:
        """Whether the model learns to write answers; by `retrieval` alone it learns to find cards."""
        return self.tokens > 0 or self.is_under_trie


class TrainOptions(Section):
    """Ray Train and DeepSpeed. Defaults are MLLM-Tool's Table 4 for 7B models, but for the packed layout."""

    epochs: int = Field(default=5, ge=1)
    global_batch_size: int = Field(default=64, ge=1)  # question-answer rows per optimizer step, over all workers
    layout: Literal["packed", "rows"] = "packed"  # rows = the papers' way: one sequence for every answer
    pack_tokens: int = Field(default=2048, ge=16)  # token budget of one micro step of one worker
    micro_batch_size: int = Field(default=4, ge=1)  # rows per micro step of one worker; layout=rows only
    max_target_tokens: int = Field(default=512, ge=16)  # question + answer after the media slot; the question is cut
    loss: LossOptions = LossOptions()
    wide: bool = False  # fit a wide head too, a linear model whose opinion is pooled with the language model's
    lr: float = Field(default=5e-4, gt=0)  # peak
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.001, ge=0)
    warmup_steps: int = Field(default=10, ge=0)  # schedule=linear only; the reference derives its own
    schedule: Literal["linear", "reference"] = "linear"  # linear = the paper's; reference = the released code's
    sampler: Literal["uniform", "paper"] = "uniform"  # paper = MLLM-Tool's rotation of modalities; layout=rows only
    mixture: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict
    )  # source -> times that each of its records is seen in an epoch; 1 where not named
    lora_plus_ratio: float = Field(default=1.0, ge=1)  # LoRA+: learning rate of the B matrices over that of the others
    projector_epochs: int = Field(default=0, ge=0)  # two-stage schedule: so many first epochs train the projector alone
    max_grad_norm: float = Field(default=1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False  # optimizer state in CPU memory; zero_stage 1 to 3
    workers: WorkerCount | tuple[WorkerCount, WorkerCount] = 1  # one GPU each where use_gpu; [min, max] = elastic
    use_gpu: bool = False
    cpus_per_worker: float = Field(default=1, gt=0)  # and torch threads
    node_resource: str | None = Field(default=None, min_length=1)  # a custom resource of the nodes to train on
    max_failures: int = Field(
        default=3, ge=-1
    )  # worker failures that Ray Train restarts from the last checkpoint; -1 = all
    max_preemption_failures: int = Field(
        default=-1, ge=-1
    )  # likewise, of nodes that the cluster has said it would take
    checkpoint_every_steps: int | None = Field(default=None, ge=1)  # besides the checkpoint at the end of every epoch
    max_dialogue_tokens: int = Field(default=2048, ge=64)  # longer dialogues are left out and counted
    validation_questions: int = Field(default=512, ge=0)  # at most so many questions are decoded after each epoch
    validation_dialogues: int = Field(default=64, ge=0)  # likewise
    max_steps: int | None = Field(
        default=None, ge=1
    )  # stop early: for trials and smoke runs; the schedule keeps its length

    @property
    def min_workers(self) -> int:
        """Workers that a run starts with at the least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Workers of a run that has all the machines it may use."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def check_training(model: ModelConfig, train: TrainOptions) -> None:
    """Refuse, before any worker starts, what DeepSpeed and the adapters cannot do together.

    Raises:
        InputError: says which two settings do not go together, and what to set instead.
    """
    if train.zero_stage == 0 and train.offload_optimizer:
        raise InputError(
            "train.offload_optimizer=true needs a sharded optimizer, but train.zero_stage is 0; set it to 1, 2 or 3."
        )
    if train.zero_stage == 0 and model.dtype != "float32":
        # DeepSpeed's unsharded bf16 optimizer takes a step when it is built, so a resumed run would not go on exactly.
        raise InputError(
            f"model.dtype={model.dtype} does not train exactly under train.zero_stage=0; set it to 1, 2 or 3."
        )
    if model.dtype == "float16" and not train.use_gpu:
        raise InputError(
            "model.dtype=float16 trains on GPUs alone; set train.use_gpu=true, or model.dtype to bfloat16 or float32."
        )
    if model.quantize != "none" and train.zero_stage == 3:
        raise InputError(
            f"model.quantize={model.quantize} does not go with train.zero_stage=3, which cannot shard packed 4-bit "
            "weights; set train.zero_stage to 2 (the frozen weights are small then), or model.quantize to none."
        )
    if model.quantize != "none" and not train.use_gpu:
        raise InputError(f"model.quantize={model.quantize} needs CUDA; set train.use_gpu=true or model.quantize=none.")
    loss = train.loss
    if not (loss.names_tools or loss.retrieval):
        raise InputError("train.loss weighs nothing: raise tokens, answers, answer_set or retrieval above 0.")
    if (loss.answer_set or loss.retrieval) and train.layout == "rows":
        raise InputError(
            "train.loss.answer_set and train.loss.retrieval need a question once, with all its right answers, but "
            "train.layout=rows parts them; set train.layout=packed, or take train.loss.answers."
        )
    if loss.is_under_trie and train.sampler == "paper":
        raise InputError(
            "train.sampler=paper averages single rows as MLLM-Tool does and goes with its loss alone; set "
            "train.sampler=uniform, or leave train.loss as it is."
        )
    if train.sampler == "paper" and (train.layout != "rows" or train.mixture):
        raise InputError(
            f"train.sampler=paper deals single (question, answer) rows and over-samples by itself; train.layout is "
            f"{train.layout} and train.mixture is {train.mixture}; set train.layout=rows and leave train.mixture "
            "empty, or take train.sampler=uniform."
        )
    if not isinstance(train.workers, int) and train.workers[0] > train.workers[1]:
        low, high = train.workers
        raise InputError(f"train.workers=[{low}, {high}] asks for more workers at least than at most; swap the two.")
    if train.projector_epochs > train.epochs:
        raise InputError(
            f"train.projector_epochs={train.projector_epochs} is more than train.epochs={train.epochs}, which counts "
            "them in; raise the one or lower the other."
        )
