"""`python -m ray_jobs`: keep the libraries' own chatter out of the output, then run the command line."""

import os
import warnings

# Read when the libraries are imported, so before the command line is.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
warnings.simplefilter("ignore", FutureWarning)
warnings.simplefilter("ignore", DeprecationWarning)

from ray_jobs.cli import main  # noqa: E402

raise SystemExit(main())
