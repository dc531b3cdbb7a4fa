"""The ``admin`` section of a policy, and the rights on the admin listener that roles give. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from tidegate.inspection.urls import HOST
from tidegate.policy.identities import Identities
from tidegate.policy.oidc import LOOPBACK, read_secret
from tidegate.policy.policy import LIFETIME, ROTATE, Admin, AdminRight, OidcIdentity, SamlIdentity, SignInClient
from tidegate.policy.reader import Reader
from tidegate.policy.source import Node

ADMIN_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "admin": ("url", "hosts", "tokens", "sign_in"),
    "admin.sign_in[]": ("identity", "client_id", "client_secret", "scopes", "parameters"),
    "admin.tokens": ("lifetime", "rotate"),
}

MOST_LIFETIME = 3600.0
"""A token of this gateway cannot be asked about at its source again: after an hour at most it has to be."""
SCOPES = ("openid",)
OWN_PARAMETERS = frozenset(
    {"client_id", "redirect_uri", "response_type", "scope", "state", "code_challenge", "code_challenge_method"}
)
LEAST_ROTATE = 2 * 3600.0
"""A new key is published for an hour before it signs; it then has to sign for some time."""
_URL = "an https address without path (http only to loopback), such as https://gate.example.com:9443"


def read_admin(reader: Reader, top: Mapping[str, Node], identities: Identities) -> Admin:
    """Read ``admin`` and each role's ``admin``. An identity that needs the listener's address is a fault without it."""
    node = top.get("admin")
    section = reader.section(node, ADMIN_SECTIONS["admin"]) if node is not None else {}
    tokens = reader.section(section["tokens"], ADMIN_SECTIONS["admin.tokens"]) if "tokens" in section else {}
    url = _url(reader, section.get("url"))
    for each in identities.all or ():
        if isinstance(each, SamlIdentity) and "url" not in section:
            found = f"nothing, although the identity {each.name} signs in through it"
            reader.fault(node or identities.nodes.get(each.name) or top["identity"], _URL, found=found, key="admin.url")
        if url and isinstance(each, OidcIdentity) and each.issuer.rstrip("/").lower() == url:
            reader.fault(section["url"], "an address that is no identity's issuer", found=f"the issuer of {each.name}")
    lifetime, rotate = reader.seconds(tokens.get("lifetime")), reader.seconds(tokens.get("rotate"))
    if lifetime is not None and lifetime > MOST_LIFETIME:
        reader.fault(tokens["lifetime"], "at most 60m")
    if rotate is not None and rotate < LEAST_ROTATE:
        reader.fault(tokens["rotate"], "at least 2h")
    return Admin(
        url=url,
        hosts=_hosts(reader, section.get("hosts")),
        lifetime=lifetime or LIFETIME,
        rotate=rotate or ROTATE,
        rights=_rights(reader, top.get("roles")),
        sign_in=_sign_in(reader, section.get("sign_in"), identities),
    )


def _url(reader: Reader, node: Node | None) -> str:
    """Read an origin; returned in lower case without a slash at its end."""
    address = reader.text(node, _URL)
    if node is None or not address:
        return ""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        reader.fault(node, _URL)
        return ""
    bare = parts.path in ("", "/") and not {"?", "#", "@", " "} & set(address) and address.isprintable()
    secure = parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)
    if not bare or not secure or not host:
        reader.fault(node, _URL, found="an address with a user (not shown)" if "@" in address else None)
        return ""
    return address.rstrip("/").lower()


def _sign_in(reader: Reader, node: Node | None, identities: Identities) -> dict[str, SignInClient]:
    """Read how people sign in to the pages; each at an identity of the policy that is ``oidc``."""
    found: dict[str, SignInClient] = {}
    known = [each.name for each in identities.all or () if isinstance(each, OidcIdentity)]
    accepted = f"the name of an oidc identity of this policy ({', '.join(known) or 'there is none'})"
    client = "the client id by which the provider knows the pages"
    for each in reader.items(node, "a list of identities at which people sign in"):
        section = reader.section(each, ADMIN_SECTIONS["admin.sign_in[]"], {"identity": accepted, "client_id": client})
        name = reader.text(section.get("identity"), accepted)
        if name and name not in known:
            reader.fault(section["identity"], accepted)
        if name in found:
            reader.fault(section["identity"], "each identity once", found=f"a second entry for {name}")
        scopes = tuple(str(one.value) for one in reader.texts(section.get("scopes"), "a list of scopes"))
        more = {key: reader.text(one, "a text") for key, one in reader.entries(section.get("parameters")).items()}
        for key in OWN_PARAMETERS & more.keys():
            reader.fault(section["parameters"], f"parameters other than {', '.join(sorted(OWN_PARAMETERS))}", found=key)
        secret = read_secret(reader, section["client_secret"]) if "client_secret" in section else None
        found[name] = SignInClient(name, reader.text(section.get("client_id"), client), secret, scopes or SCOPES, more)
    return found


def _hosts(reader: Reader, node: Node | None) -> frozenset[str]:
    accepted = "a list of host names such as gate.example.com"
    found = reader.texts(node, accepted)
    for each in found:
        if not HOST.fullmatch(str(each.value)) or "*" in str(each.value):
            reader.fault(each, accepted)
    return frozenset(str(each.value).lower() for each in found)


def _rights(reader: Reader, node: Node | None) -> dict[str, frozenset[AdminRight]]:
    """Read what each role may do on the admin listener; roles without any are left out."""
    found: dict[str, frozenset[AdminRight]] = {}
    accepted = " or ".join(AdminRight)
    for name, role in (node.value if node is not None and isinstance(node.value, Mapping) else {}).items():
        rights = role.value.get("admin") if isinstance(role.value, Mapping) else None
        if rights is None:
            continue
        words = reader.texts(rights, f"a list of {accepted}")
        for each in words:
            if each.value not in list(AdminRight):
                reader.fault(each, accepted)
        found[name] = frozenset(AdminRight(str(each.value)) for each in words if each.value in list(AdminRight))
    return found
