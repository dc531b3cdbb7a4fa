"""The conditions that rules of roles and bindings may have, beside connection, endpoint, model and tools. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tidegate.model import Conditions, Modality, RuleMode, Window
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

_WHEN = ("days", "hours", "zone")
CONDITION_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "roles.NAME.inspection": ("prompt", "response", "loosen"),
    "roles.NAME.inspection.loosen": ("prompt", "response"),
    "roles.NAME.allow[].when": _WHEN,
    "roles.NAME.deny[].above": ("max_output_tokens", "choices", "body"),
    "roles.NAME.deny[].when": _WHEN,
    "roles.NAME.deny[].unless": ("when", "sources", "strength", "max_age"),
    "roles.NAME.deny[].unless.when": _WHEN,
}

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAYS_ACCEPTED = "a list of days such as [mon-fri, sun]"
HOURS_ACCEPTED = 'hours such as "08:00-18:00"; "22:00-06:00" goes on into the next day'
ZONE_ACCEPTED = "a time zone such as Europe/Berlin or UTC"
SOURCES_ACCEPTED = "a list of addresses or networks such as 10.0.0.0/8 or 2001:db8::/32"
STRENGTH_ACCEPTED = "a list of acr or amr values such as mfa or phr, of which one is enough"
TOOLS_ACCEPTED = "a list of names in which * stands for any text"
MODALITIES_ACCEPTED = f"a list of {', '.join(Modality)}"
CLAIMS_ACCEPTED = "a mapping of claims to lists of their values, such as {department: [research]}"
CHOICES_ACCEPTED = "a whole number of answers above zero"
TOKENS_ACCEPTED = "a whole number of tokens above zero"

_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-4]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class AllowMore:
    """What an allow rule says beside its first four keys. ``mode`` is its own, not the policy's."""

    head: Conditions | None
    stream: bool | None
    modalities: frozenset[Modality] | None
    called: tuple[str, ...] | None
    choices: int | None
    mode: RuleMode


@dataclass(frozen=True, slots=True)
class DenyMore:
    """What a deny rule says beside its first four keys."""

    head: Conditions | None
    unless: Conditions | None
    stream: bool | None
    modalities: frozenset[Modality] | None
    called: tuple[str, ...] | None
    above_tokens: int | None
    above_choices: int | None
    above_body: int | None
    mode: RuleMode


def read_allow_more(reader: Reader, section: Mapping[str, Node], limits: Mapping[str, Node]) -> AllowMore:
    """Read the conditions and limits of an allow rule."""
    return AllowMore(
        head=_head(reader, section, "roles.NAME.allow[].when"),
        stream=_flag(reader, section.get("stream")),
        modalities=_modalities(reader, section.get("modalities")),
        called=_patterns(reader, limits.get("called")),
        choices=reader.count(limits.get("choices"), CHOICES_ACCEPTED),
        mode=reader.choice(section.get("mode"), RuleMode, RuleMode.ENFORCE),
    )


def read_deny_more(reader: Reader, section: Mapping[str, Node]) -> DenyMore:
    """Read the conditions of a deny rule."""
    above = (
        reader.section(section["above"], CONDITION_SECTIONS["roles.NAME.deny[].above"]) if "above" in section else {}
    )
    if "above" in section and isinstance(section["above"].value, Mapping) and not above:
        reader.fault(section["above"], "at least one of max_output_tokens, choices, body", found="no limit")
    unless = None
    if "unless" in section:
        below = reader.section(section["unless"], CONDITION_SECTIONS["roles.NAME.deny[].unless"])
        unless = _head(reader, below, "roles.NAME.deny[].unless.when")
        if isinstance(section["unless"].value, Mapping) and not below:
            reader.fault(section["unless"], "at least one of when, sources, strength, max_age", found="no condition")
    found = DenyMore(
        head=_head(reader, section, "roles.NAME.deny[].when"),
        unless=unless,
        stream=_flag(reader, section.get("stream")),
        modalities=_modalities(reader, section.get("modalities")),
        called=_patterns(reader, section.get("called")),
        above_tokens=reader.count(above.get("max_output_tokens"), TOKENS_ACCEPTED),
        above_choices=reader.count(above.get("choices"), CHOICES_ACCEPTED),
        above_body=reader.bytes(above.get("body")),
        mode=reader.choice(section.get("mode"), RuleMode, RuleMode.ENFORCE),
    )
    if found.modalities is not None and Modality.TEXT in found.modalities:
        reader.fault(section["modalities"], "modalities beside text, which every request has", found="text")
    return found


def read_claims(reader: Reader, node: Node | None) -> tuple[tuple[str, frozenset[str]], ...]:
    """Read the claims of a binding."""
    if node is None:
        return ()
    if not isinstance(node.value, Mapping) or not node.value:
        reader.fault(node, CLAIMS_ACCEPTED)
        return ()
    return tuple(
        (name, frozenset(str(each.value) for each in reader.texts(values, "a list of values of this claim")))
        for name, values in node.value.items()
    )


def _head(reader: Reader, section: Mapping[str, Node], where: str) -> Conditions | None:
    """Read the conditions on a head; ``None`` where there are none."""
    found = Conditions(
        windows=_windows(reader, section.get("when"), CONDITION_SECTIONS[where]),
        sources=_sources(reader, section.get("sources")),
        strength=tuple(str(each.value) for each in reader.texts(section.get("strength"), STRENGTH_ACCEPTED)),
        max_age=reader.seconds(section.get("max_age")),
    )
    return None if found == Conditions() else found


def _windows(reader: Reader, node: Node | None, keys: tuple[str, ...]) -> tuple[Window, ...]:
    """Read one window, or a list of them."""
    if node is None:
        return ()
    if node.value == ():
        reader.fault(node, "a window such as {hours: ..., zone: ...}, or a list of them", found="an empty list")
    each = node.value if isinstance(node.value, tuple) else (node,)
    return tuple(_window(reader, one, keys) for one in each)


def _window(reader: Reader, node: Node, keys: tuple[str, ...]) -> Window:
    section = reader.section(node, keys, {"zone": ZONE_ACCEPTED})
    days = reader.texts(section.get("days"), DAYS_ACCEPTED)
    found = [_days(reader, each) for each in days]
    start, end = _hours(reader, section.get("hours"))
    if isinstance(node.value, Mapping) and not {"days", "hours"} & set(section):
        reader.fault(node, "days or hours beside the zone", found="neither")
    return Window(
        frozenset().union(*found) if days else frozenset(range(7)), start, end, _zone(reader, section.get("zone"))
    )


def _days(reader: Reader, node: Node) -> frozenset[int]:
    first, dash, last = str(node.value).partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        reader.fault(node, f"days out of {', '.join(DAYS)}, or a span such as mon-fri")
        return frozenset()
    at, to = DAYS.index(first), DAYS.index(last if dash else first)
    return frozenset((at + step) % 7 for step in range((to - at) % 7 + 1))


def _hours(reader: Reader, node: Node | None) -> tuple[int, int]:
    """Read hours as minutes of a day; all of it where there are none."""
    if node is None:
        return 0, 24 * 60
    found = _HOURS.fullmatch(node.value) if isinstance(node.value, str) else None
    start, end = (0, 0) if found is None else (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4]))
    if found is None or end > 24 * 60 or start == end:
        reader.fault(node, HOURS_ACCEPTED)
        return 0, 24 * 60
    return start, end


def _zone(reader: Reader, node: Node | None) -> ZoneInfo:
    name = reader.text(node, ZONE_ACCEPTED, "UTC")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if node is not None:
            reader.fault(node, ZONE_ACCEPTED)
        return ZoneInfo("UTC")


def _sources(reader: Reader, node: Node | None) -> tuple[IPv4Network | IPv6Network, ...]:
    found: list[IPv4Network | IPv6Network] = []
    for each in reader.texts(node, SOURCES_ACCEPTED):
        try:
            found.append(ip_network(str(each.value)))
        except ValueError:
            reader.fault(each, SOURCES_ACCEPTED)
    return tuple(found)


def _modalities(reader: Reader, node: Node | None) -> frozenset[Modality] | None:
    if node is None:
        return None
    found = reader.texts(node, MODALITIES_ACCEPTED)
    for each in found:
        if each.value not in set(Modality):
            reader.fault(each, " or ".join(Modality))
    return frozenset(Modality(str(each.value)) for each in found if each.value in set(Modality))


def _patterns(reader: Reader, node: Node | None) -> tuple[str, ...] | None:
    return None if node is None else tuple(str(each.value) for each in reader.texts(node, TOOLS_ACCEPTED))


def _flag(reader: Reader, node: Node | None) -> bool | None:
    return None if node is None else reader.flag(node, default=False)
