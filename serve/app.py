"""The application: `serve run serve.app:build_app bundle=runs/demo/bundle`, or `serve deploy serve/serve.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.serve import Application

from data_pipeline.locations import locate, locate_local
from model.llm.bundle import load_bundle
from model.llm.shared_backbone import check_shareable
from serve.agent.tool_reply import LOCAL_TOOLS, MODEL_TOOLS
from serve.config import ServeArgs
from serve.deployments.encoder import MediaEncoder
from serve.deployments.ingress import Ingress
from serve.deployments.predictor import Predictor
from serve.deployments.tool_host import THREADS, ToolHost
from serve.engine.messages import ServedModel
from serve.tools.all_tools import load_tools


def build_app(args: ServeArgs | Mapping[str, Any]) -> Application:
    """Bind ingress, encoder, predictor and tools to the bundles.

    They are checked here already, so that a faulty one is refused before anything starts.

    Raises:
        InputError: bad arguments, a faulty file of tools, or a bundle that is incomplete, altered or of another format.
    """
    args = ServeArgs.parse(args)
    models = _read_models(args)
    args = _with_absolute_paths(args)
    load_tools(args.tool_models, args.tool_files)  # a faulty one is refused here as well
    common: dict[str, Any] = {
        "logging_config": {"enable_access_log": False},  # the ingress logs each request once, as JSON
        # a replica that is replaced answers what it has: its requests may be waiting for another one that starts
        "graceful_shutdown_timeout_s": args.request_timeout_s,
    }
    predictor = Predictor.options(
        **_scaling(args, args.max_batch_size),  # in calls; under load several questions share one (questions.py)
        max_ongoing_requests=2 * args.max_batch_size,  # one batch runs while the next gathers
        max_queued_requests=args.max_queued_requests,
        health_check_period_s=args.bundle_poll_s,  # a replica looks for new bundles when its health is asked after
        **common,
        ray_actor_options=_resources(args, args.num_gpus),
    ).bind(args)
    encoder = MediaEncoder.options(
        **_scaling(args, args.encoder_max_batch_size),
        max_ongoing_requests=3 * args.encoder_max_batch_size + args.encoder_threads,  # a batch per modality may gather
        max_queued_requests=args.max_queued_requests,
        **common,
        ray_actor_options=_resources(args, args.encoder_num_gpus),
    ).bind(args)
    local_tools, model_tools = (
        ToolHost.options(
            name=name,
            autoscaling_config={
                "min_replicas": 0,
                "max_replicas": args.tool_max_replicas,
                "target_ongoing_requests": THREADS,
                "downscale_delay_s": 600.0,  # a replica takes seconds to start
            },
            max_ongoing_requests=2 * THREADS,
            max_queued_requests=args.max_queued_requests,
            **common,
            ray_actor_options=_resources(args, num_gpus),
        ).bind(args)
        for name, num_gpus in ((LOCAL_TOOLS, 0.0), (MODEL_TOOLS, args.tool_num_gpus))
    )
    return Ingress.options(
        num_replicas=args.ingress_replicas,
        max_ongoing_requests=args.max_queued_requests,
        **common,
        ray_actor_options={"num_cpus": 0},  # it mostly waits, and must find room on a machine of two cores
    ).bind(args, models, predictor, encoder, local_tools, model_tools)


def _resources(args: ServeArgs, num_gpus: float) -> dict[str, Any]:
    """What Ray counts for a replica; one without a GPU runs anywhere."""
    options: dict[str, Any] = {"num_cpus": args.num_cpus, "num_gpus": num_gpus}
    if args.node_resource is not None and num_gpus:
        options["resources"] = {args.node_resource: num_gpus}
    return options


def _scaling(args: ServeArgs, target_ongoing_requests: int) -> dict[str, Any]:
    if args.max_replicas == args.min_replicas:
        return {"num_replicas": args.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": target_ongoing_requests,
        }
    }


def _read_models(args: ServeArgs) -> list[ServedModel]:
    """The models of the bundles, the main one first.

    Raises:
        InputError: a bundle is incomplete, altered or of another format, or they cannot share a backbone.
    """
    bundles = {name: load_bundle(folder) for name, folder in args.bundles.items()}
    check_shareable(bundles)
    return [ServedModel.of(name, bundle) for name, bundle in bundles.items()]


def _with_absolute_paths(args: ServeArgs) -> ServeArgs:
    """Replicas run in another working directory."""
    paths: dict[str, Any] = {
        "bundle": str(locate(args.bundle).absolute()),  # a link stays one: replicas follow it
        "adapters": {name: str(locate(folder).absolute()) for name, folder in args.adapters.items()},
        "tool_files": [str(locate_local(file).resolve()) for file in args.tool_files],
    }
    if args.encoder is not None and Path(args.encoder).is_dir():
        paths["encoder"] = str(Path(args.encoder).resolve())
    return args.model_copy(update=paths)
