"""Room that all callers share: where there is too little, whoever has most gives way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def find_first_to_go(owners: Mapping[str, str]) -> str:
    """The oldest thing of the caller that has most, so that nobody's many push out another's few.

    Args:
        owners: id -> caller, the oldest first; at least one.
    """
    ((greediest, _),) = Counter(owners.values()).most_common(1)
    return next(thing for thing, owner in owners.items() if owner == greediest)
