"""Tools that take a picture and need no weights."""
