"""`python -m ray_jobs`: keep the libraries' own chatter out of the output, then run the command line."""

from ray_jobs.chatter import silence_libraries

silence_libraries()

from ray_jobs.cli import main  # noqa: E402

raise SystemExit(main())
