"""Everything that can be set when the service starts. Host and port belong to Ray Serve (`serve.yaml`, `serve run`)."""

from __future__ import annotations

import getpass
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.errors import InputError

_ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)  # as browsers send it: lower case, no path, no slash
_MODEL_NAME = re.compile(r"[\w.-]+(?<!-agent)", re.ASCII)  # the suffix asks for the agent's loop


_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_URL = re.compile(r"https?://[^\s@]+", re.ASCII | re.IGNORECASE)  # no name or key before an @


class McpServer(BaseModel):
    """An MCP server whose tools the service takes over; an address or a command alone may stand for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = Field(default=None, description="where it speaks MCP over streamable HTTP")
    command: list[str] = Field(default=[], description="program and arguments that start it, to speak over its pipes")
    headers: dict[str, str] = Field(
        default={}, description="HTTP header -> name of the environment variable that holds its whole value"
    )
    environment: list[str] = Field(default=[], description="names of environment variables that the command needs")

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"url": value}
        return {"command": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_forms(self) -> McpServer:
        if (self.url is None) == (not self.command):
            raise ValueError("give either a url or a command")
        if self.url is not None and not _URL.fullmatch(self.url):
            raise ValueError("the url begins with http:// or https:// and holds neither blanks nor an @")
        if (self.headers and self.url is None) or (self.environment and not self.command):
            raise ValueError("headers go with a url, environment with a command")
        for name in (*self.headers.values(), *self.environment):
            if not _VARIABLE.fullmatch(name):  # a key itself, perhaps: it is not repeated
                raise ValueError("what stands for a value is no environment variable's name: keys stay out of configs")
        return self


class ServeArgs(BaseModel):
    """Arguments of `serve.app:build_app`; flat, so that `serve run serve.app:build_app bundle=... top_k=3` can."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(
        min_length=1,
        description="bundle folder, readable at this path on every serving node; where it is a symbolic link (verb "
        "`follow` keeps one to MLflow's champion), replicas take over what it points to",
    )
    encoder: str | None = Field(
        default=None, description="encoder name or folder; default: the one that the bundle names"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where the replica has a GPU")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of language model and encoder; auto: as trained for the first, but no "
        "bfloat16 on a processor without instructions for it; float32 for the second",
    )
    engine: Literal["local", "vllm"] = Field(
        default="local",
        description="what runs the language model: the predictor itself, or a vLLM server (docs/engines.md)",
    )
    vllm_url: str | None = Field(
        default=None, description="of that server, such as http://127.0.0.1:8100; its key is in TOOLMM_VLLM_API_KEY"
    )
    bundle_poll_s: float = Field(default=10.0, gt=0, description="how often a predictor replica looks for new bundles")
    top_k: int = Field(default=5, ge=1, description="tools named where a request does not say k")

    max_batch_size: int = Field(default=16, ge=1, description="questions that the language model answers in one batch")
    batch_wait_timeout_s: float = Field(default=0.005, ge=0, description="how long a question waits for company")
    encoder_max_batch_size: int = Field(
        default=8, ge=1, description="media of one modality that are encoded in one batch"
    )
    encoder_threads: int = Field(
        default=4,
        ge=1,
        description="media decoded at the same time in one encoder replica, each by a process of its own",
    )
    media_cache_entries: int = Field(default=2048, ge=0, description="media vectors that an encoder replica remembers")
    max_queued_requests: int = Field(
        default=256, ge=1, description="requests that may wait per deployment; more: HTTP 503"
    )
    request_timeout_s: float = Field(
        default=60.0, gt=0, description="a request that takes longer is answered with HTTP 504"
    )

    prefix_cache_bytes: int = Field(
        default=512 * 2**20,
        ge=0,
        description="of what a predictor replica keeps of dialogues in the model's memory, so that their next turns "
        "read only what is new; 0: nothing",
    )

    min_replicas: int = Field(
        default=1,
        ge=0,
        description="of predictor and encoder; 0: none while nobody asks, and the first request waits for one to "
        "start, for which request_timeout_s must suffice",
    )
    max_replicas: int = Field(default=1, ge=1, description="above min_replicas: Ray Serve scales with the load")
    ingress_replicas: int = Field(default=1, ge=1)
    num_gpus: float = Field(default=0.0, ge=0, description="per predictor replica")
    encoder_num_gpus: float = Field(default=0.0, ge=0, description="per encoder replica")
    node_resource: str | None = Field(
        default=None,
        min_length=1,
        description="a custom resource of the nodes that serve on GPUs; replicas take as much of it as of a GPU",
    )
    num_cpus: float = Field(
        default=0.25,
        ge=0,
        description="that Ray counts per replica of predictor, encoder and tools: four find room on one core",
    )

    model_name: str = Field(default="toolmm", description="what clients call the model")
    adapters: dict[str, str] = Field(
        default={},
        description="further models over the same backbone and encoder: what clients call each -> its bundle folder",
    )
    artifacts: str | None = Field(
        default=None,
        description="directory or fsspec URI of uploads and results; every node must see it; default: a folder of this "
        "user's below the system's temporary one, for one machine",
    )
    artifact_ttl_s: float = Field(default=24 * 3600.0, gt=0, description="how long an upload or a result is kept")
    artifact_bytes_per_key: int = Field(
        default=2 * 2**30, ge=1, description="of all uploads and results of one API key together; more: HTTP 413"
    )
    responses_kept: int = Field(
        default=500,
        ge=0,
        description="answers of /v1/responses that can be gone on from, in the memory of the one ingress replica; with "
        "several there are none",
    )
    response_ttl_s: float = Field(
        default=3600.0, gt=0, description="how long such an answer is kept; jobs and Idempotency-Keys likewise"
    )
    cors_origins: list[str] = Field(
        default=[],
        description="web pages elsewhere that may ask from a browser, such as https://chat.example.org; * for all, "
        "which needs API keys; default: none",
    )
    allow_urls: bool = Field(default=False, description="fetch media of chats from public http(s) addresses")
    requests_per_minute: float = Field(default=0.0, ge=0, description="per API key and ingress replica; 0: no limit")
    requests_at_once: int = Field(
        default=64, ge=1, description="of one API key, under way in one ingress replica; more: HTTP 429"
    )
    tool_files: list[str] = Field(default=[], description="Python files with tools of your own (docs/tools.md)")
    tool_models: dict[str, str] = Field(default={}, description="tool id -> hub id or folder, for its default model")
    mcp_servers: dict[str, McpServer] = Field(
        default={},
        description="MCP servers whose tools the service takes over as mcp/<name>/<tool>: name -> an address, a "
        "command, or one of these with what it needs (serve/README.md)",
    )
    tool_max_replicas: int = Field(default=1, ge=1, description="of each tool deployment; they start at none")
    tool_num_gpus: float = Field(default=0.0, ge=0, description="per replica of the tools that run models")
    tool_timeout_s: float = Field(default=60.0, gt=0, description="of one call; a tool's own limit holds where lower")
    tool_load_timeout_s: float = Field(
        default=600.0, gt=0, description="of loading a model tool's weights, in which the call's own time stands still"
    )
    agent_max_steps: int = Field(default=6, ge=1, description="tool calls of one agent request")
    agent_max_tools: int = Field(default=8, ge=1, description="tools that the agent is offered: those that suit best")
    agent_max_tokens: int = Field(default=1024, ge=1, description="tokens that the model writes in one agent request")

    max_upload_bytes: int = Field(default=32 * 2**20, ge=1, description="of one medium")
    max_pixels: int = Field(default=50_000_000, ge=1, description="of one picture or video frame")
    max_duration_s: float = Field(default=600.0, gt=0, description="of one sound or video")
    max_instruction_chars: int = Field(default=4000, ge=1)

    @model_validator(mode="after")
    def _check_replicas(self) -> ServeArgs:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas {self.min_replicas}")
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> ServeArgs:
        if (self.engine == "vllm") != (self.vllm_url is not None):
            raise ValueError("engine=vllm and vllm_url go together")
        if self.vllm_url is not None and not _URL.fullmatch(self.vllm_url):
            raise ValueError("vllm_url begins with http:// or https:// and holds neither blanks nor an @")
        return self

    @model_validator(mode="after")
    def _check_origins(self) -> ServeArgs:
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins holds {origin!r}; an origin is https://host or http://host:port, or *")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> ServeArgs:
        for name in (self.model_name, *self.adapters):
            if not _MODEL_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no model name: letters, digits and ._- only, and not ending in -agent")
        if self.model_name in self.adapters:
            raise ValueError(f"adapters holds {self.model_name!r}, which is the name of the main model (model_name)")
        return self

    @model_validator(mode="after")
    def _check_servers(self) -> ServeArgs:
        for name in self.mcp_servers:
            if not _SERVER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an MCP server: 1 to 32 letters, digits and _- only")
        return self

    @classmethod
    def parse(cls, values: ServeArgs | Mapping[str, Any]) -> ServeArgs:
        """Check the arguments; `InputError` names every faulty one and, for an unknown one, the valid names."""
        if isinstance(values, ServeArgs):
            return values
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            faults = "; ".join(_describe_fault(fault) for fault in error.errors())
            raise InputError(f"serving arguments: {faults}. Valid arguments: {', '.join(cls.model_fields)}.") from error

    @property
    def bundles(self) -> dict[str, str]:
        """Model name -> bundle folder, the main model first."""
        return {self.model_name: self.bundle, **self.adapters}

    @property
    def artifacts_uri(self) -> str:
        """Where uploads and results lie."""
        return self.artifacts or str(Path(tempfile.gettempdir()) / f"toolmm-artifacts-{getpass.getuser()}")

    @property
    def max_body_bytes(self) -> int:
        """Largest request body: base64 makes 4 bytes of 3, JSON's escapes of line breaks up to 4 of each 76, and words
        and field names need some room."""
        return self.max_upload_bytes * 3 // 2 + self.max_instruction_chars * 12 + 64 * 1024

    def resolve_device(self) -> str:
        """The device of a replica; call it inside the replica, where Ray has set the visible GPUs."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


def _describe_fault(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{name!r} is unknown"
    if fault["type"] == "missing":
        return f"{name!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["loc"][:1] == ("mcp_servers",):
        return f"{name!r}: {message}"  # what stands there may be a key, so it is not repeated
    return f"{name!r} is {fault['input']!r}: {message}" if name else message
