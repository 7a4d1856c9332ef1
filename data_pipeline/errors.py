"""Errors that a user can mend: one sentence that says what was wrong, where, what is allowed and how to mend it."""


class InputError(ValueError):
    """Bad input from a user: arguments, configuration, records, media or files. The CLI exits with code 2 on it."""


class MediaError(InputError):
    """A medium that cannot be used: undecodable, empty, too large or too long."""
