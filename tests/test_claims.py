from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tokens
from tests.tokens import NOW, claims, identity, keyset, public, rsa, segment, sign
from tidegate.identity.claims import TOKEN_BYTES, Overage, credentials, peek, verify
from tidegate.identity.groups import path_problem
from tidegate.identity.jwks import KEYS, import_keys
from tidegate.model import Caller, Denial, Reason

PUBLIC = "The access token was not accepted; get a new one and try again."


def check(token: str, now: float = NOW, keys: Any = None, **changes: Any) -> Caller | Denial:
    """Run the whole check as the verifier does, the issuer's own configuration given."""
    peeked = peek(token)
    if isinstance(peeked, Denial):
        return peeked
    found = verify(peeked, identity(**changes), keys or keyset(), now)
    assert not isinstance(found, Overage)
    return found if isinstance(found, Denial) else found.caller


def reason(result: Caller | Denial) -> Reason | None:
    return result.reason if isinstance(result, Denial) else None


# ── where it sits ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([("authorization", "Bearer abc")], "abc", id="openai"),
        pytest.param([("authorization", "bearer  abc ")], "abc", id="scheme in any case"),
        pytest.param([("x-api-key", "abc")], "abc", id="anthropic"),
        pytest.param([("api-key", "abc")], "abc", id="azure"),
        pytest.param([("x-goog-api-key", "abc")], "abc", id="gemini"),
        pytest.param([("x-api-key", "abc"), ("authorization", "Bearer abc")], "abc", id="two places, one value"),
        pytest.param([], Reason.CALLER_MISSING, id="nowhere"),
        pytest.param([("cookie", "token=abc")], Reason.CALLER_MISSING, id="cookie"),
        pytest.param([("authorization", "Basic YTpi")], Reason.CALLER_MISSING, id="basic"),
        pytest.param([("authorization", "abc")], Reason.CALLER_MISSING, id="no scheme"),
        pytest.param([("authorization", "Bearer ")], Reason.CALLER_MISSING, id="empty"),
        pytest.param([("x-api-key", "a"), ("x-api-key", "a")], Reason.CALLER_AMBIGUOUS, id="twice"),
        pytest.param([("x-api-key", "a"), ("authorization", "Bearer b")], Reason.CALLER_AMBIGUOUS, id="two values"),
        pytest.param([("x-api-key", "a"), ("authorization", "Basic b")], Reason.CALLER_AMBIGUOUS, id="basic beside"),
    ],
)
def test_credentials(headers: list[tuple[str, str]], expected: str | Reason) -> None:
    found = credentials(headers)
    assert (found.reason if isinstance(found, Denial) else found.text) == expected
    if isinstance(found, Denial):
        assert found.status == 401


# ── good tokens ──────────────────────────────────────────────────────────────


def test_good_token() -> None:
    assert check(sign()) == Caller("corp", "alice", frozenset({"corp:ml-eng"}), NOW + 600, authenticated=NOW - 10)


@pytest.mark.parametrize(("max_age", "ends"), [(None, NOW + 600), (60.0, NOW + 50), (6000.0, NOW + 600)])
def test_a_caller_ends_with_the_token_or_with_the_age_of_the_sign_in(max_age: float | None, ends: float) -> None:
    found = check(sign(), max_age=max_age)
    assert isinstance(found, Caller)
    assert found.expires == ends


@pytest.mark.parametrize(
    ("key", "algorithm"), [(tokens.ec(), "ES256"), (tokens.okp(), "EdDSA")], ids=["ES256", "EdDSA"]
)
def test_other_algorithms(key: Any, algorithm: str) -> None:
    assert isinstance(check(sign(header={"alg": algorithm}, key=key), keys=keyset(key)), Caller)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param({"exp": NOW - 59}, None, id="ended within leeway"),
        pytest.param({"exp": NOW - 60}, Reason.TOKEN_EXPIRED, id="ended"),
        pytest.param({"exp": ...}, Reason.TOKEN_EXPIRED, id="no exp"),
        pytest.param({"exp": str(NOW + 60)}, Reason.TOKEN_EXPIRED, id="exp is text"),
        pytest.param({"exp": True}, Reason.TOKEN_EXPIRED, id="exp is true"),
        pytest.param({"exp": 10**400}, Reason.TOKEN_EXPIRED, id="exp is no float"),
        pytest.param({"nbf": NOW + 60}, None, id="nbf within leeway"),
        pytest.param({"nbf": NOW + 61}, Reason.TOKEN_NOT_YET, id="nbf ahead"),
        pytest.param({"nbf": None}, Reason.TOKEN_NOT_YET, id="nbf is null"),
        pytest.param({"iat": True}, Reason.TOKEN_NOT_YET, id="iat is true"),
        pytest.param({"iat": NOW + 61}, Reason.TOKEN_NOT_YET, id="iat ahead"),
        pytest.param({"exp": NOW + 86400}, None, id="longest life"),
        pytest.param({"exp": NOW + 86401}, Reason.TOKEN_LIFETIME, id="lives too long"),
        pytest.param({"iss": "https://login.example.com/"}, Reason.TOKEN_ISSUER, id="other issuer"),
        pytest.param({"iss": ["https://login.example.com"]}, Reason.TOKEN_ISSUER, id="issuer is a list"),
        pytest.param({"iss": ...}, Reason.TOKEN_ISSUER, id="no issuer"),
        pytest.param({"aud": "tidegate2"}, Reason.TOKEN_AUDIENCE, id="audience begins alike"),
        pytest.param({"aud": ...}, Reason.TOKEN_AUDIENCE, id="no audience"),
        pytest.param({"aud": ["x", 1, "tidegate"]}, Reason.TOKEN_AUDIENCE, id="audience with a number"),
        pytest.param({"aud": ["tidegate"]}, None, id="audience in a list of one"),
        pytest.param({"aud": ["x", "tidegate"]}, Reason.TOKEN_CLIENT, id="several audiences without azp"),
        pytest.param({"aud": ["x", "tidegate"], "azp": "cli"}, None, id="several audiences with azp"),
        pytest.param({"azp": 5}, Reason.TOKEN_CLIENT, id="azp is a number"),
        pytest.param({"sub": 7}, Reason.TOKEN_CLAIM, id="sub is a number"),
        pytest.param({"sub": ""}, Reason.TOKEN_CLAIM, id="sub is empty"),
        pytest.param({"sub": "tidegate:root"}, Reason.TOKEN_CLAIM, id="sub is reserved"),
        pytest.param({"sub": "a\nb"}, Reason.TOKEN_CLAIM, id="sub with a line break"),
        pytest.param({"sub": "a" * 513}, Reason.TOKEN_CLAIM, id="sub is long"),
        pytest.param({"cnf": {"jkt": "x"}}, Reason.TOKEN_BOUND, id="bound to no key"),
        pytest.param({"token_use": "id"}, Reason.TOKEN_TYPE, id="ID token (Cognito, nanoidp)"),
        pytest.param({"typ": "ID"}, Reason.TOKEN_TYPE, id="ID token (Keycloak)"),
        pytest.param({"typ": "Bearer"}, None, id="access token (Keycloak)"),
        pytest.param({"at_hash": "x"}, Reason.TOKEN_TYPE, id="ID token (OpenID Connect)"),
    ],
)
def test_claims(payload: dict[str, Any], expected: Reason | None) -> None:
    result = check(sign(claims(**payload)))
    assert reason(result) == expected
    if isinstance(result, Denial):
        assert (result.status, result.message) == (401, PUBLIC)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param({"azp": "cli"}, None, id="azp"),
        pytest.param({"client_id": "cli"}, None, id="client_id"),
        pytest.param({"azp": "other", "client_id": "cli"}, Reason.TOKEN_CLIENT, id="azp goes first"),
        pytest.param({}, Reason.TOKEN_CLIENT, id="none"),
    ],
)
def test_allowed_clients(payload: dict[str, Any], expected: Reason | None) -> None:
    assert reason(check(sign(claims(**payload)), allowed_clients=frozenset({"cli"}))) == expected


# ── hostile tokens (facts 2.3) ───────────────────────────────────────────────


def none_token() -> str:
    head = segment(json.dumps({"alg": "none", "kid": "k1", "typ": "JWT"}).encode())
    return f"{head}.{segment(json.dumps(claims()).encode())}.x"


def changed_claims() -> str:
    head, _, signature = sign().split(".")
    return ".".join((head, segment(json.dumps(claims(sub="eve")).encode()), signature))


def public_key_as_secret() -> str:
    head = segment(json.dumps({"alg": "HS256", "kid": "k1", "typ": "at+jwt"}).encode())
    signing = f"{head}.{segment(json.dumps(claims()).encode())}"
    return f"{signing}.{segment(hmac.digest(rsa().as_pem(private=False), signing.encode(), 'sha256'))}"


def other_trailing_bits(token: str) -> str:
    """Change bits of the last signature character that no byte holds: 256 bytes leave two of them."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


TWICE = json.dumps(claims())[:-1].encode() + b', "sub": "mallory"}'
HEADER_TWICE = b'{"alg": "none", "alg": "RS256", "kid": "k1", "typ": "at+jwt"}'
HOSTILE = [
    ("alg none", none_token(), Reason.TOKEN_ALG),
    ("HS256 keyed with the public key", public_key_as_secret(), Reason.TOKEN_ALG),
    ("alg outside the issuer's list", sign(header={"alg": "PS256"}), Reason.TOKEN_ALG),
    ("alg of another key type", sign(header={"alg": "ES256"}), Reason.TOKEN_ALG),
    ("alg in lower case", sign(header={"alg": "rs256"}), Reason.TOKEN_ALG),
    ("alg a list", sign(header={"alg": ["RS256"]}), Reason.TOKEN_ALG),
    ("no alg", sign(header={"alg": ...}), Reason.TOKEN_ALG),
    ("two alg", sign(header=HEADER_TWICE), Reason.TOKEN_MALFORMED),
    ("two sub", sign(TWICE), Reason.TOKEN_MALFORMED),
    ("exp Infinity", sign(json.dumps(claims(exp=float("inf"))).encode()), Reason.TOKEN_MALFORMED),
    ("exp 1e999", sign(json.dumps(claims(exp=1)).replace('"exp": 1', '"exp": 1e999').encode()), Reason.TOKEN_MALFORMED),
    ("payload a list", sign(b"[]"), Reason.TOKEN_MALFORMED),
    ("payload not JSON", sign(b"hello"), Reason.TOKEN_MALFORMED),
    ("payload not UTF-8", sign(b'{"iss": "\xff"}'), Reason.TOKEN_MALFORMED),
    ("unknown crit", sign(header={"crit": ["x"], "x": 1}), Reason.TOKEN_HEADER),
    ("b64 false", sign(header={"b64": False}), Reason.TOKEN_HEADER),
    ("jwk in the header", sign(header={"jwk": rsa().as_dict(private=False)}), Reason.TOKEN_HEADER),
    ("jku in the header", sign(header={"jku": "https://evil.example/keys"}), Reason.TOKEN_HEADER),
    ("x5u in the header", sign(header={"x5u": "https://evil.example/cert"}), Reason.TOKEN_HEADER),
    ("kid a number", sign(header={"kid": 1}), Reason.TOKEN_HEADER),
    ("kid unknown", sign(header={"kid": "k9"}), Reason.KEY_UNKNOWN),
    ("typ of a logout token", sign(header={"typ": "logout+jwt"}), Reason.TOKEN_TYPE),
    ("typ of a security event", sign(header={"typ": "secevent+jwt"}), Reason.TOKEN_TYPE),
    ("typ foreign", sign(header={"typ": "saml"}), Reason.TOKEN_TYPE),
    ("typ absent", sign(header={"typ": ...}), Reason.TOKEN_TYPE),
    ("typ a number", sign(header={"typ": 1}), Reason.TOKEN_TYPE),
    ("another's key under our kid", sign(key=rsa(2048, "evil"), header={"kid": "k1"}), Reason.TOKEN_SIGNATURE),
    ("claims changed", changed_claims(), Reason.TOKEN_SIGNATURE),
    ("other trailing bits", other_trailing_bits(sign()), Reason.TOKEN_SIGNATURE),
    ("padding appended", sign() + "==", Reason.TOKEN_MALFORMED),
    ("final newline", sign() + "\n", Reason.TOKEN_MALFORMED),
    ("four parts", sign() + ".x", Reason.TOKEN_MALFORMED),
    ("five parts (JWE)", "a.b.c.d.e", Reason.TOKEN_MALFORMED),
    ("not a token", "sk-ant-something", Reason.TOKEN_MALFORMED),
    ("non-ASCII", "ä.b.c", Reason.TOKEN_MALFORMED),
    ("empty", "", Reason.TOKEN_MALFORMED),
    ("1 MB claim", sign(claims(x="a" * 1_000_000)), Reason.TOKEN_TOO_LARGE),
    ("8,000 levels", sign(b'{"iss":' + b"[" * 5000 + b"]" * 5000 + b"}"), Reason.TOKEN_MALFORMED),
]  # fmt: skip


@pytest.mark.parametrize(("token", "expected"), [pytest.param(t, r, id=name) for name, t, r in HOSTILE])
def test_hostile_tokens(token: str, expected: Reason) -> None:
    result = check(token)
    assert reason(result) == expected
    assert isinstance(result, Denial)
    assert (result.status, result.message) == (401, PUBLIC)


def test_size_limit_is_exact() -> None:
    token = "a" * (TOKEN_BYTES - 4) + ".b.c"
    assert reason(check(token)) == Reason.TOKEN_MALFORMED
    assert reason(check(token + "c")) == Reason.TOKEN_TOO_LARGE


def test_no_kid_needs_a_set_of_one_key() -> None:
    token = sign(header={"kid": ...})
    assert isinstance(check(token), Caller)
    assert reason(check(token, keys=keyset(rsa(), tokens.ec()))) == Reason.KEY_UNKNOWN


def test_a_header_may_carry_certificates_that_nobody_reads() -> None:
    assert isinstance(check(sign(header={"x5c": ["A" * 4000], "x5t": "x", "nonce": "y"})), Caller)


def test_jwk_alg_binds_the_key() -> None:
    keys = import_keys(public(rsa(), alg="RS512"))
    assert reason(check(sign(), keys=keys)) == Reason.TOKEN_ALG


def test_token_never_shows() -> None:
    token = sign()
    assert token not in repr(peek(token))


@given(st.text(alphabet="abcABC019-_.=\n é", max_size=60))
def test_any_text_is_answered(text: str) -> None:
    assert isinstance(check(text), Denial)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_header_and_payload_is_answered(header: bytes, payload: bytes) -> None:
    assert isinstance(check(f"{segment(header) or 'e'}.{segment(payload) or 'e'}.c2ln"), Denial)


# ── groups ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "payload", "expected"),
    [
        pytest.param("$.groups", {"groups": ["a", "b"]}, {"corp:a", "corp:b"}, id="list"),
        pytest.param("$.groups", {"groups": "a b"}, {"corp:a b"}, id="text is one group"),
        pytest.param("$.groups", {"groups": ...}, set(), id="absent"),
        pytest.param("$.groups", {"groups": None}, set(), id="null"),
        pytest.param("$.realm_access.roles", {"realm_access": {"roles": ["r"]}}, {"corp:r"}, id="Keycloak realm"),
        pytest.param(
            "$.resource_access['my-app'].roles",
            {"resource_access": {"my-app": {"roles": ["r"]}}},
            {"corp:r"},
            id="Keycloak client",
        ),
        pytest.param("$['https://x.example/groups']", {"https://x.example/groups": ["g"]}, {"corp:g"}, id="Auth0"),
        pytest.param("$.groups[*]", {"groups": ["a"]}, {"corp:a"}, id="each"),
        pytest.param(None, {"groups": ["a"]}, set(), id="no path"),
        pytest.param("$.groups", {"groups": [1]}, Reason.TOKEN_CLAIM, id="number"),
        pytest.param("$.groups", {"groups": {"a": 1}}, Reason.TOKEN_CLAIM, id="object"),
        pytest.param("$.groups", {"groups": ["tidegate:admin"]}, Reason.TOKEN_CLAIM, id="reserved"),
        pytest.param("$.groups", {"groups": [""]}, Reason.TOKEN_CLAIM, id="empty name"),
        pytest.param("$.groups", {"groups": [str(n) for n in range(1001)]}, Reason.TOKEN_CLAIM, id="1001"),
        pytest.param("$.groups", {"_claim_names": {"groups": "src1"}}, Reason.GROUPS_OVERAGE, id="Entra overage"),
        pytest.param("$.groups", {"_claim_names": "x"}, Reason.GROUPS_OVERAGE, id="strange overage"),
        pytest.param("$.groups", {"hasgroups": True, "groups": ...}, Reason.GROUPS_OVERAGE, id="implicit overage"),
        pytest.param("$.groups", {"_claim_names": {"other": "src1"}}, {"corp:ml-eng"}, id="overage of another claim"),
    ],
)
def test_groups(path: str | None, payload: dict[str, Any], expected: set[str] | Reason) -> None:
    result = check(sign(claims(**payload)), groups=path)
    assert (result.reason if isinstance(result, Denial) else result.groups) == expected


@pytest.mark.parametrize(("path", "problem"), [("$.groups", False), ("groups", True), ("$.", True), ("", True)])
def test_path_problem(path: str, problem: bool) -> None:
    assert path_problem(path) is problem


# ── key sets ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"keys": {}}', id="keys no list"),
        pytest.param(b'{"keys": []}', id="no keys"),
        pytest.param(b'{"keys": [1, "x", {}]}', id="no key among them"),
        pytest.param(json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]}).encode(), id="symmetric"),
        pytest.param(public(rsa(1024, "weak")), id="RSA 1024"),
        pytest.param(public(rsa(), use="enc"), id="for encryption"),
        pytest.param(public(rsa(), key_ops=["encrypt"]), id="key_ops without verify"),
        pytest.param(public(rsa(), key_ops="verify"), id="key_ops no list"),
        pytest.param(public(rsa(), kid=7), id="kid a number"),
        pytest.param(public(rsa(), n="!!"), id="no number"),
        pytest.param(public(tokens.ec(), crv="P-999"), id="unknown curve"),
        pytest.param(public(rsa(), rsa(2048, "k2"), kid="k1"), id="one kid twice"),
        pytest.param(json.dumps({"keys": [{}] * (KEYS + 1)}).encode(), id="too many"),
        pytest.param(b'{"keys": [], "keys": []}', id="keys twice"),
    ],
)
def test_key_sets_without_a_usable_key(data: bytes) -> None:
    assert import_keys(data) is None


def test_unusable_keys_are_left_out() -> None:
    good, weak = json.loads(public(rsa()))["keys"], json.loads(public(rsa(1024, "weak")))["keys"]
    keys = import_keys(json.dumps({"keys": [*good, *weak, {"kty": "PQ", "kid": "x"}]}).encode())
    assert keys is not None
    assert set(keys.by_kid) == {"k1"}
    assert keys.only is None, "a token without kid could mean a key that was left out"


def test_a_key_whose_private_part_is_published_is_nobodys() -> None:
    assert import_keys(json.dumps({"keys": [rsa().as_dict(private=True)]}).encode()) is None
    both = {"keys": [rsa().as_dict(private=True), rsa(name="k2").as_dict(private=False)]}
    keys = import_keys(json.dumps(both).encode())
    assert keys is not None
    assert set(keys.by_kid) == {"k2"}


def test_a_small_exponent_is_not_taken() -> None:
    for exponent in ("Aw", "AQAC", "AQAAAAAB"):  # 3, 65538, 2**40 + 1
        entry = {**rsa().as_dict(private=False), "e": exponent}
        assert import_keys(json.dumps({"keys": [entry]}).encode()) is None
