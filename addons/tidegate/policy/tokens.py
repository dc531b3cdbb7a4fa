"""What a policy says of tokens: ``tokens``. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.inspection.tokens import TokenLimits
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

TOKEN_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("idle", "lifetime", "values", "bytes", "all_bytes", "restore"),
    "tokens.restore": ("tool_arguments", "urls"),
}


def read_tokens(reader: Reader, node: Node | None) -> TokenLimits:
    """Read ``tokens``. Faults go to the reader."""
    default = TokenLimits()
    if node is None:
        return default
    keys = reader.section(node, TOKEN_SECTIONS["tokens"])
    restore = reader.section(keys["restore"], TOKEN_SECTIONS["tokens.restore"]) if "restore" in keys else {}
    all_bytes = reader.bytes(keys.get("all_bytes")) or default.all_bytes
    found = TokenLimits(
        idle=reader.seconds(keys.get("idle")) or default.idle,
        lifetime=reader.seconds(keys.get("lifetime")) or default.lifetime,
        values=reader.count(keys.get("values"), "a number of values above zero") or default.values,
        bytes=reader.bytes(keys.get("bytes")) or min(default.bytes, all_bytes),
        all_bytes=all_bytes,
        tool_arguments=reader.flag(restore.get("tool_arguments"), default=False),
        urls=reader.flag(restore.get("urls"), default=False),
    )
    if "idle" in keys and found.idle > found.lifetime:
        reader.fault(keys["idle"], f"at most the lifetime of a session, {found.lifetime:g} s")
    if "bytes" in keys and found.bytes > all_bytes:
        reader.fault(keys["bytes"], f"at most the {all_bytes} bytes of all sessions")
    return found
