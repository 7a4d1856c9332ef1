"""Sources to a corpus on disk: split, audited for leaks, counted and reported."""
