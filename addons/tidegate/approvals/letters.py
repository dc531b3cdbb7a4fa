"""What is written to people when something happens to an approval: never a body, never a word of the request. Pure.

A link in a letter has no power: it leads to a page that shows something only to who signs in.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from email.message import EmailMessage


class Occasion(enum.StrEnum):
    """What happened."""

    ASKED = "asked"
    DECIDED = "decided"
    GLASS = "break_glass"


class Form(enum.StrEnum):
    """How a webhook wants it."""

    PLAIN = "plain"
    SLACK = "slack"
    TEAMS = "teams"


@dataclass(frozen=True, slots=True)
class Letter:
    """One event of one approval. ``why`` and ``needs`` are words of the policy, ``by`` is who did it.

    ``state`` is what the approval is now. Times are Unix seconds. ``link`` is empty where there is no page.
    ``step`` is the number of what happened.
    """

    event: Occasion
    approval: str
    state: str
    caller: str
    connection: str
    model: str | None
    why: tuple[str, ...]
    needs: str
    by: str
    at: float
    decide_by: float
    link: str
    step: int = 0

    @property
    def title(self) -> str:
        """One sentence for people."""
        match self.event:
            case Occasion.ASKED:
                return f"{self.caller} asks for approval of a request to {self.connection}"
            case Occasion.GLASS:
                return f"{self.by} let a request of {self.caller} to {self.connection} pass without approval"
            case _:
                return f"A request of {self.caller} to {self.connection} is {self.state}"

    @property
    def lines(self) -> tuple[str, ...]:
        """The rest, a line for each thing."""
        left = max(0, round((self.decide_by - self.at) / 60))
        return tuple(
            filter(
                None,
                (
                    f"Why: {', '.join(self.why)}",
                    f"Model: {self.model}" if self.model else "",
                    f"Decides: {self.needs}, within {left} min" if self.event is Occasion.ASKED else f"By: {self.by}",
                    f"Id: {self.approval}",
                ),
            )
        )


def body(letter: Letter, form: Form) -> bytes:
    """Write a letter as a webhook wants it."""
    return json.dumps(_FORMS[form](letter), ensure_ascii=False).encode("utf-8", "replace")


def _plain(letter: Letter) -> Mapping[str, object]:
    """Our own form: every field of the letter, and the sentence."""
    return {"type": f"approval.{letter.event}", "title": letter.title, "data": asdict(letter)}


def _slack(letter: Letter) -> Mapping[str, object]:
    """Block Kit, for Slack's incoming webhooks. Three characters have a meaning there, and are escaped."""
    text = "\n".join([f"*{_escaped(letter.title)}*", *map(_escaped, letter.lines)])
    blocks: list[object] = [{"type": "section", "text": {"type": "mrkdwn", "text": text[:2900], "verbatim": True}}]
    if letter.link:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Look at it"}, "url": letter.link}
        blocks.append({"type": "actions", "elements": [button]})
    return {"text": _escaped(letter.title), "blocks": blocks}


def _teams(letter: Letter) -> Mapping[str, object]:
    """An Adaptive Card, for the webhooks of Teams' workflows."""
    texts: list[object] = [{"type": "TextBlock", "text": letter.title, "weight": "Bolder", "wrap": True}]
    texts += [{"type": "TextBlock", "text": each, "wrap": True} for each in letter.lines]
    card: dict[str, object] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": texts,
    }
    if letter.link:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "Look at it", "url": letter.link}]
    kind = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": kind, "content": card}]}


_FORMS: Mapping[Form, Callable[[Letter], Mapping[str, object]]] = {
    Form.PLAIN: _plain,
    Form.SLACK: _slack,
    Form.TEAMS: _teams,
}


def mail(letter: Letter, sender: str, to: tuple[str, ...]) -> EmailMessage:
    """Write a letter as an e-mail."""
    message = EmailMessage()
    message["Subject"] = " ".join(f"[tidegate] {letter.title}".split())
    message["From"], message["To"] = sender, ", ".join(to)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers of holidays
    message.set_content("\n".join([letter.title, "", *letter.lines, *([letter.link] if letter.link else [])]) + "\n")
    return message


def signature(secret: bytes, name: str, at: int, data: bytes) -> Mapping[str, str]:
    """Sign a webhook so that its receiver knows whose it is and when it was sent (Standard Webhooks 1.0)."""
    mac = hmac.new(secret, b".".join([name.encode(), str(at).encode(), data]), hashlib.sha256).digest()
    signed = base64.b64encode(mac).decode()
    return {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": f"v1,{signed}"}


def key(secret: str) -> bytes:
    """Read a signing secret: base64 after ``whsec_``, as Standard Webhooks writes them, or its own bytes."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    return secret.encode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
