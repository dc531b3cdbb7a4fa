"""Three rules, for tests of approvals: a gate with them starts seconds earlier than one with every rule."""

from __future__ import annotations

from pathlib import Path

PACK = """\
pack: few
class: pii
version: 1
rules:
  - id: card
    description: The number of a test card.
    severity: high
    pattern: '4111 1111 1111 1111'
    match: ["4111 1111 1111 1111", "x 4111 1111 1111 1111."]
    pass: ["4111 1111 1111", "1111 4111"]
    references: [https://example.com/cards]
  - id: email
    description: A made-up address.
    severity: low
    pattern: '[a-z0-9.]{1,40}@example-mail\\.com'
    match: ["jane@example-mail.com", "x jane.roe@example-mail.com y"]
    pass: ["jane@example.com", "@example-mail.com"]
    references: [https://example.com/mail]
"""
SECRETS = """\
pack: keys
class: secrets
version: 1
rules:
  - id: key
    description: A made-up key.
    severity: high
    pattern: 'AKIA[A-Z0-9]{16}'
    match: ["AKIAZ7QK4WJX2MVT5R3P", "x AKIAZ7QK4WJX2MVT5R30 y"]
    pass: ["AKIA", "akiaz7qk4wjx2mvt5r3p"]
    references: [https://example.com/keys]
"""
INSPECTION: dict[str, dict[str, str]] = {
    "prompt": {"secrets": "block", "pii": "approve"},
    "response": {"secrets": "redact", "pii": "allow"},
}


def few_rules(folder: Path) -> None:
    """Put the packs where a policy in ``folder`` finds them."""
    (folder / "packs").mkdir(exist_ok=True)
    (folder / "packs" / "few.yaml").write_text(PACK)
    (folder / "packs" / "keys.yaml").write_text(SECRETS)
