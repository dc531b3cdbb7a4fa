"""Tokens as Okta, Entra, Google, Keycloak, Auth0, GitHub and Kubernetes write them: the recipes of docs/identity.md."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tokens import NOW, public, rsa, sign
from tidegate.identity.keys import KeySource
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.loading import load
from tidegate.policy.policy import OidcIdentity, OnOverage, Split

# ruff: noqa: E501 - a token is easier to read in few lines
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
DOCS = (ROOT / "docs" / "identity.md").read_text()
RECIPES = {
    title.split(" ")[0]: text
    for title, text in re.findall(r"(?ms)^\*\*([^*]+?)\.?\*\*(?:(?!^\*\*).)*?^```yaml\n(identity:.*?)^```", DOCS)
}
TENANT = "5f1b2c3d-0000-4000-8000-000000000000"

ACCESS: dict[str, dict[str, Any]] = {
    "Okta": {  # an access token of a custom authorization server
        "ver": 1, "jti": "AT.5kN0", "iss": "https://example.okta.com/oauth2/aus1a2b3c4d5e6f7g8h9", "aud": "api://tidegate",
        "iat": NOW, "exp": NOW + 3600, "cid": "0oa1a2b3c4d5e6f7g8h9", "client_id": "0oa1a2b3c4d5e6f7g8h9",
        "uid": "00u1", "scp": ["openid", "llm"], "auth_time": NOW - 60, "sub": "alice@example.com", "groups": ["Everyone", "ml-eng"],
    },
    "Entra": {  # v2.0
        "aud": "9a8b7c6d-0000-4000-8000-000000000000", "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
        "iat": NOW, "nbf": NOW, "exp": NOW + 4200, "aio": "AX", "azp": "1c1c1c1c-0000-4000-8000-000000000000", "azpacr": "0",
        "groups": ["11111111-2222-4333-8444-555555555555", "ffffffff-2222-4333-8444-555555555555"], "name": "Alice",
        "oid": "0d0d0d0d-0000-4000-8000-000000000000", "preferred_username": "alice@example.com", "rh": "0.A",
        "roles": ["Model.User"], "scp": "llm", "sub": "pairwise-alice", "tid": TENANT, "uti": "u", "ver": "2.0",
        "wids": ["b79fbf4d-3ef9-4689-8143-76b194e85509"],
    },
    "Google": {  # an ID token of a service account, the audience its own
        "aud": "https://gate.example.com", "azp": "1070000", "email": "bot@project.iam.gserviceaccount.com", "email_verified": True,
        "exp": NOW + 3600, "iat": NOW, "iss": "https://accounts.google.com", "sub": "1070000",
    },
    "Keycloak": {
        "exp": NOW + 300, "iat": NOW, "auth_time": NOW - 5, "jti": "onrtac:9a", "iss": "https://keycloak.example.com/realms/acme",
        "aud": ["tidegate", "account"], "sub": "f4c0", "typ": "Bearer", "azp": "tidegate-cli", "sid": "s", "acr": "1",
        "realm_access": {"roles": ["offline_access", "ml"]}, "resource_access": {"account": {"roles": ["view-profile"]}},
        "scope": "openid groups", "email_verified": False, "groups": ["/eng/ml", "/ops"], "preferred_username": "alice",
    },
    "Auth0": {
        "https://example.com/groups": ["ml-eng"], "iss": "https://example.eu.auth0.com/", "sub": "auth0|64f0",
        "aud": ["https://tidegate.example.com/", "https://example.eu.auth0.com/userinfo"], "iat": NOW, "exp": NOW + 7200,
        "azp": "cLiEnT", "scope": "openid", "permissions": ["ask:models", "read:logs"],
    },
    "GitHub": {
        "jti": "e0e0", "sub": "repo:acme/app:environment:prod", "aud": "tidegate", "ref": "refs/heads/main", "sha": "0" * 40,
        "repository": "acme/app", "repository_owner": "acme", "actor_id": "12", "repository_visibility": "private",
        "repository_id": "123456", "repository_owner_id": "4711", "run_id": "1", "actor": "alice", "workflow": "ci",
        "environment": "prod", "job_workflow_ref": "acme/app/.github/workflows/ci.yml@refs/heads/main",
        "runner_environment": "github-hosted", "iss": "https://token.actions.githubusercontent.com",
        "nbf": NOW - 30, "iat": NOW, "exp": NOW + 300,
    },
    "Kubernetes": {
        "aud": ["tidegate"], "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "jti": "j1",
        "iss": "https://kubernetes.default.svc.cluster.local", "sub": "system:serviceaccount:ml:trainer",
        "kubernetes.io": {"namespace": "ml", "serviceaccount": {"name": "trainer", "uid": "u1"}, "pod": {"name": "p", "uid": "u2"}},
    },
}  # fmt: skip
HEADERS: dict[str, dict[str, Any]] = {
    "Okta": {"typ": ...},
    "Kubernetes": {"typ": ...},
    "GitHub": {"typ": "JWT", "x5t": "eBZ_cn3sXYAd0ch4THBKHIgOwOE"},
    "Entra": {"typ": "JWT", "x5t": "eBZ_cn3sXYAd0ch4THBKHIgOwOE"},
}
EXPECTED: dict[str, tuple[str, set[str], set[tuple[str, str]]]] = {
    "Okta": ("alice@example.com", {"okta:Everyone", "okta:ml-eng"}, {("cid", "0oa1a2b3c4d5e6f7g8h9")}),
    "Entra": ("pairwise-alice", {"entra:ml-eng"}, set()),
    "Google": ("1070000", set(), {("email", "bot@project.iam.gserviceaccount.com")}),
    "Keycloak": ("f4c0", {"keycloak:eng/ml", "keycloak:ops"}, set()),
    "Auth0": ("auth0|64f0", {"auth0:ml-eng"}, {("permissions", "ask:models"), ("permissions", "read:logs")}),
    "GitHub": (
        "repo:acme/app:environment:prod",
        set(),
        {
            ("environment", "prod"),
            ("job_workflow_ref", "acme/app/.github/workflows/ci.yml@refs/heads/main"),
            ("ref", "refs/heads/main"),
        },
    ),
    "Kubernetes": ("system:serviceaccount:ml:trainer", set(), set()),
}

REFUSED = [
    ("Okta", {"aud": "api://default"}, Reason.TOKEN_AUDIENCE),
    ("Okta", {"cid": ..., "client_id": "0oaOTHER"}, Reason.TOKEN_CLIENT),
    ("Entra", {"tid": "other"}, Reason.TOKEN_TENANT),
    ("Entra", {"iss": "https://sts.windows.net/other/"}, Reason.TOKEN_ISSUER),
    ("Entra", {"groups": ..., "_claim_names": {"groups": "src1"}}, Reason.GROUPS_OVERAGE),
    ("Entra", {"groups": ..., "hasgroups": True}, Reason.GROUPS_OVERAGE),
    ("Google", {"aud": "32555940559.apps.googleusercontent.com"}, Reason.TOKEN_AUDIENCE),
    ("Google", {"at_hash": "x"}, Reason.TOKEN_TYPE),
    ("Keycloak", {"aud": "account"}, Reason.TOKEN_AUDIENCE),
    ("Keycloak", {"azp": "admin-cli"}, Reason.TOKEN_CLIENT),
    ("Keycloak", {"typ": "ID"}, Reason.TOKEN_TYPE),
    ("Auth0", {"aud": "https://example.eu.auth0.com/userinfo"}, Reason.TOKEN_AUDIENCE),
    ("GitHub", {"repository_owner_id": "4712"}, Reason.TOKEN_TENANT),
    ("GitHub", {"repository_id": "999"}, Reason.TOKEN_TENANT),
    ("GitHub", {"aud": "https://github.com/acme"}, Reason.TOKEN_AUDIENCE),
    ("GitHub", {"exp": NOW + 3600}, Reason.TOKEN_LIFETIME),
    ("Kubernetes", {"aud": ["https://kubernetes.default.svc.cluster.local"]}, Reason.TOKEN_AUDIENCE),
    ("Kubernetes", {"exp": NOW + 365 * 86400}, Reason.TOKEN_LIFETIME),
]


@functools.cache
def recipe(name: str) -> OidcIdentity:
    """Load a policy that has the recipe as its identities."""
    with tempfile.TemporaryDirectory() as folder:
        return loaded(name, Path(folder))


def loaded(name: str, folder: Path) -> OidcIdentity:
    document = yaml.safe_load((DATA / "policy.yaml").read_text())
    document.update(
        identity=yaml.safe_load(RECIPES[name])["identity"],
        packs=["packs/*.yaml"],
        dialects=["dialects/openai.yaml"],
        bindings=[],
    )
    (folder / "packs").symlink_to(DATA / "packs")
    (folder / "dialects").symlink_to(ROOT / "rules" / "dialects")
    (folder / "ca.crt").write_text("")
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    identities = load(path).identities
    assert identities is not None
    assert isinstance(identities[0], OidcIdentity)
    return identities[0]


async def ask(who: OidcIdentity, name: str, **changes: Any) -> Caller | Denial:
    said = {key: value for key, value in {**ACCESS[name], **changes}.items() if value is not ...}
    token = sign(said, {"typ": "JWT", **HEADERS.get(name, {})})
    return await Verifier([who], [KeySource(who, lambda _: public(rsa()))]).identify(token, NOW)


def test_every_recipe_is_found() -> None:
    assert {*ACCESS, "Opaque"} <= set(RECIPES)


def test_the_recipe_for_opaque_tokens() -> None:
    found = recipe("Opaque")
    assert found.introspection is not None
    assert found.introspection.cache == 30.0


@pytest.mark.parametrize("name", list(ACCESS))
async def test_a_token_of_its_shape(name: str) -> None:
    who = recipe(name)
    answer = await ask(who, name)
    assert isinstance(answer, Caller), answer
    assert (answer.subject, answer.groups, answer.claims) == EXPECTED[name]


@pytest.mark.parametrize(("name", "changes", "expected"), REFUSED)
async def test_a_token_that_is_not_for_us(name: str, changes: dict[str, Any], expected: Reason) -> None:
    answer = await ask(recipe(name), name, **changes)
    assert isinstance(answer, Denial)
    assert answer.reason is expected


async def test_app_roles_are_whole_where_groups_are_not() -> None:
    who = replace(recipe("Entra"), groups="$.roles", group_map=None)
    overage = {"groups": ..., "_claim_names": {"groups": "src1"}}
    answer = await ask(who, "Entra", **overage)
    assert isinstance(answer, Caller)
    assert answer.groups == {"entra:Model.User"}
    for where, changes in (("$.roles", {"_claim_names": {"roles": "src1"}}), ("$.*", overage), ("$..x", overage)):
        told = await ask(replace(who, groups=where), "Entra", **changes)
        assert isinstance(told, Denial)
        assert told.reason is Reason.GROUPS_OVERAGE


@pytest.mark.parametrize(
    ("changes", "said", "expected"),
    [
        ({"split": Split.SPACES}, "a  b\tc ", {"a", "b", "c"}),
        ({"split": Split.COMMAS}, "a, b,,c d", {"a", "b", "c d"}),
        ({"split": Split.SPACES}, ["a b", "c"], {"a", "b", "c"}),
        ({}, "a b", {"a b"}),
        ({"strip": "/"}, ["/eng/ml", "ops", "//x"], {"eng/ml", "ops", "/x"}),
        ({"group_map": {"g1": "ml", "g2": "ml"}}, ["g1", "g2", "ml", "admin"], {"ml"}),
        ({"group_map": {"eng": "ml"}, "strip": "/", "split": Split.COMMAS}, "/eng,/ops", {"ml"}),
        ({"split": Split.COMMAS}, ",", set()),
        ({"strip": "/"}, ["/"], None),
    ],
)
async def test_names_of_groups(changes: dict[str, Any], said: Any, expected: set[str] | None) -> None:
    who = replace(recipe("Entra"), name="corp", group_map=None)
    answer = await ask(replace(who, **changes), "Entra", groups=said)
    if expected is None:
        assert isinstance(answer, Denial)
        assert answer.reason is Reason.TOKEN_CLAIM
    else:
        assert isinstance(answer, Caller)
        assert answer.groups == {f"corp:{each}" for each in expected}


async def test_two_issuers_do_not_help_each_other() -> None:
    who = recipe("Keycloak"), recipe("GitHub")
    other = rsa(name="k1 of the other")
    keys = public(rsa()), json.dumps({"keys": [{**other.as_dict(private=False), "kid": "k1"}]}).encode()
    sources = [KeySource(each, lambda _, data=data: data) for each, data in zip(who, keys, strict=True)]
    verifier = Verifier(who, sources)

    async def reason(name: str, key: Any, **changes: Any) -> Reason | None:
        token = sign({**ACCESS[name], **changes}, {"typ": "JWT", "kid": "k1"}, key)
        answer = await verifier.identify(token, NOW)
        return answer.reason if isinstance(answer, Denial) else None

    assert await reason("Keycloak", rsa()) is None
    assert await reason("GitHub", other) is None
    assert await reason("Keycloak", other) is Reason.TOKEN_SIGNATURE
    assert await reason("GitHub", rsa()) is Reason.TOKEN_SIGNATURE
    assert await reason("GitHub", other, iss=ACCESS["Keycloak"]["iss"]) is Reason.TOKEN_SIGNATURE
    assert await reason("Keycloak", rsa(), iss=ACCESS["GitHub"]["iss"]) is Reason.TOKEN_SIGNATURE


async def test_strength_and_time_go_on() -> None:
    who = recipe("Keycloak")
    answer = await ask(who, "Keycloak", amr=["otp", "pwd", 7])
    assert isinstance(answer, Caller)
    assert (answer.strength, answer.authenticated) == (frozenset({"1"}), NOW - 5), "amr with a number says nothing"
    answer = await ask(who, "Keycloak", amr=["otp", "pwd"], auth_time=...)
    assert isinstance(answer, Caller)
    assert (answer.strength, answer.authenticated) == (frozenset({"1", "otp", "pwd"}), NOW)
    assert who.on_overage is OnOverage.DENY


@pytest.mark.parametrize("verified", [False, "true", 1, None, ...])
async def test_an_address_that_nobody_verified_is_not_carried(verified: Any) -> None:
    answer = await ask(recipe("Google"), "Google", email_verified=verified)
    assert isinstance(answer, Caller)
    assert answer.claims == frozenset()
