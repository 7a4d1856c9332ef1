"""Tools that take a clip and need no weights."""
