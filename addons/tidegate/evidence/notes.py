"""Checkpoints as signed notes: C2SP's signed-note and tlog-checkpoint, Ed25519. Pure but for the key it is given.

A note is the text ``origin \\n size \\n base64(root) \\n``, an empty line, and for each signature a line
``— origin base64(id || signature)``. A public key is written as C2SP's *vkey*: ``origin+key id+base64(1 || key)``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = b"\x01"
DASH = "\N{EM DASH} "
PRIVATE = "PRIVATE+KEY+"
MOST = 16
"""Signatures of one note that are looked at; the specification asks for at least as many."""

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,200}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


class NoteError(Exception):
    """A note, a key or a proof text is not what it should be. The text is one sentence, without any secret."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log of ``size`` leaves says of itself. ``origin`` is the name of the log and of its key."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A log's public key."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature names its key."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        """The key as one line of text."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(ED25519 + self.public).decode()}"

    def open(self, note: str) -> Checkpoint:
        """Return what a note says, if this key signed it. Raises ``NoteError``."""
        checkpoint, text, signatures = parse(note)
        if checkpoint.origin != self.name:
            raise NoteError("the note is of another log")
        found = False
        for name, data in signatures:
            if name == self.name and data[:4] == self.id:
                try:
                    Ed25519PublicKey.from_public_bytes(self.public).verify(data[4:], text.encode())
                except InvalidSignature:
                    raise NoteError("the signature of the note is wrong") from None
                found = True
        if not found:
            raise NoteError("the note is not signed by this key")
        return checkpoint


@dataclass(frozen=True, slots=True, repr=False)
class Signer:
    """A log's private key."""

    name: str
    seed: bytes

    @property
    def verifier(self) -> Verifier:
        """The public half."""
        return Verifier(self.name, self._key().public_key().public_bytes_raw())

    def sign(self, size: int, root: bytes) -> str:
        """Return the signed note of a log."""
        text = Checkpoint(self.name, size, root).text
        signature = self.verifier.id + self._key().sign(text.encode())
        return f"{text}\n{DASH}{self.name} {base64.b64encode(signature).decode()}\n"

    def dump(self) -> str:
        """Return the private key as one line, in the form of Go's ``note`` package."""
        return f"{PRIVATE}{self.name}+{self.verifier.id.hex()}+{base64.b64encode(ED25519 + self.seed).decode()}"

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def make_signer(name: str) -> Signer:
    """Make a new key. ``name`` is the origin of the log. Raises ``NoteError`` for a name that no note may carry."""
    if not _NAME.fullmatch(name):
        raise NoteError("the name of a log has no spaces, no + and at most 200 characters")
    return Signer(name, Ed25519PrivateKey.generate().private_bytes_raw())


def load_signer(text: str) -> Signer:
    """Read a private key. Raises ``NoteError``."""
    if not text.startswith(PRIVATE):
        raise NoteError("found no private key")
    name, data = _key(text.strip()[len(PRIVATE) :])
    signer = Signer(name, data)
    if signer.dump() != text.strip():
        raise NoteError("the private key does not fit its id")
    return signer


def load_verifier(text: str) -> Verifier:
    """Read a public key (a vkey). Raises ``NoteError``."""
    name, data = _key(text.strip())
    verifier = Verifier(name, data)
    if verifier.vkey != text.strip():
        raise NoteError("the public key does not fit its id")
    return verifier


def _key(text: str) -> tuple[str, bytes]:
    parts = text.split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
        raise NoteError("found no key; accepted: name+id+base64, as `tidegate evidence key` prints it")
    data = _base64(parts[2])
    if len(data) != 33 or data[:1] != ED25519:
        raise NoteError("found a key of another kind; accepted: Ed25519")
    return parts[0], data[1:]


def parse(note: str) -> tuple[Checkpoint, str, list[tuple[str, bytes]]]:
    """Return a note's checkpoint, the text that is signed, and its signatures. Nothing is verified.

    Raises ``NoteError``.
    """
    head, empty, tail = note.partition("\n\n")
    lines = head.split("\n")
    if not empty or len(lines) != 3 or not _NAME.fullmatch(lines[0]) or not _NUMBER.fullmatch(lines[1]):
        raise NoteError("found no checkpoint note")
    signatures = []
    for line in tail.split("\n")[:-1][:MOST]:
        name, space, data = line.removeprefix(DASH).partition(" ")
        if not line.startswith(DASH) or not space or not _NAME.fullmatch(name):
            raise NoteError("found a line in the note that is no signature")
        signatures.append((name, _base64(data)))
    if not signatures or not tail.endswith("\n"):
        raise NoteError("found no signature in the note")
    return Checkpoint(lines[0], int(lines[1]), _hash(lines[2])), f"{head}\n", signatures


def parse_many(text: str) -> list[str]:
    """Cut a file of notes, as a sink keeps them, into notes."""
    notes: list[str] = []
    lines: list[str] = []
    signing = False
    for line in text.splitlines(keepends=True):
        if signing and not line.startswith(DASH):
            notes.append("".join(lines))
            lines, signing = [], False
            if not line.strip():
                continue
        signing = signing or line.startswith(DASH)
        lines.append(line)
    if "".join(lines).strip():
        notes.append("".join(lines))
    return notes


def tlog_proof(index: int, path: Sequence[bytes], note: str) -> str:
    """Return an inclusion proof as C2SP's tlog-proof: of the leaf ``index`` under the root of ``note``."""
    hashes = "".join(f"{base64.b64encode(each).decode()}\n" for each in path)
    return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note}"


def read_proof(text: str) -> tuple[int, list[bytes], str]:
    """Return the index, the hashes and the note of a tlog-proof. Raises ``NoteError``."""
    head, empty, note = text.partition("\n\n")
    lines = head.split("\n")
    if len(lines) > 1 and lines[1].startswith("extra "):
        _base64(lines.pop(1)[6:])
    if not empty or len(lines) < 2 or lines[0] != "c2sp.org/tlog-proof@v1" or not lines[1].startswith("index "):
        raise NoteError("found no tlog-proof")
    if not _NUMBER.fullmatch(lines[1][6:]):
        raise NoteError("the index of the proof is no number")
    return int(lines[1][6:]), [_hash(each) for each in lines[2:]], note


def _hash(text: str) -> bytes:
    data = _base64(text)
    if len(data) != 32:
        raise NoteError("found a hash that has not 32 bytes")
    return data


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("found something that is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise NoteError("found base64 with stray bits")
    return data
