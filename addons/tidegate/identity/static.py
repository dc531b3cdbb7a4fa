"""Static tokens for a laptop: made here, shown once, kept as hashes in a YAML file beside the policy.

A token is ``tg_`` and 32 random bytes. Nobody can guess 256 bits, so a plain SHA-256 is enough: a slow password hash
protects words that people choose, and would only cost time on every request.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tidegate.identity.claims import refused
from tidegate.model import Caller, Denial, Fault, Reason
from tidegate.policy.policy import PolicyError, StaticIdentity
from tidegate.policy.reader import NAME, Reader
from tidegate.policy.source import Node, parse

PREFIX = "tg_"
TOKEN_BYTES = 32
TOKEN_CHARACTERS = 100  # ours have 46
KEYS = ("name", "sha256", "groups", "created", "expires")
FILE_BYTES = 1024 * 1024  # about 5,000 tokens

_HEADER = "# Made by `tidegate login --static NAME`. It holds hashes only; a token is shown once, when it is made.\n"
_SHA256 = "64 hexadecimal digits"
_MOMENT = "a moment such as 2027-01-31T00:00:00Z"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StaticToken:
    """One entry of the file. ``groups`` are not qualified; ``created`` is text; ``expires`` is in Unix seconds."""

    name: str
    sha256: str = field(repr=False)
    groups: tuple[str, ...]
    created: str
    expires: float | None


class StaticTokens:
    """The tokens of one identity, read again when their file changes. A file that is absent or at fault means none."""

    def __init__(self, identity: StaticIdentity) -> None:
        self.identity = identity
        self._path = Path(identity.tokens)
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: Mapping[bytes, tuple[bytes, Caller]] = {}

    def identify(self, token: str, now: float) -> Caller | Denial:
        """Name the holder of a token."""
        self._reload()
        if len(token) > TOKEN_CHARACTERS:
            return refused(Reason.TOKEN_TOO_LARGE)
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        # The look-up by four bytes of a hash tells nothing about a token; the comparison takes the same time always.
        known, caller = self._tokens.get(digest[:4], (b"", None))
        if caller is None or not hmac.compare_digest(known, digest):
            return refused(Reason.TOKEN_UNKNOWN)
        if caller.expires is not None and caller.expires <= now:
            return refused(Reason.TOKEN_EXPIRED)
        return caller

    def _reload(self) -> None:
        """Read the file when its time, size or place on the disk changed."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            self._stamp, self._tokens = None, {}
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            tokens = read(self._path)
        except PolicyError as error:
            logger.error("identity %s: no static token is accepted: %s", self.identity.name, error)
            self._tokens = {}
            return
        name = self.identity.name
        self._tokens = {
            (digest := bytes.fromhex(each.sha256))[:4]: (
                digest,
                Caller(name, each.name, frozenset(f"{name}:{group}" for group in each.groups), each.expires),
            )
            for each in tokens
        }


def read(path: Path) -> tuple[StaticToken, ...]:
    """Read a tokens file; one that is absent holds no tokens.

    Raises ``PolicyError`` with every fault, among them a file that others may read or write.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(FILE_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise PolicyError(
            (Fault(str(path), "the file", error.strerror or "an error", "a file that can be read"),)
        ) from None
    if mode & 0o077:
        raise PolicyError(
            (Fault(str(path), "the file", f"mode {mode:04o}", "mode 0600, so that only its owner reads it"),)
        )
    try:
        text = data.decode("utf-8") if len(data) <= FILE_BYTES else ""
    except UnicodeDecodeError:
        text = ""
    root, faults = parse(text, str(path))
    reader = Reader(str(path))
    tokens = _tokens(reader, root) if root is not None else ()
    if faults or reader.faults:
        raise PolicyError((*faults, *reader.faults))
    return tokens


def create(
    path: Path, name: str, groups: Iterable[str], expires: dt.datetime | None = None, *, anew: bool = False
) -> str:
    """Make a token, write its hash into the file, and return the token: the only time that it is ever seen.

    ``groups`` are not qualified (``dev``, not ``local:dev``). Raises ``PolicyError`` when the file is at fault or has
    a token of this name, which with ``anew`` is no longer valid; the file is replaced as a whole, mode 0600.
    """
    tokens = tuple(each for each in read(path) if not (anew and each.name == name))
    groups = tuple(groups)
    problems = [group for group in groups if not group or ":" in group or not group.isprintable()]
    if problems:
        raise PolicyError((Fault(str(path), "groups", repr(problems[0]), "a group without the identity's name"),))
    reader = Reader(str(path))
    reader.name(Node("name", 1, name))
    if any(each.name == name for each in tokens):
        reader.fault(Node("name", 1, name), "each name once", found=f"a token named {name}")
    if reader.faults:
        raise PolicyError(tuple(reader.faults))
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    made = StaticToken(
        name=name,
        sha256=hashlib.sha256(token.encode()).hexdigest(),
        groups=groups,
        created=_written(dt.datetime.now(dt.UTC)),
        expires=None if expires is None else expires.timestamp(),
    )
    _write(path, (*tokens, made))
    return token


def _tokens(reader: Reader, root: Node) -> tuple[StaticToken, ...]:
    """Read the entries; a name or hash that occurs twice is a fault."""
    section = reader.section(root, ("tokens",), {"tokens": "a list of tokens"})
    found: list[StaticToken] = []
    for node in reader.items(section.get("tokens")):
        entry = reader.section(node, KEYS, {"name": NAME, "sha256": _SHA256, "groups": "a list of groups"})
        groups = entry.get("groups")
        digest = entry.get("sha256")
        value = digest.value if digest is not None and isinstance(digest.value, str) else ""
        if digest is not None and (len(value) != 64 or not set(value) <= set("0123456789abcdef")):
            reader.fault(digest, _SHA256, found="something else (not shown)")
            value = "0" * 64
        token = StaticToken(
            name=reader.name(entry.get("name")),
            sha256=value,
            groups=()
            if groups is None or groups.value == ()
            else tuple(str(g.value) for g in reader.texts(groups, "a list")),
            created=reader.text(entry.get("created"), _MOMENT),
            expires=_moment(reader, entry.get("expires")),
        )
        if any(token.name == each.name or token.sha256[:8] == each.sha256[:8] for each in found):
            reader.fault(node, "each name and hash once", found="a second token of this name or hash")
        found.append(token)
    return tuple(found)


def _moment(reader: Reader, node: Node | None) -> float | None:
    if node is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(str(node.value))
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        reader.fault(node, _MOMENT)
        return None
    return moment.timestamp()


def _written(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(path: Path, tokens: Iterable[StaticToken]) -> None:
    """Replace the file: a reader sees the old one or the new one, never a part."""
    entries = []
    for each in tokens:
        entry = {"name": each.name, "sha256": each.sha256, "groups": list(each.groups), "created": each.created}
        if each.expires is not None:
            entry["expires"] = _written(dt.datetime.fromtimestamp(each.expires, dt.UTC))
        entries.append(entry)
    text = _HEADER + yaml.safe_dump({"tokens": entries}, sort_keys=False, default_style=None)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
