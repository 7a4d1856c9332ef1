"""What clients call a tool: ids of ours hold slashes and dots, which they refuse, so each gets a name and keeps its id.

OpenAI's functions are called by letters, digits and `_-` in up to 64 characters. MCP allows `_-.` and 128 characters
(revision 2025-11-25, server/tools, "Tool Names"), but the APIs of the models behind its clients are as OpenAI's, and a
client takes some of the 64 characters to say whose tool it is.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable

MAX_NAME_CHARS = 64
_DIGEST_CHARS = 8
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)


def name_tools(tool_ids: Iterable[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """Give each tool a name for clients.

    A slash becomes two underscores, and what else is not allowed one. Where two ids would so be called alike, or one is
    too long, its name ends in a digest of the id: a name depends on no order, and every ingress replica gives the same.

    Args:
        tool_ids: distinct ids.
        reserved: names that are taken.

    Returns:
        name -> tool id, in the order of the ids; no two ids share a name.
    """
    plain = {tool_id: _FOREIGN.sub("_", tool_id.replace("/", "__")) for tool_id in tool_ids}
    counts = Counter([*plain.values(), *reserved])
    return {
        name if counts[name] == 1 and 0 < len(name) <= MAX_NAME_CHARS else _with_digest(name, tool_id): tool_id
        for tool_id, name in plain.items()
    }


def _with_digest(name: str, tool_id: str) -> str:
    digest = hashlib.sha256(tool_id.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{name[: MAX_NAME_CHARS - _DIGEST_CHARS - 1]}-{digest}"
