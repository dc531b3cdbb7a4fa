"""The policy of the admin listener: what is read, and what has to fit together."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import saml as s
from tests.e2e import harness as h
from tidegate.admin.doors import rights_of
from tidegate.identity.permission import roles_of
from tidegate.model import Caller
from tidegate.panel import panel
from tidegate.policy.loading import load
from tidegate.policy.policy import Admin, AdminRight, Policy, PolicyError, SamlIdentity

ROLES: dict[str, Any] = {
    "dev": {"allow": [{"connections": ["*"], "endpoints": ["*"]}], "admin": ["metrics"]},
    "operator": {"admin": ["reload", "revoke"]},
}
BINDINGS = [
    {"groups": ["adfs:ml-eng"], "roles": ["dev"]},
    {"subjects": ["local:ops"], "roles": ["dev", "operator"]},
]
LOCAL = {"name": "local", "static": {"tokens": "tokens.yaml"}}
ADFS: dict[str, Any] = {"name": "adfs", "saml": {"metadata": "adfs.xml", "groups": "groups", "leeway": "30s"}}
CORP = {"name": "corp", "oidc": {"issuer": "https://login.example.com/", "audience": "tidegate"}}


def loaded(folder: Path, **changes: Any) -> Policy:
    (folder / "few").symlink_to(h.ROOT / "tests" / "data" / "packs", target_is_directory=True)
    (folder / "adfs.xml").write_bytes(s.metadata())
    values = {
        "identity": [LOCAL, ADFS],
        "roles": ROLES,
        "bindings": BINDINGS,
        "admin": {"url": "https://Gate.Example.com:9443/"},
        "packs": ["few/*.yaml"],
        "dialects": ["dialects/openai.yaml", "dialects/anthropic.yaml"],
        "inspection": {way: {"secrets": "block", "pii": "redact"} for way in ("prompt", "response")},
        **changes,
    }
    return load(h.policy(folder, "http://127.0.0.1:9", **values))


def test_what_a_policy_says_of_the_listener(tmp_path: Path) -> None:
    policy = loaded(
        tmp_path,
        admin={
            "url": "https://Gate.Example.com:9443/",
            "hosts": ["gate.internal"],
            "tokens": {"lifetime": "15m", "rotate": "1d"},
        },
    )
    admin = policy.admin
    assert (admin.url, admin.hosts) == ("https://gate.example.com:9443", {"gate.internal"})
    assert (admin.lifetime, admin.rotate) == (900, 86400)
    adfs = (policy.identities or ())[1]
    assert adfs == SamlIdentity("adfs", str(tmp_path / "adfs.xml"), None, None, "groups", None, 30.0)
    told = Console(width=300, file=StringIO(), record=True)
    told.print(panel(policy, modes=["x"]))
    assert f"adfs: SAML, by {tmp_path}/adfs.xml" in told.export_text()


def test_roles_give_rights_and_rights_give_no_endpoint(tmp_path: Path) -> None:
    policy = loaded(tmp_path)
    dev, ops = Caller("adfs", "alice", frozenset({"adfs:ml-eng"})), Caller("local", "ops")
    assert rights_of(policy, dev) == {AdminRight.METRICS}
    assert rights_of(policy, ops) == {AdminRight.METRICS, AdminRight.RELOAD, AdminRight.REVOKE}
    assert rights_of(policy, Caller("local", "bob", frozenset({"local:ml-eng"}))) == frozenset()
    assert roles_of(policy, ops) == ("dev", "operator")
    assert all("operator" not in places for places in policy.permissions.places.values())


def test_without_the_section_there_is_no_token_service(tmp_path: Path) -> None:
    policy = loaded(tmp_path, admin=None, identity=[LOCAL], roles=None, bindings=None)
    assert policy.admin == Admin()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"identity": [CORP], "bindings": None, "admin": {"url": "https://login.example.com"}},
            "admin.url: found the issuer of corp; accepted: an address that is no identity's issuer",
        ),
        (
            {"admin": {"url": "https://alice:pw@gate.example.com"}},
            "admin.url: found an address with a user (not shown); accepted: an https address without path",
        ),
        ({"admin": {"url": "https://[::1"}}, "admin.url: found 'https://[::1'; accepted: an https address"),
        ({"admin": {"url": 7}}, "admin.url: found 7; accepted: an https address without path"),
        ({"admin": []}, "admin: found a list; accepted: a mapping with the keys url, hosts, tokens"),
        (
            {"roles": {"dev": {"admin": []}}, "bindings": None},
            "roles.dev.admin: found an empty list; accepted: a list of",
        ),
        ({"roles": {"dev": {}}, "bindings": None}, "roles.dev: found no rule; accepted: at least one rule"),
        (
            {"identity": [LOCAL, {"name": "adfs", "saml": {"metadata": "adfs.xml", "issuer": "https://x.example"}}]},
            "identity[1].saml.metadata: found 'adfs.xml': 0 identity providers of that issuer; accepted: a SAML 2.0",
        ),
        (
            {"bindings": [{"groups": ["tidegate:x"], "roles": ["dev"]}]},
            "bindings[0].groups[0]: found 'tidegate:x'; accepted",
        ),
    ],
    ids=lambda each: each.split(":")[0] if isinstance(each, str) else "",
)
def test_what_does_not_fit_is_told(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(PolicyError) as caught:
        loaded(tmp_path, **changes)
    told = "\n".join(map(str, caught.value.faults))
    assert fault in told
    assert "alice" not in told
