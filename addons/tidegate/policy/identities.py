"""The ``identity`` section of a policy: who issues the tokens that callers show. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tidegate.identity.claims import REFUSED_TYPES, groups_problem
from tidegate.identity.jwks import ALGORITHMS
from tidegate.policy.entrances import one_network_each, read_certificate, read_source
from tidegate.policy.policy import Identity, OidcIdentity, SourceIdentity, StaticIdentity
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

IDENTITY_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "identity[]": ("name", "oidc", "static", "source", "certificate"),
    "identity[].oidc": (
        "issuer",
        "audience",
        "groups",
        "algorithms",
        "allowed_clients",
        "discovery_url",
        "max_lifetime",
        "leeway",
        "typ",
        "insecure_http",
    ),
    "identity[].static": ("tokens",),
}

DEFAULT_ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "EdDSA"})
DEFAULT_TYPES = frozenset({"at+jwt", "application/at+jwt", "jwt"})  # RFC 9068; most providers still say JWT
MAX_LIFETIME = 24 * 3600.0  # a token that lives longer than a day is a password
LEEWAY = 60.0  # Envoy's default
MOST_LEEWAY = 300.0  # clocks further apart than five minutes are a fault to repair, not to allow for
RESERVED = frozenset({"none", "tidegate"})
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_LIST = "a list of identities, or the word none to switch identity off"


@dataclass(frozen=True, slots=True)
class Identities:
    """What was read: ``all`` is ``None`` for ``identity: none``; ``nodes`` maps each name to its place."""

    all: tuple[Identity, ...] | None
    nodes: Mapping[str, Node]


def read_identities(reader: Reader, node: Node | None) -> Identities:
    """Read the section; a repeated name or issuer is a fault."""
    if node is None:
        return Identities((), {})
    if node.value == "none":
        return Identities(None, {})
    if node.value == ():
        reader.fault(node, _LIST, found="an empty list")
    found: list[Identity] = []
    nodes: dict[str, Node] = {}
    issuers: set[str] = set()
    networks: dict[str, str] = {}
    for each in reader.items(node, _LIST):
        identity = _identity(reader, each, nodes)
        if isinstance(identity, OidcIdentity) and identity.issuer:
            if identity.issuer in issuers:
                reader.fault(each, "each issuer once", found=f"a second identity of the issuer {identity.issuer}")
            issuers.add(identity.issuer)
        if isinstance(identity, SourceIdentity):
            one_network_each(reader, each, identity, networks)
        if identity is not None:
            found.append(identity)
    return Identities(tuple(found), nodes)


def _identity(reader: Reader, node: Node, nodes: dict[str, Node]) -> Identity | None:
    section = reader.section(node, IDENTITY_SECTIONS["identity[]"], {"name": "a name for the identity"})
    name = reader.name(section.get("name"))
    if name in RESERVED:
        reader.fault(section["name"], "a name other than none and tidegate")
    elif name in nodes:
        reader.fault(section["name"], "each name once", found=f"a second identity named {name}")
    if name:
        nodes.setdefault(name, node)
    kinds = [kind for kind in IDENTITY_SECTIONS["identity[]"][1:] if kind in section]
    if len(kinds) != 1:
        if isinstance(node.value, Mapping):
            reader.fault(
                node, "exactly one of oidc, static, source and certificate", found=" and ".join(kinds) or "none"
            )
        return None
    if kinds == ["oidc"]:
        return _oidc(reader, section["oidc"], name)
    if kinds == ["source"]:
        return read_source(reader, section["source"], name)
    if kinds == ["certificate"]:
        return read_certificate(reader, section["certificate"], name)
    accepted = "the path of a tokens file, relative to this file"
    static = reader.section(section["static"], IDENTITY_SECTIONS["identity[].static"], {"tokens": accepted})
    return StaticIdentity(name, reader.text(static.get("tokens"), accepted))


def _oidc(reader: Reader, node: Node, name: str) -> OidcIdentity:
    section = reader.section(
        node,
        IDENTITY_SECTIONS["identity[].oidc"],
        {"issuer": "the issuer's https address", "audience": "the audience that names this gateway, or a list of them"},
    )
    insecure = reader.flag(section.get("insecure_http"), default=False)
    issuer = _address(reader, section.get("issuer"), insecure)
    discovery = issuer.rstrip("/") + "/.well-known/openid-configuration"
    if "discovery_url" in section:
        discovery = _address(reader, section["discovery_url"], insecure)
    clients = reader.texts(section.get("allowed_clients"), "a list of client ids")
    return OidcIdentity(
        name=name,
        issuer=issuer,
        audiences=_audiences(reader, section.get("audience")),
        groups=_groups(reader, section.get("groups")),
        algorithms=_algorithms(reader, section.get("algorithms")),
        allowed_clients=frozenset(str(each.value) for each in clients) or None,
        discovery_url=discovery,
        max_lifetime=reader.seconds(section.get("max_lifetime")) or MAX_LIFETIME,
        leeway=_leeway(reader, section.get("leeway")),
        types=_types(reader, section.get("typ")),
        insecure_http=insecure,
    )


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


def _audiences(reader: Reader, node: Node | None) -> frozenset[str]:
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
    if path and groups_problem(path):
        reader.fault(node, accepted)
    return path or None


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
