"""Serve a bundle on this machine: `python -m serve bundle=FOLDER [key=value ...] [--open]`.

On a cluster Ray's own commands do it, with the same arguments (serve/README.md).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import webbrowser

import yaml

from data_pipeline.errors import InputError
from serve.config import ServeArgs

LOGICAL_CPUS = 8  # what Ray counts, so that replicas of tools find room on two cores


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__, allow_abbrev=False)
    parser.add_argument("values", nargs="*", metavar="key=value", help="bundle=FOLDER, and fields of ServeArgs")
    parser.add_argument("--port", type=int, default=8000, help="of 127.0.0.1; default: 8000")
    parser.add_argument("--open", action="store_true", help="open the page in a browser once it is there")
    options = parser.parse_args(argv)
    try:
        args = ServeArgs.parse(_read_values(options.values))
        _serve(args, options.port, options.open)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read_values(words: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"{word[:80]!r} is no key=value; write for example bundle=runs/demo/bundle.")
        values[key] = yaml.safe_load(value)
    return values


def _serve(args: ServeArgs, port: int, opens_page: bool) -> None:
    """Until Ctrl-C or SIGTERM."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray  # seconds of import time, which a faulty command line does not need
    from ray import serve as ray_serve

    from serve.app import build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = build_app(args)
    print(f"starting {args.model_name} from {args.bundle} …", flush=True)
    is_over = threading.Event()
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's own handlers
            signal.signal(number, lambda *_: is_over.set())
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        ray_serve.run(application, name="toolmm", logging_config={"log_level": "ERROR"})
        url = f"http://127.0.0.1:{port}/"
        print(f"ready: {url} until you press Ctrl-C", flush=True)
        if opens_page:
            webbrowser.open(url)
        is_over.wait()
        print("stopping", flush=True)
    finally:
        ray.shutdown()  # ends the local cluster, and the application with it


if __name__ == "__main__":
    sys.exit(main())
