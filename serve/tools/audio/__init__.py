"""Tools that take a sound and need no weights."""
