"""Tokens that are bound to their sender: DPoP proofs and client certificates, and every way to do without them."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tokens
from tests.tokens import NOW, claims, identity, public, rsa, segment, sign
from tidegate.identity import verifier as module
from tidegate.identity.keys import KeySource
from tidegate.identity.proof import PROOF_BYTES, WINDOW, Shown, asked, plain
from tidegate.identity.verifier import Proofs, Verifier
from tidegate.model import Caller, Denial, Head, Origin, Peer, Reason
from tidegate.policy.policy import Bound

GATE = "https://gate.example.com"
PATH = "/openai/v1/chat/completions"


def thumbprint(key: Any) -> str:
    return str(key.thumbprint())


def bound(key: Any = None, **changes: Any) -> str:
    return sign(claims(cnf={"jkt": thumbprint(key or tokens.ec())}, **changes))


def digest(token: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()


def proof(token: str, key: Any = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A good proof with changes; a value of ``...`` removes the claim."""
    key = key or tokens.ec()
    said = {"htm": "POST", "htu": GATE + PATH, "iat": NOW, "jti": "p1", "ath": digest(token), **changes}
    written = {"typ": "dpop+jwt", "alg": "ES256", "kid": ..., "jwk": key.as_dict(private=False), **(header or {})}
    return sign({name: value for name, value in said.items() if value is not ...}, written, key)


def shown(*proofs: str, method: str = "POST", path: str = PATH, origin: Origin | None = None, **changes: Any) -> Shown:
    head = Head(method, path, tuple(("dpop", each) for each in proofs), origin, peer=changes.pop("peer", Peer()))
    return Shown(changes.pop("dpop", True), head)


def gate(**changes: Any) -> Verifier:
    who = identity(addresses=(GATE, "http://127.0.0.1:8080"), **changes)
    return Verifier([who], [KeySource(who, lambda _: public(rsa()))])


async def ask(token: str, how: Shown, verifier: Verifier | None = None, now: float = NOW) -> Reason | None:
    answer = await (verifier or gate()).identify(token, now, how)
    if isinstance(answer, Caller):
        assert answer.subject == "alice"
        return None
    assert answer.status == 401
    return answer.reason


async def test_a_good_proof() -> None:
    token = bound()
    assert await ask(token, shown(proof(token))) is None


@pytest.mark.parametrize("key", [tokens.ec("P-384"), tokens.okp(), rsa(name="client")], ids=["EC", "OKP", "RSA"])
async def test_other_keys(key: Any) -> None:
    token = bound(key)
    algorithm = {"EC": "ES384", "OKP": "EdDSA", "RSA": "RS256"}[key.key_type]
    expected = Reason.TOKEN_PROOF if key.key_type == "EC" else None  # the helper signs EC with ES256 alone
    assert await ask(token, shown(proof(token, key, {"alg": algorithm}))) is expected


async def test_a_bound_token_is_never_a_bearer_token() -> None:
    verifier = gate()
    token = bound()
    assert await ask(token, shown(dpop=False), verifier) is Reason.TOKEN_BOUND
    assert await ask(token, shown(proof(token), dpop=False), verifier) is Reason.TOKEN_BOUND
    assert await ask(token, shown(proof(token)), verifier) is None, "a refusal for want of a proof is not remembered"
    assert await ask(token, shown(dpop=False), verifier) is Reason.TOKEN_BOUND, "nor is the yes"
    answer = await verifier.identify(token, NOW)  # with no request at all
    assert isinstance(answer, Denial)
    assert answer.reason is Reason.TOKEN_BOUND


async def test_a_proof_counts_once() -> None:
    verifier, token = gate(), bound()
    first = proof(token)
    assert await ask(token, shown(first), verifier) is None
    for _ in range(2):
        assert await ask(token, shown(first), verifier) is Reason.TOKEN_PROOF
    assert await ask(token, shown(proof(token, jti="p2")), verifier) is None
    assert await ask(token, shown(proof(token, iat=NOW + 1)), verifier) is Reason.TOKEN_PROOF, "the jti is the proof"
    other = bound(tokens.okp())
    assert await ask(other, shown(proof(other, tokens.okp(), {"alg": "EdDSA"})), verifier) is None, "another's jti"


WRONG: dict[str, Any] = {
    "no proof": lambda token: (),
    "two proofs": lambda token: (proof(token), proof(token, jti="p2")),
    "no JWT": lambda token: ("x",),
    "empty": lambda token: ("",),
    "large": lambda token: (proof(token, x="a" * PROOF_BYTES),),
    "another method": lambda token: (proof(token, htm="GET"),),
    "method in small letters": lambda token: (proof(token, htm="post"),),
    "no method": lambda token: (proof(token, htm=...),),
    "another path": lambda token: (proof(token, htu=f"{GATE}/openai/v1/embeddings"),),
    "another host": lambda token: (proof(token, htu=f"https://evil.example.com{PATH}"),),
    "another port": lambda token: (proof(token, htu=f"{GATE}:8443{PATH}"),),
    "another scheme": lambda token: (proof(token, htu=f"http://gate.example.com{PATH}"),),
    "path in capitals": lambda token: (proof(token, htu=GATE + PATH.upper()),),
    "with a user": lambda token: (proof(token, htu=f"https://a@gate.example.com{PATH}"),),
    "address is a list": lambda token: (proof(token, htu=[GATE + PATH]),),
    "no address": lambda token: (proof(token, htu=...),),
    "old": lambda token: (proof(token, iat=NOW - WINDOW - 1),),
    "ahead": lambda token: (proof(token, iat=NOW + WINDOW + 1),),
    "no time": lambda token: (proof(token, iat=...),),
    "time is a text": lambda token: (proof(token, iat=str(NOW)),),
    "time is true": lambda token: (proof(token, iat=True),),
    "time is huge": lambda token: (proof(token, iat=10**400),),
    "no jti": lambda token: (proof(token, jti=...),),
    "empty jti": lambda token: (proof(token, jti=""),),
    "long jti": lambda token: (proof(token, jti="x" * 257),),
    "jti is a number": lambda token: (proof(token, jti=1),),
    "no ath": lambda token: (proof(token, ath=...),),
    "ath of another token": lambda token: (proof(token, ath=digest(token + "x")),),
    "ath is not ASCII": lambda token: (proof(token, ath="é" * 43),),
    "type JWT": lambda token: (proof(token, header={"typ": "JWT"}),),
    "no type": lambda token: (proof(token, header={"typ": ...}),),
    "alg none": lambda token: (proof(token, header={"alg": "none"}),),
    "alg HS256": lambda token: (proof(token, header={"alg": "HS256"}),),
    "alg of another type": lambda token: (proof(token, header={"alg": "RS256"}),),
    "no key": lambda token: (proof(token, header={"jwk": ...}),),
    "private key": lambda token: (proof(token, header={"jwk": tokens.ec().as_dict(private=True)}),),
    "another key": lambda token: (proof(token, tokens.okp(), {"alg": "EdDSA"}),),
    "key of another in the header": lambda token: (
        proof(token, tokens.okp(), {"alg": "ES256", "jwk": tokens.ec().as_dict(private=False)}),
    ),
    "symmetric key": lambda token: (proof(token, header={"jwk": {"kty": "oct", "k": "AAAA"}, "alg": "HS256"}),),
    "weak key": lambda token: (proof(token, rsa(1024), {"alg": "RS256"}),),
    "crit": lambda token: (proof(token, header={"crit": ["x"], "x": 1}),),
    "jku": lambda token: (proof(token, header={"jku": GATE}),),
    "changed": lambda token: (changed(proof(token)),),
    "two htu": lambda token: (doubled(token),),
}


def changed(good: str) -> str:
    head, payload, signature = good.split(".")
    said = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{head}.{segment(json.dumps({**said, 'jti': 'other'}).encode())}.{signature}"


def doubled(token: str) -> str:
    said = json.dumps({"htm": "POST", "iat": NOW, "jti": "p1", "ath": digest(token)})[1:-1]
    body = f'{{"htu": "https://x", {said}, "htu": "{GATE + PATH}"}}'.encode()
    return sign(body, {"typ": "dpop+jwt", "alg": "ES256", "jwk": tokens.ec().as_dict(private=False)}, tokens.ec())


@pytest.mark.parametrize("name", list(WRONG))
async def test_what_proves_nothing(name: str) -> None:
    token = bound()
    assert await ask(token, shown(*WRONG[name](token))) is Reason.TOKEN_PROOF


async def test_a_proof_of_a_weak_key_its_token_is_bound_to() -> None:
    token = bound(rsa(1024))
    assert await ask(token, shown(proof(token, rsa(1024), {"alg": "RS256"}))) is Reason.TOKEN_PROOF


async def test_a_proof_for_a_token_that_is_not_bound() -> None:
    token = sign()
    assert await ask(token, shown(proof(token))) is Reason.TOKEN_PROOF
    assert await ask(token, shown(dpop=False)) is None
    assert await ask("tg_" + "A" * 43, shown(dpop=True)) is Reason.TOKEN_PROOF


async def test_where_every_token_must_be_bound() -> None:
    assert await ask(sign(), shown(dpop=False), gate(bound=Bound.REQUIRED)) is Reason.TOKEN_BOUND
    token = bound()
    assert await ask(token, shown(proof(token)), gate(bound=Bound.REQUIRED)) is None


# ── which address is meant ───────────────────────────────────────────────────

OPENAI = Origin("https", "api.openai.com", 443)


@pytest.mark.parametrize(
    ("origin", "path", "address", "good"),
    [
        (None, PATH, f"{GATE}:443{PATH}", True),
        (None, PATH, f"HTTPS://Gate.Example.com{PATH}", True),
        (None, PATH, f"http://127.0.0.1:8080{PATH}", True),
        (None, PATH, f"wss://gate.example.com{PATH}", True),
        (None, PATH + "?a=1", f"{GATE}{PATH}", True),
        (None, PATH, f"{GATE}{PATH}?b=2#c", True),
        (None, "/a%2db%2fc", f"{GATE}/a-b%2Fc", True),
        (None, PATH, f"https://api.openai.com{PATH}", False),
        (OPENAI, "/v1/chat/completions", "https://api.openai.com/v1/chat/completions", True),
        (OPENAI, "/v1/chat/completions", "https://api.openai.com:443/v1/chat/completions", True),
        (OPENAI, "/v1/chat/completions", "http://api.openai.com/v1/chat/completions", False),
        (OPENAI, "/v1/chat/completions", f"{GATE}/v1/chat/completions", False),
        (Origin("http", "::1", 8081), "/x", "http://[::1]:8081/x", True),
    ],
)
async def test_the_address(origin: Origin | None, path: str, address: str, good: bool) -> None:
    token = bound()
    found = await ask(token, shown(proof(token, htu=address), origin=origin, path=path))
    assert found is (None if good else Reason.TOKEN_PROOF)


async def test_without_addresses_no_proof_fits_a_base_url() -> None:
    who = identity()
    verifier = Verifier([who], [KeySource(who, lambda _: public(rsa()))])
    token = bound()
    assert await ask(token, shown(proof(token)), verifier) is Reason.TOKEN_PROOF


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_none(text: str) -> None:
    found = plain(text)
    assert found is None or plain(found) == found
    for each in asked(Head("GET", "/" + text, (), None), ["https://a"]):
        plain(each)


# ── memory of proofs ─────────────────────────────────────────────────────────


def test_proofs_are_forgotten_when_they_are_too_old() -> None:
    proofs = Proofs()
    assert proofs.first(b"a", NOW)
    assert not proofs.first(b"a", NOW + 2 * WINDOW)
    assert proofs.first(b"b", NOW + 2 * WINDOW + 1)
    assert proofs.first(b"a", NOW + 2 * WINDOW + 1)


def test_a_full_memory_believes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROOFS", 2)
    proofs = Proofs()
    assert proofs.first(b"a", NOW)
    assert proofs.first(b"b", NOW)
    assert not proofs.first(b"c", NOW)
    assert proofs.first(b"c", NOW + 2 * WINDOW + 1)


# ── client certificates ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("certificate", "expected"), [(b"mine", None), (b"other", Reason.TOKEN_BOUND), (None, Reason.TOKEN_BOUND)]
)
async def test_a_certificate(certificate: bytes | None, expected: Reason | None) -> None:
    x5t = base64.urlsafe_b64encode(hashlib.sha256(b"mine").digest()).rstrip(b"=").decode()
    token = sign(claims(cnf={"x5t#S256": x5t}))
    verifier = gate()
    how = shown(dpop=False, peer=Peer("127.0.0.1", certificate))
    for _ in range(2):  # from memory, too
        assert await ask(token, how, verifier) is expected


@pytest.mark.parametrize("certificate", [b"mine", b"other"])
@pytest.mark.parametrize("proven", [True, False])
async def test_both_are_both(certificate: bytes, proven: bool) -> None:
    x5t = base64.urlsafe_b64encode(hashlib.sha256(b"mine").digest()).rstrip(b"=").decode()
    token = sign(claims(cnf={"x5t#S256": x5t, "jkt": thumbprint(tokens.ec())}))
    proofs = (proof(token),) if proven else ()
    found = await ask(token, shown(*proofs, peer=Peer(None, certificate)))
    assert (found is None) is (certificate == b"mine" and proven)
