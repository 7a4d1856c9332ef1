"""Data made with a teacher: what it is asked, what of its answers is kept, and the files that `prepare` reads."""
