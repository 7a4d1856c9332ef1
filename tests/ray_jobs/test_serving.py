"""What a job that serves a bundle for a while starts, and how it ends that."""

from __future__ import annotations

import signal
import subprocess
import sys

from ray_jobs.serving import _heeding_interrupts

CHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_service_heeds_the_interrupt_that_a_background_job_ignores() -> None:
    """Otherwise it would be waited for, a minute long, and killed."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _heeding_interrupts():
            process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert process.communicate(timeout=60)[0] == "True\n"
    finally:
        signal.signal(signal.SIGINT, before)
