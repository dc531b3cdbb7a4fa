"""The ``oidc`` part of an identity: what a provider's tokens must say, and what of it makes a caller. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from tidegate.identity import reference
from tidegate.identity.claims import REFUSED_TYPES
from tidegate.identity.groups import path_problem
from tidegate.identity.jwks import ALGORITHMS
from tidegate.policy.policy import Bound, Identity, Introspection, OidcIdentity, OnOverage, Split
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

OIDC_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "identity[].oidc": (
        "issuer",
        "audience",
        "groups",
        "algorithms",
        "allowed_clients",
        "claims",
        "carry",
        "discovery_url",
        "max_lifetime",
        "max_age",
        "leeway",
        "typ",
        "group_split",
        "group_strip",
        "group_map",
        "on_overage",
        "overage_groups",
        "introspection",
        "bound",
        "addresses",
        "ca",
        "insecure_http",
    ),
    "identity[].oidc.introspection": ("client_id", "client_secret", "endpoint", "prefix", "cache"),
}

DEFAULT_ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "EdDSA"})
DEFAULT_TYPES = frozenset({"at+jwt", "application/at+jwt", "jwt"})  # RFC 9068; most providers still say JWT
MAX_LIFETIME = 24 * 3600.0  # a token that lives longer than a day is a password
LEEWAY = 60.0  # Envoy's default
MOST_LEEWAY = 300.0  # clocks further apart than five minutes are a fault to repair, not to allow for
CACHE = 60.0  # how long what a provider says of an opaque token is believed
MOST_CACHE = 300.0  # as long as a verified token is remembered
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

_CLAIM = "the name of a claim, or a JSONPath such as $.cnf.kid"
_SECRET = "a reference, such as ${file:/run/secrets/gate}"


def read_oidc(reader: Reader, node: Node, name: str) -> OidcIdentity:
    """Read the section; whatever is at fault is in the reader."""
    section = reader.section(
        node,
        OIDC_SECTIONS["identity[].oidc"],
        {"issuer": "the issuer's https address", "audience": "the audience that names this gateway, or a list of them"},
    )
    insecure = reader.flag(section.get("insecure_http"), default=False)
    issuer = _address(reader, section.get("issuer"), insecure)
    discovery = issuer.rstrip("/") + "/.well-known/openid-configuration"
    if "discovery_url" in section:
        discovery = _address(reader, section["discovery_url"], insecure)
    clients = reader.texts(section.get("allowed_clients"), "a list of client ids")
    on_overage = reader.choice(section.get("on_overage"), OnOverage, OnOverage.DENY)
    static = _overage_groups(reader, section.get("overage_groups"))
    if "overage_groups" in section and on_overage is not OnOverage.STATIC:
        reader.fault(section["overage_groups"], "a key that goes with on_overage: static")
    if on_overage is OnOverage.STATIC and "overage_groups" not in section:
        reader.fault(section["on_overage"], "static together with overage_groups, a list of groups for each subject")
    for key in ("group_split", "group_strip", "group_map", "on_overage"):
        if key in section and "groups" not in section:
            reader.fault(section[key], "a key that goes with groups")
    return OidcIdentity(
        name=name,
        issuer=issuer,
        audiences=_some(reader, section.get("audience")),
        groups=_groups(reader, section.get("groups")),
        algorithms=_algorithms(reader, section.get("algorithms")),
        allowed_clients=frozenset(str(each.value) for each in clients) or None,
        discovery_url=discovery,
        max_lifetime=reader.seconds(section.get("max_lifetime")) or MAX_LIFETIME,
        leeway=_leeway(reader, section.get("leeway")),
        types=_types(reader, section.get("typ")),
        insecure_http=insecure,
        claims=_claims(reader, section.get("claims")),
        carry=_carry(reader, section.get("carry")),
        max_age=reader.seconds(section.get("max_age")),
        split=_optional(reader, section.get("group_split"), Split),
        strip=reader.text(section.get("group_strip"), "what the names of groups lose at their beginning, such as /"),
        group_map=_group_map(reader, section.get("group_map")),
        on_overage=on_overage,
        overage_groups=static,
        introspection=_introspection(reader, section.get("introspection"), insecure),
        bound=reader.choice(section.get("bound"), Bound, Bound.OPTIONAL),
        addresses=_addresses(reader, section.get("addresses")),
        ca=reader.text(section.get("ca"), "the path of a PEM file, relative to this file") or None,
    )


def check_opaque(reader: Reader, node: Node, found: Sequence[Identity]) -> None:
    """See that it is clear which provider is asked about an opaque token: none sees another's tokens."""
    known: dict[str, str] = {}
    for each in found:
        if not isinstance(each, OidcIdentity) or each.introspection is None:
            continue
        prefix = each.introspection.prefix
        if prefix in known:
            accepted = (
                "identities with introspection whose prefixes differ, so that a token is shown to its provider alone"
            )
            reader.fault(node, accepted, found=f"{known[prefix]} and {each.name} with the same prefix")
        known[prefix] = each.name


def _address(reader: Reader, node: Node | None, insecure: bool) -> str:
    """Read an https address; http only to loopback and only where the policy says so."""
    accepted = "an https address without query (http only to loopback, with insecure_http: true)"
    address = reader.text(node, accepted)
    if node is None or not address:
        return ""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        reader.fault(node, accepted)
        return ""
    if parts.username is not None or parts.password is not None or "?" in address or "#" in address:
        reader.fault(node, accepted, found="an address with a user, query or fragment (not shown)")
        return ""
    secure = parts.scheme == "https" or (insecure and parts.scheme == "http" and host in LOOPBACK)
    if not secure or not host or not address.isprintable() or " " in address:
        reader.fault(node, accepted)
        return ""
    return address


def _addresses(reader: Reader, node: Node | None) -> tuple[str, ...]:
    """Read the addresses under which clients know the gate: scheme, host and port alone."""
    accepted = "a list of addresses such as https://gate.example.com, without a path"
    found: list[str] = []
    for each in reader.texts(node, accepted):
        address = str(each.value)
        try:
            parts = urlsplit(address)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
            good = good and parts.username is None and not {"?", "#", " "} & set(address) and (parts.port or 1) > 0
        except ValueError:
            good = False
        if good:
            found.append(address.rstrip("/"))
        else:
            reader.fault(each, accepted)
    return tuple(found)


def _some(reader: Reader, node: Node | None) -> frozenset[str]:
    accepted = "a text, or a list of texts"
    if node is not None and isinstance(node.value, tuple):
        return frozenset(str(each.value) for each in reader.texts(node, accepted))
    found = reader.text(node, accepted)
    return frozenset({found} if found else ())


def _groups(reader: Reader, node: Node | None) -> str | None:
    if node is None:
        return None
    accepted = "a JSONPath into the token's claims such as $.groups or $['https://example.com/groups']"
    path = reader.text(node, accepted)
    if path and path_problem(path):
        reader.fault(node, accepted)
    return path or None


def _claims(reader: Reader, node: Node | None) -> tuple[tuple[str, frozenset[str]], ...]:
    """Read what claims must say; a number counts as the text a token has in its place."""
    accepted = "a text or a whole number, or a list of them"
    found: list[tuple[str, frozenset[str]]] = []
    for claim, child in reader.entries(node).items():
        if not claim or (claim.startswith("$") and path_problem(claim)):
            reader.fault(child, _CLAIM, found=repr(claim))
        values = child.value if isinstance(child.value, tuple) else (child,)
        if not values:
            reader.fault(child, accepted, found="an empty list")
        texts: set[str] = set()
        for each in values:
            if isinstance(each.value, str) and each.value:
                texts.add(each.value)
            elif isinstance(each.value, int) and not isinstance(each.value, bool):
                texts.add(str(each.value))
            else:
                reader.fault(each, accepted)
        found.append((claim, frozenset(texts)))
    return tuple(found)


def _carry(reader: Reader, node: Node | None) -> tuple[str, ...]:
    found = reader.texts(node, f"a list, each {_CLAIM}")
    for each in found:
        if str(each.value).startswith("$") and path_problem(str(each.value)):
            reader.fault(each, _CLAIM)
    return tuple(dict.fromkeys(str(each.value) for each in found))


def _group_map(reader: Reader, node: Node | None) -> Mapping[str, str] | None:
    if node is None:
        return None
    found = {name: reader.text(child, "the name a group has here") for name, child in reader.entries(node).items()}
    if not found and isinstance(node.value, Mapping):
        reader.fault(node, "at least one group and the name it has here", found="an empty mapping")
    return found


def _overage_groups(reader: Reader, node: Node | None) -> Mapping[str, tuple[str, ...]]:
    return {
        subject: tuple(str(each.value) for each in reader.texts(child, "a list of groups"))
        for subject, child in reader.entries(node).items()
    }


def _introspection(reader: Reader, node: Node | None, insecure: bool) -> Introspection | None:
    if node is None:
        return None
    required = {"client_id": "the id with which the gate asks the provider", "client_secret": _SECRET}
    section = reader.section(node, OIDC_SECTIONS["identity[].oidc.introspection"], required)
    cache = reader.seconds(section.get("cache"))
    if cache is not None and cache > MOST_CACHE:
        reader.fault(section["cache"], f"at most {MOST_CACHE:.0f}s")
    return Introspection(
        client=reader.text(section.get("client_id"), required["client_id"]),
        secret=read_secret(reader, section.get("client_secret")),
        endpoint=_address(reader, section.get("endpoint"), insecure) or None,
        prefix=reader.text(section.get("prefix"), "the text that this provider's opaque tokens begin with"),
        cache=CACHE if cache is None else cache,
    )


def read_secret(reader: Reader, node: Node | None) -> str:
    """Read a reference; what is none is never shown."""
    if node is None:
        return ""
    if not isinstance(node.value, str):
        reader.fault(node, _SECRET, found="a value that is not text (not shown)")
        return ""
    try:
        word, _ = reference.parse(node.value)
        if word:
            raise reference.NotAReference("text beside the reference (not shown)")
    except reference.NotAReference as problem:
        reader.fault(node, _SECRET, found=str(problem))
        return ""
    return node.value


def _algorithms(reader: Reader, node: Node | None) -> frozenset[str]:
    accepted = ", ".join(sorted(ALGORITHMS))
    found = reader.texts(node, f"a list of {accepted}")
    for each in found:
        if each.value not in ALGORITHMS:
            reader.fault(each, accepted)
    return frozenset(str(each.value) for each in found) or DEFAULT_ALGORITHMS


def _leeway(reader: Reader, node: Node | None) -> float:
    found = reader.seconds(node)
    if node is not None and found is not None and found > MOST_LEEWAY:
        reader.fault(node, f"at most {MOST_LEEWAY:.0f}s")
    return LEEWAY if found is None else found


def _types(reader: Reader, node: Node | None) -> frozenset[str]:
    accepted = 'a list of token types such as at+jwt; "none" accepts a token without a type'
    found = reader.texts(node, accepted)
    for each in found:
        if str(each.value).lower() in REFUSED_TYPES:
            reader.fault(each, "the types of access tokens; this type is for another purpose")
    types = frozenset("" if each.value == "none" else str(each.value).lower() for each in found)
    return types or DEFAULT_TYPES


def _optional[E: enum.StrEnum](reader: Reader, node: Node | None, values: type[E]) -> E | None:
    return None if node is None else reader.choice(node, values, next(iter(values)))
