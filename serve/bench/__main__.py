"""`python -m serve.bench`, a part of `make bench`: the agent that comes with the project, served and measured."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# See serve/README.md; read when Ray Serve is imported, and passed on to all that Ray starts.
os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")

from data_pipeline.errors import InputError
from model.llm.bundle import load_bundle
from serve.bench.job import run

BUNDLE = Path(__file__).parents[2] / "model" / "weights" / "agent_smollm2"


def main() -> int:
    """Measure; 2 where the bundle's backbone is not here (`make smollm2`)."""
    try:
        bundle = load_bundle(BUNDLE)
        bundle.backbone_source()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(run(bundle)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
