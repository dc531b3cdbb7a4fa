"""Canary tokens: texts that nobody has a reason to send, planted where only a leak would find them. Pure.

A canary's form is found like any rule's, in streams too; a keyed fingerprint then tells the one token from its
look-alikes, so whoever reads the file of canaries cannot avoid them.
"""

from __future__ import annotations

import base64
import enum
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.inspection.proprietary.detector import coded_rule
from tidegate.inspection.proprietary.table import mac
from tidegate.inspection.rules import Rule, Severity

RANDOM_BYTES = 16
"""What ``mint`` needs. A key id holds 80 of these bits, a word string 96, an address all 128."""
_DOMAIN = b"canary"
# Proquints (arXiv:0901.4016): sixteen bits as five letters that can be spoken.
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


class Form(enum.StrEnum):
    """What a canary looks like."""

    KEY = "key"
    URL = "url"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Canary:
    """A minted token as it is kept. ``lead`` is the part it begins with, which is no secret."""

    name: str
    form: Form
    lead: str
    fingerprint: str = field(repr=False)


def mint(
    name: str, form: Form, key: bytes, randomness: bytes, *, host: str = "files.example.com"
) -> tuple[str, Canary]:
    """Make a token of a form out of ``RANDOM_BYTES`` random bytes; returns it and what is kept of it."""
    spelt = base64.b32encode(randomness).decode().rstrip("=")
    if form is Form.KEY:
        lead, rest = "AKIA", spelt[:16]
    elif form is Form.URL:
        lead, rest = f"https://{host}/", spelt.lower()
    else:
        lead, *more = (_spoken(randomness[at : at + 2]) for at in range(0, 14, 2))
        rest = "".join(f"-{each}" for each in more)
    return lead + rest, Canary(name, form, lead, fingerprint(key, (lead + rest).encode()))


def fingerprint(key: bytes, token: bytes) -> str:
    """Return what is kept of a token: 32 hexadecimal digits."""
    return mac(key, _DOMAIN, token).hex()


def canary_rule(canary: Canary, cls: str, file: str) -> Rule:
    """Return the rule that finds everything of a canary's form; ``check`` then accepts the canary alone."""
    lead = re.sub(r"([^A-Za-z0-9])", r"\\\1", canary.lead)
    rest = {Form.KEY: "[A-Z2-7]{16}", Form.URL: "[a-z2-7]{26}", Form.WORDS: "(?:-[a-z]{5}){6}"}[canary.form]
    description, pattern = f"Canary token {canary.name}", rf"\b{lead}{rest}\b"
    return coded_rule(canary.name, cls, description, Severity.CRITICAL, file, pattern=pattern)


def check(canary: Canary, key: bytes) -> Callable[[bytes], bool]:
    """Return the check of a span of the canary's form: whether it is the canary."""
    return lambda span: hmac.compare_digest(fingerprint(key, span), canary.fingerprint)


def _spoken(pair: bytes) -> str:
    bits = int.from_bytes(pair)
    parts = ((12, 4, _CONSONANTS), (10, 2, _VOWELS), (6, 4, _CONSONANTS), (4, 2, _VOWELS), (0, 4, _CONSONANTS))
    return "".join(letters[bits >> shift & (1 << width) - 1] for shift, width, letters in parts)
