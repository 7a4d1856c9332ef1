"""What libraries print about themselves, kept out of the output of the command line. All else comes through."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings

# What Ray warns of, and need not; it writes them at a level at which it writes real errors too.
FALSE_ALARMS = (
    # of each actor that Ray Data and Ray Train start: they keep the arguments as long as the actor
    "has constructor arguments in the object store and max_restarts > 0",
    # more workers than cores: so it is meant (`ray_jobs.cluster.connect`)
    "worker processes have been started on node",
    # a trace of the locks that a worker's process takes while it comes to its end, once in a hundred jobs; of deadlocks
    # and the like other lines of that file tell
    "mutex.cc : 452] RAW: ",
)
SETTINGS = {
    "TQDM_DISABLE": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # ours say how far a job is, not how far each of its steps
    "TRANSFORMERS_VERBOSITY": "error",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "|".join(map(re.escape, FALSE_ALARMS)),  # in what Ray brings from other processes
}


def silence_libraries() -> None:
    """Call it before anything else is imported: that is when the libraries read their settings."""
    settings = SETTINGS if sys.stdout.isatty() else SETTINGS | {"RAY_COLOR_PREFIX": "0"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    _filter_descriptor()


def _filter_descriptor() -> None:
    """Take the false alarms out of what C++ code writes to this process's stderr.

    Ray has no setting for one line, and those for a level go for its other processes' files as well. The filter is a
    process of its own: the last words of a crash come through. Python's own lines do not pass it.
    """
    grep = shutil.which("grep")
    if grep is None:
        return
    sys.stderr.flush()
    sys.stderr = open(  # noqa: SIM115 - as long as the process
        os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors
    )
    patterns = [argument for alarm in FALSE_ALARMS for argument in ("-e", alarm)]
    process = subprocess.Popen(
        [grep, "--line-buffered", "--text", "--fixed-strings", "--invert-match", *patterns],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, and the filter goes on until it has ended
    )
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
