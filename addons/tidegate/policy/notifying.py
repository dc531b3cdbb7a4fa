"""Who is told of approvals, as a policy says it: ``approvals.notify``. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tidegate.approvals.letters import Form, Occasion
from tidegate.approvals.spec import Mail, Target, Webhook
from tidegate.policy.oidc import read_secret
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

NOTIFY_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "approvals.notify[]": ("webhook", "mail", "events"),
    "approvals.notify[].webhook": ("url", "secret", "form"),
    "approvals.notify[].mail": ("server", "from", "to", "user", "password"),
}

DEFAULT = frozenset({Occasion.ASKED, Occasion.GLASS})
_SERVER = re.compile(r"([A-Za-z0-9.-]{1,253}):([0-9]{1,5})")
_ADDRESS = re.compile(r"[^\s<>@,;:\"]{1,64}@[A-Za-z0-9.-]{1,253}")
_URL = "a reference to the address, such as ${file:/run/secrets/hook}: who knows it may write there"
_MAIL = "an e-mail address such as gate@example.com"
_HOST = "a mail server with its port, such as smtp.example.com:587"


def read_notify(reader: Reader, node: Node | None) -> tuple[Target, ...]:
    """Read the list. Faults go to the reader."""
    found = [_target(reader, each) for each in reader.items(node, "a list of webhooks and mails")]
    return tuple(each for each in found if each is not None)


def _target(reader: Reader, node: Node) -> Target | None:
    section = reader.section(node, NOTIFY_SECTIONS["approvals.notify[]"])
    words = reader.texts(section.get("events"), " or ".join(Occasion))
    for each in words:
        if each.value not in list(Occasion):
            reader.fault(each, " or ".join(Occasion))
    events = frozenset(Occasion(str(each.value)) for each in words if each.value in list(Occasion)) or DEFAULT
    kinds = [kind for kind in ("webhook", "mail") if kind in section]
    if len(kinds) != 1:
        if isinstance(node.value, Mapping):
            reader.fault(node, "exactly one of webhook and mail", found=" and ".join(kinds) or "neither")
        return None
    read = _webhook if kinds == ["webhook"] else _mail
    return read(reader, section[kinds[0]], events)


def _webhook(reader: Reader, node: Node, events: frozenset[Occasion]) -> Target:
    section = reader.section(node, NOTIFY_SECTIONS["approvals.notify[].webhook"], {"url": _URL})
    form = reader.choice(section.get("form"), Form, Form.PLAIN)
    secret = read_secret(reader, section["secret"]) if "secret" in section else None
    if form is Form.PLAIN and secret is None and "url" in section:
        reader.fault(
            node, "a secret, with which the gate signs what it sends", found="nothing", key=f"{node.key}.secret"
        )
    return Webhook(read_secret(reader, section.get("url")), secret, form, events)


def _mail(reader: Reader, node: Node, events: frozenset[Occasion]) -> Target:
    needed = {"server": _HOST, "from": _MAIL, "to": "a list of e-mail addresses"}
    section = reader.section(node, NOTIFY_SECTIONS["approvals.notify[].mail"], needed)
    server = _SERVER.fullmatch(reader.text(section.get("server"), _HOST))
    port = int(server[2]) if server else 0
    if "server" in section and not 0 < port < 65536:
        reader.fault(section["server"], _HOST)
    to = reader.texts(section.get("to"), "a list of e-mail addresses")
    for each in (*to, *([section["from"]] if "from" in section else ())):
        if not _ADDRESS.fullmatch(str(each.value)):
            reader.fault(each, _MAIL)
    return Mail(
        host=server[1] if server else "",
        port=port,
        sender=reader.text(section.get("from"), _MAIL),
        to=tuple(str(each.value) for each in to),
        user=reader.text(section.get("user"), "the user name at the mail server") or None,
        password=read_secret(reader, section["password"]) if "password" in section else None,
        events=events,
    )
