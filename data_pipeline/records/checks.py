"""The columns that `generate` adds to each row that it writes: what was checked, and what a person decided.

Nothing is deleted by a check. A row that a person dropped is left out by what reads the file (`find_drop`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHECK_FORMAT = "check_format"  # "ok", or in a sentence why `prepare` could not read it as it was meant
CHECK_CALL = "check_call"  # "ok", "failed: ...", "not tried: ...", or "" where it was not asked for
CHECK_STRICT = "check_strict"  # a strict judge's "yes" or "no", "unclear", or "" where none was asked
CHECK_BROAD = "check_broad"  # a generous judge's, likewise
CHECK_LEAK = "check_leak"  # "none", "question", "medium", or "" where no test data were given
REVIEW = "review"  # "keep", "drop" or "edit" by a person, or ""
REVIEW_NOTE = "review_note"  # why, in that person's words
REVIEW_KEY = "review_key"  # sha256 of the content that was decided on
MEDIA_LICENCE = "media_licence"  # terms of the row's medium, or ""

COLUMNS = (
    CHECK_FORMAT,
    CHECK_CALL,
    CHECK_STRICT,
    CHECK_BROAD,
    CHECK_LEAK,
    REVIEW,
    REVIEW_NOTE,
    REVIEW_KEY,
    MEDIA_LICENCE,
)
DROPPED = "dropped in review"  # the reason of a row that a person dropped


def find_drop(row: Mapping[str, Any]) -> str | None:
    """Why a person dropped a row, "" without a note; None for one that stays."""
    return str(row.get(REVIEW_NOTE) or "") if row.get(REVIEW) == "drop" else None
