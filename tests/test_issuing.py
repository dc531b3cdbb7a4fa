"""Tokens of this gateway: keys that turn, callers that come back as they went, routes that give out no more."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import admin as a
from tests import tokens as t
from tests.clock import Clock
from tidegate.admin import wiring
from tidegate.admin.app import build
from tidegate.admin.tokens import ACCESS_TOKEN, EXCHANGE, JWT
from tidegate.identity import issuing
from tidegate.identity.claims import refused
from tidegate.identity.issuing import AHEAD, KEPT, OwnKey, Source
from tidegate.identity.keys import KeySource
from tidegate.identity.own import OwnKeys
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import (
    Admin,
    CertificateIdentity,
    CertificateName,
    SamlIdentity,
    SourceIdentity,
    StaticIdentity,
)
from tidegate.state.control import Control
from tidegate.state.revocations import Revocations
from tidegate.state.signing import SigningKeys

DAY = 86400.0
ALICE = Caller("adfs", "alice:x", frozenset({"adfs:ml-eng", "adfs:a:b"}), None)
ADFS = SamlIdentity("adfs", "adfs.xml", None, None, "groups", None, 60.0)
POLICY = a.policy(
    identities=(t.identity(), ADFS, StaticIdentity("local", "tokens.yaml")),
    admin=replace(a.policy().admin, rotate=7 * DAY),
)


@pytest.fixture
def clock() -> Clock:
    return Clock(t.NOW)


@pytest.fixture
def revocations(control: Control, clock: Clock) -> Iterator[Revocations]:
    found = Revocations(control, clock)
    found.start()
    yield found
    found.close()


@pytest.fixture
def verifier(control: Control, clock: Clock, revocations: Revocations) -> Verifier:
    source = KeySource(t.identity(), lambda _: t.public(t.rsa()))
    own = OwnKeys(POLICY, SigningKeys(control), clock, clock)
    return Verifier(POLICY.identities, [source], revoked=revocations.covers, own=own)


async def minted(verifier: Verifier, caller: Caller = ALICE, **changes: Any) -> str:
    own = verifier.own
    assert own is not None
    await own.refresh()
    values = {"now": t.NOW, "until": t.NOW + 600, "jti": "j1", "source": None, **changes}
    return issuing.mint(issuing.signer(own.signing, t.NOW), a.URL, caller, **values)


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_comes_back_as_it_went(verifier: Verifier, clock: Clock) -> None:
    token = await minted(verifier)
    header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    assert header["typ"] == "at+jwt"
    caller = await verifier.identify(token, t.NOW)
    assert a.who(caller) == a.who(replace(ALICE, expires=t.NOW + 600))
    assert verifier.cached(token, t.NOW + 1) is caller
    claimed = replace(ALICE, claims=frozenset({("tenant", "t1"), ("tenant", "t2")}))
    caller = await verifier.identify(await minted(verifier, claimed, jti="j2"), t.NOW)
    assert isinstance(caller, Caller)
    assert caller.claims == claimed.claims
    clock.now += 700
    answer = await verifier.identify(token, clock.now)
    assert isinstance(answer, Denial)
    assert answer.reason is Reason.TOKEN_EXPIRED


@pytest.mark.parametrize(
    ("caller", "reason"),
    [
        (replace(ALICE, groups=frozenset({"adfs:ml-eng", "corp:admins"})), Reason.TOKEN_CLAIM),
        (replace(ALICE, groups=frozenset({"ml-eng"})), Reason.TOKEN_CLAIM),
        (replace(ALICE, identity="gone", groups=frozenset({"gone:x"})), Reason.TOKEN_CLAIM),
        (replace(ALICE, identity="tidegate", groups=frozenset()), Reason.TOKEN_CLAIM),
        (replace(ALICE, subject=""), Reason.TOKEN_CLAIM),
    ],
    ids=["another identity's group", "a bare group", "an identity that is gone", "a reserved name", "nobody"],
)
async def test_not_even_our_own_signature_mixes_identities(verifier: Verifier, caller: Caller, reason: Reason) -> None:
    answer = await verifier.identify(await minted(verifier, caller), t.NOW)
    assert isinstance(answer, Denial)
    assert answer.reason is reason


async def test_no_other_issuer_can_claim_an_identity_s_groups(verifier: Verifier) -> None:
    claims = t.claims(groups=["adfs:ml-eng", "x"], sub="adfs:alice")
    caller = await verifier.identify(t.sign(claims), t.NOW)
    assert isinstance(caller, Caller)
    assert (caller.identity, caller.subject) == ("corp", "adfs:alice")
    assert caller.groups == {"corp:adfs:ml-eng", "corp:x"}
    reserved = await verifier.identify(t.sign(t.claims(groups=["tidegate:adfs:ml-eng"])), t.NOW)
    assert isinstance(reserved, Denial)


@pytest.mark.parametrize(
    ("changes", "header", "reason"),
    [
        ({}, {"alg": "RS256"}, Reason.TOKEN_ALG),
        ({}, {"alg": "EdDSA"}, Reason.TOKEN_SIGNATURE),
        ({}, {"alg": "EdDSA", "kid": "unknown"}, Reason.KEY_UNKNOWN),
        ({}, {"alg": "EdDSA", "typ": "jwt"}, Reason.TOKEN_TYPE),
    ],
)
async def test_a_token_that_we_did_not_sign(verifier: Verifier, changes: Any, header: Any, reason: Reason) -> None:
    await minted(verifier)
    assert verifier.own is not None
    kid = verifier.own.signing[0].kid
    claims = t.claims(iss=a.URL, aud=a.URL, sub="adfs:alice", groups=["adfs:ml-eng"], **changes)
    forged = t.sign(claims, {"kid": kid, "typ": "at+jwt", **header}, t.okp())
    answer = await verifier.identify(forged, t.NOW)
    assert isinstance(answer, Denial)
    assert answer.reason is reason


async def test_a_token_ends_with_its_source_s_revocation(verifier: Verifier, revocations: Revocations) -> None:
    bob = Caller("corp", "bob", frozenset({"corp:x"}))
    tokens = [
        await minted(verifier, bob, jti=jti, source=Source(t.ISSUER, f"source-{jti}")) for jti in ("j1", "j2", "j3")
    ]
    for each in tokens:
        assert isinstance(await verifier.identify(each, t.NOW), Caller)
    revocations.revoke_token(a.URL, "j1", made_by="test").result(10)
    revocations.revoke_token(t.ISSUER, "source-j2", made_by="test").result(10)
    answers = [await verifier.identify(each, t.NOW) for each in tokens]
    assert [isinstance(each, Denial) for each in answers] == [True, True, False]
    revocations.revoke_subject(t.ISSUER, "bob", made_by="test").result(10)
    answer = await verifier.identify(tokens[2], t.NOW)
    assert isinstance(answer, Denial)
    assert answer.reason is Reason.TOKEN_REVOKED


def test_a_token_that_would_be_too_large_is_not_made() -> None:
    key = OwnKey("k", 0.0, b"\1" * 32)
    crowd = replace(ALICE, groups=frozenset(f"adfs:{n:0>100}" for n in range(200)))
    with pytest.raises(ValueError, match="too large"):
        issuing.mint(key, a.URL, crowd, now=t.NOW, until=t.NOW + 1, jti="j", source=None)
    assert "\\x01" not in repr(key)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(60.0, 3 * DAY), min_size=1, max_size=60), st.floats(7200.0, 10 * DAY))
def test_keys_turn_with_overlap_whenever_somebody_looks(pauses: list[float], rotate: float) -> None:
    keys: list[OwnKey] = []
    now, alive, ever = t.NOW, [], 0
    for pause in pauses:
        now += pause
        for each in issuing.is_over(keys, now):
            keys.remove(each)
            assert all(end < now or kid != each.kid for kid, end in alive), "a key went before its tokens"
        if issuing.is_due(keys, now, rotate):
            keys.append(OwnKey(f"k{len(pauses)}-{now}", now, b"\1" * 32))
            ever += 1
        key = issuing.signer(keys, now)
        assert key.made + AHEAD <= now or len(keys) == 1 or key is min(keys, key=lambda one: one.made)
        alive = [(kid, end) for kid, end in alive if end >= now] + [(key.kid, now + 3600.0)]
        assert {kid for kid, _ in alive} <= {each.kid for each in keys}
    assert len(keys) <= 2 + (AHEAD + KEPT) / max(60.0, rotate - AHEAD)


async def test_a_key_is_published_before_it_signs(control: Control, clock: Clock) -> None:
    own = OwnKeys(POLICY, SigningKeys(control), clock, clock)
    await own.refresh()
    (first,) = own.signing
    clock.now += 7 * DAY - AHEAD + 1
    await own.refresh()
    assert len(own.signing) == 2
    assert issuing.signer(own.signing, clock.now) == first
    clock.now += AHEAD
    await own.refresh()
    second = issuing.signer(own.signing, clock.now)
    assert second != first
    assert len(own.signing) == 2, "tokens of the first key are still believed"
    clock.now += KEPT
    await own.refresh()
    assert own.signing == (second,)


def test_of_many_that_find_a_key_due_one_makes_it(control: Control, tmp_path: Path) -> None:
    other = Control(tmp_path / "control.db")
    other.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda n: SigningKeys((control, other)[n % 2]).turn(t.NOW, DAY).result(30), range(40)))
    finally:
        other.close()
    assert len(set(made)) == 1
    assert len(made[0]) == 1
    for path in tmp_path.glob("control.db*"):
        assert path.stat().st_mode & 0o077 == 0, path.name


async def test_keys_that_cannot_be_read_count_for_two_minutes(control: Control, clock: Clock) -> None:
    own = OwnKeys(POLICY, SigningKeys(control), clock, clock)
    verifier = Verifier(POLICY.identities, [], own=own)
    token = await minted(verifier, until=t.NOW + 3000)
    control.close()
    clock.now += 60
    await own.refresh()
    assert own.failing
    assert isinstance(await verifier.identify(token, clock.now), Caller)
    clock.now += 61
    answer = await verifier.identify(token, clock.now)
    assert isinstance(answer, Denial)
    assert answer.reason is Reason.IDP_UNAVAILABLE


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def app(verifier: Verifier, revocations: Revocations, clock: Clock) -> Any:
    async def identify(token: str) -> Caller | Denial:
        return a.TOKENS.get(token) or await verifier.identify(token, clock.now)

    return build(
        wiring.DOORS,
        a.services(POLICY, identify=identify, verifier=verifier, revocations=revocations, now=clock),
    )


def asked(token: str, **changes: str) -> dict[str, str]:
    form = {"grant_type": EXCHANGE, "subject_token": token, "subject_token_type": JWT, **changes}
    return {name: value for name, value in form.items() if value is not ...}


async def test_a_ci_job_exchanges_its_token(app: Any, verifier: Verifier) -> None:
    subject = "repo:acme/app:environment:prod"
    shown = t.sign(t.claims(sub=subject, jti="ci-1", exp=t.NOW + 300, groups=...))
    async with a.client(app) as client:
        answer = await client.post("/token", data=asked(shown))
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["token_type"], body["issued_token_type"]) == ("Bearer", ACCESS_TOKEN)
        assert body["expires_in"] == 300, "it ends with what it was given for"
        assert answer.headers["cache-control"] == "no-store"
        caller = await verifier.identify(body["access_token"], t.NOW)
        assert a.who(caller) == ("corp", subject, frozenset(), t.NOW + 300)
        long = await client.post("/token", data=asked(t.sign(t.claims(exp=t.NOW + 80_000))))
        assert long.json()["expires_in"] == 3600
        again = await client.post("/token", data=asked(body["access_token"]))
        assert again.json()["error"] == "invalid_request", "ours cannot be exchanged for ours"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ...}, "unsupported_grant_type"),
        ({"subject_token": ...}, "invalid_request"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"requested_token_type": "urn:ietf:params:oauth:token-type:id_token"}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"audience": "https://elsewhere.example"}, "invalid_target"),
        ({"subject_token": "x.y.z"}, "invalid_request"),
        ({"subject_token": "x" * 20_000}, "invalid_request"),
        ({"subject_token": t.sign(t.claims(exp=t.NOW - 100))}, "invalid_request"),
        ({"subject_token": t.sign(t.claims(exp=t.NOW - 30))}, "invalid_grant"),
        ({"subject_token": t.sign(t.claims(cnf={"jkt": "x"}))}, "invalid_request"),
        ({"subject_token": t.sign(key=t.rsa(2048, "k2"))}, "invalid_request"),
        ({"subject_token": "tg_ops"}, "invalid_request"),
    ],
    ids=[
        "password",
        "none",
        "no-token",
        "other-type",
        "id-token",
        "actor",
        "elsewhere",
        "three-parts",
        "long",
        "over",
        "nearly-over",
        "bound",
        "other-key",
        "static",
    ],
)
async def test_what_is_not_exchanged(app: Any, form: Any, error: str) -> None:
    async with a.client(app) as client:
        answer = await client.post("/token", data=asked(t.sign(), **form))
    assert answer.status_code == 400
    assert answer.json()["error"] == error
    assert set(answer.json()) == {"error", "error_description"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"grant_type": "x"}', "application/json"),
        (b"grant_type=a&grant_type=b", "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"a=%ff", "application/x-www-form-urlencoded"),
        (b"nothing", "application/x-www-form-urlencoded"),
        (b"&".join(b"f%d=1" % n for n in range(30)), "application/x-www-form-urlencoded"),
    ],
    ids=["json", "twice", "bytes", "not utf-8", "no pair", "many"],
)
async def test_what_is_no_form(app: Any, content: bytes, kind: str) -> None:
    async with a.client(app) as client:
        answer = await client.post("/token", content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_our_keys_and_addresses_are_published_without_the_private_half(app: Any, verifier: Verifier) -> None:
    async with a.client(app) as client:
        keys = (await client.get("/jwks")).json()["keys"]
        found = (await client.get("/.well-known/openid-configuration")).json()
        assert found == (await client.get("/.well-known/oauth-authorization-server")).json()
    assert [set(each) for each in keys] == [{"kty", "crv", "alg", "use", "kid", "x"}]
    assert (found["issuer"], found["jwks_uri"]) == (a.URL, f"{a.URL}/jwks")
    assert EXCHANGE in found["grant_types_supported"]


async def test_without_an_address_no_token_is_given_out() -> None:
    async with a.client(
        build(wiring.DOORS, a.services(a.policy(admin=Admin()))), base_url="http://localhost"
    ) as client:
        answers = [
            await client.post("/token", data=asked(t.sign())),
            await client.get("/jwks"),
            await client.get("/.well-known/openid-configuration"),
        ]
    assert [each.status_code for each in answers] == [404] * 3


async def test_whoever_holds_a_token_may_end_it(app: Any, verifier: Verifier) -> None:
    token, other = await minted(verifier), await minted(verifier, jti="j2")
    async with a.client(app) as client:
        assert (await client.post("/revoke", data={"token": token})).status_code == 200
        assert (await client.post("/revoke", data={"token": "x.y.z"})).status_code == 200, "RFC 7009 section 2.2"
        assert (await client.post("/revoke", data={"token": "tg_ops"})).json()["error"] == "unsupported_token_type"
        assert (await client.post("/revoke", data={})).status_code == 400
    answer = await verifier.identify(token, t.NOW)
    assert isinstance(answer, Denial)
    assert answer.reason is Reason.TOKEN_REVOKED
    assert isinstance(await verifier.identify(other, t.NOW), Caller)


async def test_a_bound_token_is_taken_back_without_a_proof(app: Any, verifier: Verifier) -> None:
    shown = t.sign(t.claims(jti="bound-1", cnf={"jkt": "x" * 43}))
    assert await verifier.identify(shown, t.NOW) == refused(Reason.TOKEN_BOUND)
    async with a.client(app) as client:
        assert (await client.post("/revoke", data={"token": shown})).status_code == 200
        nameless = {"token": t.sign(t.claims(cnf={"jkt": "x" * 43}))}
        answer = await client.post("/revoke", data=nameless)
        assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_token_type")
        forged = {"token": t.sign(t.claims(jti="other"), {"kid": "k1"}, t.rsa(name="k2"))}
        assert (await client.post("/revoke", data=forged)).status_code == 200
    assert await verifier.identify(shown, t.NOW) == refused(Reason.TOKEN_REVOKED), "asked before the proof"
    other = t.sign(t.claims(jti="other"))
    assert isinstance(await verifier.identify(other, t.NOW), Caller), "what is not of the provider ends nothing"


async def test_an_operator_takes_back_the_tokens_of_others(app: Any, verifier: Verifier) -> None:
    token = await minted(verifier)
    bound = await minted(verifier, Caller("corp", "bob"), jti="j2", source=Source(t.ISSUER, None))
    async with a.client(app) as client:
        path, ops = "/v1/tokens/revoke", a.bearer("ops")
        for body in ({}, {"identity": "adfs"}, {"identity": "adfs", "jti": "x", "subject": "y"}, {"subject": 1}, []):
            assert (await client.post(path, json=body, headers=ops)).status_code == 400
        assert (await client.post(path, json={"identity": "x", "jti": "y"}, headers=ops)).status_code == 404
        body = {"identity": "adfs", "subject": ALICE.subject, "reason": "left"}
        assert (await client.post(path, json=body, headers=a.bearer("reader"))).status_code == 403
        answer = await client.post(path, json=body, headers=ops)
        assert answer.json() == {"revoked": {"issuer": a.URL, "subject": f"adfs:{ALICE.subject}"}}
        assert isinstance(await verifier.identify(token, t.NOW), Denial)
        assert isinstance(await verifier.identify(bound, t.NOW), Caller)
        await client.post(path, json={"identity": "corp", "subject": "bob"}, headers=ops)
        assert isinstance(await verifier.identify(bound, t.NOW), Denial), "the token it was exchanged for goes too"


REVOCABLE = a.policy(
    identities=(
        *POLICY.identities,
        SourceIdentity("lan", ("10.0.0.0/8",), None, ()),
        CertificateIdentity("mesh", "ca.pem", CertificateName.CN, (), units=False),
    ),
    admin=POLICY.admin,
)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        pytest.param({"identity": "local", "subject": "reader"}, 400, "its entry is deleted", id="static"),
        pytest.param({"identity": "local", "jti": "1"}, 400, "its entry is deleted", id="static-jti"),
        pytest.param({"identity": "lan", "subject": "10.0.0.1"}, 400, "take their networks out", id="source"),
        pytest.param({"identity": "mesh", "subject": "billing"}, 400, "have the certificate end", id="certificate"),
        pytest.param({"issuer": "adfs", "subject": "bob"}, 400, "with one: corp.", id="a-name-of-another-kind"),
        pytest.param({"issuer": "nobody", "jti": "1"}, 400, "an issuer's address", id="neither"),
        pytest.param({"issuer": "corp", "jti": "1"}, 200, t.ISSUER, id="a-name"),
        pytest.param({"issuer": "https://old.example", "jti": "1"}, 200, "https://old.example", id="an-old-address"),
        pytest.param({"identity": "adfs", "jti": "1"}, 200, a.URL, id="saml-jti"),
    ],
)
async def test_what_no_entry_could_match_is_refused(
    body: dict[str, str], status: int, told: str, verifier: Verifier, revocations: Revocations, clock: Clock
) -> None:
    services = a.services(REVOCABLE, verifier=verifier, revocations=revocations, now=clock)
    async with a.client(build(wiring.DOORS, services)) as client:
        answer = await client.post("/v1/tokens/revoke", json=body, headers=a.bearer("ops"))
    assert answer.status_code == status
    assert told in answer.text
    assert len(revocations.all().result(10)) == (status == 200)


async def test_many_exchange_at_once(app: Any) -> None:
    shown = t.sign()
    async with a.client(app) as client:
        answers = await asyncio.gather(*(client.post("/token", data=asked(shown)) for _ in range(30)))
    assert len({each.json()["access_token"] for each in answers}) == 30
