"""Every hostile token we know of, with the reason it is refused for; then again with each of our guards switched off.

What comes through where a guard is off is written in ``BEHIND``: nothing else stands behind that guard.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests import tokens
from tests.tokens import ISSUER, NOW, claims, identity, public, rsa, segment, sign
from tidegate.identity import claims as checks
from tidegate.identity.jwks import KeySet, VerificationKey
from tidegate.identity.keys import KeySource
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason


def raw(header: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes, signature: bytes = b"x") -> str:
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, payload)]
    return ".".join([*map(segment, parts), segment(signature)])


def hs256(secret: bytes, **header: Any) -> str:
    """Sign with a shared secret, such as the public key that everybody has."""
    head = {"alg": "HS256", "kid": "k1", "typ": "at+jwt", **header}
    signing = f"{segment(json.dumps(head).encode())}.{segment(json.dumps(claims()).encode())}"
    return f"{signing}.{segment(hmac.digest(secret, signing.encode(), 'sha256'))}"


def pem() -> bytes:
    return bytes(rsa().as_pem(private=False))


def der() -> bytes:
    return bytes(rsa().public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def swapped(**changes: Any) -> str:
    """A good signature under another payload."""
    head, _, signature = sign().split(".")
    return f"{head}.{segment(json.dumps(claims(**changes)).encode())}.{signature}"


def twice(name: str, first: str, second: str, payload: Mapping[str, Any]) -> bytes:
    """A JSON object that has a key twice."""
    rest = json.dumps({key: value for key, value in payload.items() if key != name})[1:-1]
    return f'{{"{name}": {first}, {rest}, "{name}": {second}}}'.encode()


def trailing_bits() -> str:
    """Other bits in the last character of the signature, which no byte of it uses."""
    token = sign()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


def attacker(**header: Any) -> str:
    return sign(header=header, key=rsa(2048, "k1-of-the-attacker"))


def embedded() -> dict[str, Any]:
    return dict(rsa(2048, "k1-of-the-attacker").as_dict(private=False))


HEAD = {"alg": "RS256", "kid": "k1", "typ": "at+jwt"}
EC_HEAD = {"alg": "ES256", "kid": "e1"}
R = Reason

HOSTILE: dict[str, tuple[Callable[[], str], Reason]] = {
    # shape
    "empty parts": (lambda: "..", R.TOKEN_MALFORMED),
    "two parts": (lambda: sign().rpartition(".")[0], R.TOKEN_MALFORMED),
    "four parts": (lambda: sign() + ".x", R.TOKEN_MALFORMED),
    "five parts (JWE)": (lambda: "a.b.c.d.e", R.TOKEN_MALFORMED),
    "no signature": (lambda: sign().rpartition(".")[0] + ".", R.TOKEN_MALFORMED),
    "padding": (lambda: sign() + "==", R.TOKEN_MALFORMED),
    "newline at the end": (lambda: sign() + "\n", R.TOKEN_MALFORMED),
    "space inside": (lambda: sign().replace(".", " .", 1), R.TOKEN_MALFORMED),
    "not ASCII": (lambda: sign().replace(".", ".é", 1), R.TOKEN_MALFORMED),
    "plain base64": (lambda: sign().replace(".", ".+/", 1), R.TOKEN_MALFORMED),
    "NUL": (lambda: sign() + "\x00", R.TOKEN_MALFORMED),
    "too large": (lambda: sign(claims(x="a" * 16_384)), R.TOKEN_TOO_LARGE),
    "a megabyte": (lambda: "a" * 1_000_000, R.TOKEN_TOO_LARGE),
    # JSON
    "header is no JSON": (lambda: raw(b"alg", claims()), R.TOKEN_MALFORMED),
    "header is a list": (lambda: raw(b"[1]", claims()), R.TOKEN_MALFORMED),
    "payload is a list": (lambda: sign(b"[1]"), R.TOKEN_MALFORMED),
    "payload is no UTF-8": (lambda: sign(b'{"iss": "\xff"}'), R.TOKEN_MALFORMED),
    "two sub": (lambda: sign(twice("sub", '"alice"', '"root"', claims())), R.TOKEN_MALFORMED),
    "two iss": (lambda: sign(twice("iss", f'"{ISSUER}"', '"https://x"', claims())), R.TOKEN_MALFORMED),
    "two aud": (lambda: sign(twice("aud", '"other"', '"tidegate"', claims())), R.TOKEN_MALFORMED),
    "two alg": (lambda: sign(header=twice("alg", '"none"', '"RS256"', HEAD)), R.TOKEN_MALFORMED),
    "two kid": (lambda: sign(header=twice("kid", '"k2"', '"k1"', HEAD)), R.TOKEN_MALFORMED),
    "NaN": (lambda: sign(json.dumps(claims(exp=float("nan"))).encode()), R.TOKEN_MALFORMED),
    "Infinity": (lambda: sign(json.dumps(claims(exp=float("inf"))).encode()), R.TOKEN_MALFORMED),
    "1e999": (lambda: sign(json.dumps(claims(exp=1)).replace('"exp": 1', '"exp": 1e999').encode()), R.TOKEN_MALFORMED),
    "deep": (lambda: sign(b'{"a":' * 1500 + b"1" + b"}" * 1500), R.TOKEN_MALFORMED),
    "byte order mark": (lambda: sign(b"\xef\xbb\xbf" + json.dumps(claims()).encode()), R.TOKEN_MALFORMED),
    # issuer
    "no iss": (lambda: sign(claims(iss=...)), R.TOKEN_ISSUER),
    "iss is a list": (lambda: sign(claims(iss=[ISSUER])), R.TOKEN_ISSUER),
    "iss with a slash": (lambda: sign(claims(iss=ISSUER + "/")), R.TOKEN_ISSUER),
    "iss in capitals": (lambda: sign(claims(iss=ISSUER.upper())), R.TOKEN_ISSUER),
    "iss of somebody else": (lambda: sign(claims(iss="https://evil.example.com")), R.TOKEN_ISSUER),
    # algorithm
    "alg none": (lambda: raw({**HEAD, "alg": "none"}, claims()), R.TOKEN_ALG),
    "alg nOnE": (lambda: raw({**HEAD, "alg": "nOnE"}, claims()), R.TOKEN_ALG),
    "no alg": (lambda: sign(header={"alg": ...}), R.TOKEN_ALG),
    "alg is a list": (lambda: sign(header={"alg": ["RS256"]}), R.TOKEN_ALG),
    "alg is null": (lambda: sign(header={"alg": None}), R.TOKEN_ALG),
    "HS256 with the public PEM": (lambda: hs256(pem()), R.TOKEN_ALG),
    "HS256 with the public DER": (lambda: hs256(der()), R.TOKEN_ALG),
    "HS256 with nothing": (lambda: hs256(b""), R.TOKEN_ALG),
    "alg not in the list": (lambda: sign(header={"alg": "RS512"}), R.TOKEN_ALG),
    "ES256 for an RSA key": (lambda: sign(header={"alg": "ES256"}), R.TOKEN_ALG),
    "RS256 for an EC key": (lambda: sign(header={"kid": "e1"}), R.TOKEN_ALG),
    "EdDSA for an RSA key": (lambda: sign(header={"alg": "EdDSA"}), R.TOKEN_ALG),
    # header
    "crit": (lambda: sign(header={"crit": ["exp"]}), R.TOKEN_HEADER),
    "crit is empty": (lambda: sign(header={"crit": []}), R.TOKEN_HEADER),
    "b64 false": (lambda: sign(header={"b64": False, "crit": ["b64"]}), R.TOKEN_HEADER),
    "jku": (lambda: attacker(kid="k1", jku="https://evil.example.com/jwks"), R.TOKEN_HEADER),
    "x5u": (lambda: attacker(kid="k1", x5u="https://evil.example.com/pem"), R.TOKEN_HEADER),
    "jwk": (lambda: attacker(kid="k1", jwk=embedded()), R.TOKEN_HEADER),
    "kid is a number": (lambda: sign(header={"kid": 1}), R.TOKEN_HEADER),
    "kid is a list": (lambda: sign(header={"kid": ["k1"]}), R.TOKEN_HEADER),
    # type
    "logout token": (lambda: sign(header={"typ": "logout+jwt"}), R.TOKEN_TYPE),
    "event token": (lambda: sign(header={"typ": "secevent+jwt"}), R.TOKEN_TYPE),
    "DPoP proof": (lambda: sign(header={"typ": "dpop+jwt"}), R.TOKEN_TYPE),
    "event token in capitals": (lambda: sign(header={"typ": "SECEVENT+JWT"}), R.TOKEN_TYPE),
    "unknown type": (lambda: sign(header={"typ": "vc+sd-jwt"}), R.TOKEN_TYPE),
    "type is a number": (lambda: sign(header={"typ": 1}), R.TOKEN_TYPE),
    "ID token (Cognito)": (lambda: sign(claims(token_use="id")), R.TOKEN_TYPE),
    "ID token (Keycloak)": (lambda: sign(claims(typ="ID")), R.TOKEN_TYPE),
    "refresh token (Keycloak)": (lambda: sign(claims(typ="Refresh")), R.TOKEN_TYPE),
    "ID token with at_hash": (lambda: sign(claims(at_hash="x")), R.TOKEN_TYPE),
    # key
    "unknown kid": (lambda: sign(header={"kid": "k9"}), R.KEY_UNKNOWN),
    "no kid, several keys": (lambda: sign(header={"kid": ...}), R.KEY_UNKNOWN),
    "kid is a path": (lambda: sign(header={"kid": "../../dev/null"}), R.KEY_UNKNOWN),
    "kid is SQL": (lambda: sign(header={"kid": "k1' OR '1'='1"}), R.KEY_UNKNOWN),
    # signature
    "attacker's key": (lambda: attacker(kid="k1"), R.TOKEN_SIGNATURE),
    "x5c of the attacker": (lambda: attacker(kid="k1", x5c=["MIIB"]), R.TOKEN_SIGNATURE),
    "payload exchanged": (lambda: swapped(sub="root"), R.TOKEN_SIGNATURE),
    "header exchanged": (lambda: sign(header={"alg": "PS256"}), R.TOKEN_SIGNATURE),
    "signature of one byte": (lambda: sign().rpartition(".")[0] + ".AA", R.TOKEN_SIGNATURE),
    "signature of zeros": (lambda: f"{sign().rpartition('.')[0]}.{segment(bytes(256))}", R.TOKEN_SIGNATURE),
    "EC signature of zeros": (lambda: raw({**HEAD, **EC_HEAD}, claims(), bytes(64)), R.TOKEN_SIGNATURE),
    "other trailing bits": (trailing_bits, R.TOKEN_SIGNATURE),
    "signature cut": (lambda: sign()[:-4], R.TOKEN_SIGNATURE),
    # claims
    "no aud": (lambda: sign(claims(aud=...)), R.TOKEN_AUDIENCE),
    "aud begins alike": (lambda: sign(claims(aud="tidegate2")), R.TOKEN_AUDIENCE),
    "aud in a text": (lambda: sign(claims(aud="other tidegate")), R.TOKEN_AUDIENCE),
    "aud is an object": (lambda: sign(claims(aud={"tidegate": 1})), R.TOKEN_AUDIENCE),
    "aud is empty": (lambda: sign(claims(aud=[])), R.TOKEN_AUDIENCE),
    "several aud, no azp": (lambda: sign(claims(aud=["tidegate", "other"], client_id="cli")), R.TOKEN_CLIENT),
    "another client": (lambda: sign(claims(azp="evil")), R.TOKEN_CLIENT),
    "azp hides behind client_id": (lambda: sign(claims(azp="evil", client_id="cli")), R.TOKEN_CLIENT),
    "azp is a list": (lambda: sign(claims(azp=["cli"])), R.TOKEN_CLIENT),
    "no exp": (lambda: sign(claims(exp=...)), R.TOKEN_EXPIRED),
    "exp past": (lambda: sign(claims(exp=NOW - 61)), R.TOKEN_EXPIRED),
    "exp is a text": (lambda: sign(claims(exp=str(NOW + 600))), R.TOKEN_EXPIRED),
    "exp is true": (lambda: sign(claims(exp=True)), R.TOKEN_EXPIRED),
    "exp is huge": (lambda: sign(claims(exp=10**400)), R.TOKEN_EXPIRED),
    "exp is a list": (lambda: sign(claims(exp=[NOW + 600])), R.TOKEN_EXPIRED),
    "nbf ahead": (lambda: sign(claims(nbf=NOW + 61)), R.TOKEN_NOT_YET),
    "iat ahead": (lambda: sign(claims(iat=NOW + 61)), R.TOKEN_NOT_YET),
    "auth_time ahead": (lambda: sign(claims(auth_time=NOW + 61)), R.TOKEN_NOT_YET),
    "nbf is a text": (lambda: sign(claims(nbf="0")), R.TOKEN_NOT_YET),
    "lives too long": (lambda: sign(claims(exp=NOW + 86_401)), R.TOKEN_LIFETIME),
    "no sub": (lambda: sign(claims(sub=...)), R.TOKEN_CLAIM),
    "sub is a number": (lambda: sign(claims(sub=0)), R.TOKEN_CLAIM),
    "sub is ours": (lambda: sign(claims(sub="TideGate:admin")), R.TOKEN_CLAIM),
    "sub with a line": (lambda: sign(claims(sub="alice\nroot")), R.TOKEN_CLAIM),
    "sub that reads backwards": (lambda: sign(claims(sub="alice\u202eecila")), R.TOKEN_CLAIM),
    "jti is a list": (lambda: sign(claims(jti=["t1"])), R.TOKEN_CLAIM),
    "group is ours": (lambda: sign(claims(groups=["tidegate:admins"])), R.TOKEN_CLAIM),
    "groups is an object": (lambda: sign(claims(groups={"ml-eng": True})), R.TOKEN_CLAIM),
    "group is a list": (lambda: sign(claims(groups=[["ml-eng"]])), R.TOKEN_CLAIM),
    "too many groups": (lambda: sign(claims(groups=[str(n) for n in range(1001)])), R.TOKEN_CLAIM),
    "another tenant": (lambda: sign(claims(tid="t2")), R.TOKEN_TENANT),
    "no tenant": (lambda: sign(claims(tid=...)), R.TOKEN_TENANT),
    "tenant begins alike": (lambda: sign(claims(tid="t1x")), R.TOKEN_TENANT),
    "tenant in an object": (lambda: sign(claims(tid={"t1": 1})), R.TOKEN_TENANT),
    "old login": (lambda: sign(claims(auth_time=NOW - 3661)), R.TOKEN_AGE),
    "no login": (lambda: sign(claims(iat=...)), R.TOKEN_AGE),
    "overage": (lambda: sign(claims(_claim_names={"groups": "src1"})), R.GROUPS_OVERAGE),
    "overage beside groups": (lambda: sign(claims(groups=["ml-eng"], hasgroups=True)), R.GROUPS_OVERAGE),
    # bound
    "DPoP token as bearer": (lambda: sign(claims(cnf={"jkt": "A" * 43})), R.TOKEN_BOUND),
    "certificate token as bearer": (lambda: sign(claims(cnf={"x5t#S256": "A" * 43})), R.TOKEN_BOUND),
    "bound to what nobody knows": (lambda: sign(claims(cnf={"kid": "x"})), R.TOKEN_BOUND),
    "bound twice, once unknown": (lambda: sign(claims(cnf={"jkt": "A" * 43, "jku": "x"})), R.TOKEN_BOUND),
    "cnf is empty": (lambda: sign(claims(cnf={})), R.TOKEN_BOUND),
    "cnf is null": (lambda: sign(claims(cnf=None)), R.TOKEN_BOUND),
    # taken back
    "revoked": (lambda: sign(claims(jti="revoked")), R.TOKEN_REVOKED),
    # no token of ours
    "static, unknown": (lambda: "tg_" + "A" * 43, R.TOKEN_UNKNOWN),
}  # fmt: skip

WHO = {
    "allowed_clients": frozenset({"cli"}),
    "claims": (("tid", frozenset({"t1"})),),
    "max_age": 3600.0,
    "algorithms": frozenset({"RS256", "PS256", "ES256", "EdDSA"}),
}
_CLAIMS = tokens.claims


@pytest.fixture(autouse=True)
def good_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the policy below asks for is in every token, unless the case is about it."""

    def full(**changes: Any) -> dict[str, Any]:
        return _CLAIMS(**{"tid": "t1", "azp": "cli" if "client_id" not in changes else ..., **changes})

    monkeypatch.setitem(globals(), "claims", full)
    monkeypatch.setattr(tokens, "claims", full)


def gate(**changes: Any) -> Verifier:
    who = identity(**{**WHO, **changes})
    algorithms = public(rsa(), tokens.ec(), tokens.okp())
    source = KeySource(who, lambda _: algorithms)
    return Verifier([who], [source], lambda issuer, jti, subject, issued: jti == "revoked")


async def ask(verifier: Verifier, token: str) -> Reason | None:
    answer = await verifier.identify(token, NOW)
    assert answer == verifier.cached(token, NOW) or verifier.cached(token, NOW) is None
    return answer.reason if isinstance(answer, Denial) else None


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 60
    elsewhere = (R.TOKEN_PROOF, R.TOKEN_INACTIVE)  # test_bound_tokens, test_questions
    own = {each for each in Reason if each.value.startswith(("token_", "key_")) and each not in elsewhere}
    assert {reason for _, reason in HOSTILE.values()} >= own


async def test_a_good_one_for_comparison() -> None:
    assert isinstance(await gate().identify(sign(), NOW), Caller)


@pytest.mark.parametrize("name", list(HOSTILE))
async def test_hostile(name: str) -> None:
    build, reason = HOSTILE[name]
    assert await ask(gate(), build()) is reason


# ── with a guard off ─────────────────────────────────────────────────────────


def lax(data: bytes) -> Any:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def lax_segment(part: str) -> Any:
    try:
        return lax(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return None


ANY_ALGORITHM = frozenset({"none", "nOnE", "HS256", "RS512", "RS256", "PS256", "ES256", "EdDSA"})
Patch = Callable[[pytest.MonkeyPatch], None]
GUARDS: dict[str, Patch] = {
    "size": lambda m: m.setattr(checks, "TOKEN_BYTES", 10**9),
    "shape": lambda m: m.setattr(checks, "SHAPE", re.compile(r"[^.]*\.[^.]*\.[^.]*", re.DOTALL)),
    "strict header and peeked payload": lambda m: m.setattr(checks, "json_segment", lax_segment),
    "strict signed payload": lambda m: m.setattr(checks, "json_object", lax),
    "list of algorithms": lambda m: m.setattr(checks, "ALGORITHMS", ANY_ALGORITHM),
    "header fields": lambda m: m.setattr(checks, "REFUSED_HEADERS", frozenset()),
    "types": lambda m: m.setattr(checks, "REFUSED_TYPES", frozenset()),
    "key by kid": lambda m: m.setattr(KeySet, "key", lambda self, kid: self.by_kid["k1"]),
    "key fits algorithm": lambda m: m.setattr(VerificationKey, "serves", lambda self, algorithm: True),
    "names": lambda m: m.setattr(checks, "is_name", lambda text: True),
}
WIDE = {
    "list of algorithms": {"algorithms": ANY_ALGORITHM},
    "types": {"types": frozenset({"at+jwt", "secevent+jwt", "logout+jwt", "dpop+jwt"})},
}  # fmt: skip
BEHIND: dict[str, set[str]] = {
    # joserfc has the same limit; what has no dots is no token
    "size": set(),
    # joserfc decodes strictly by itself
    "shape": set(),
    # the signed payload is read strictly once more; of the header joserfc takes the last of two, as we then do
    "strict header and peeked payload": {"two alg", "two kid"},
    # the same payload was read strictly before
    "strict signed payload": set(),
    # the key says what it can serve; joserfc knows only the algorithms it is told
    "list of algorithms": set(),
    # joserfc refuses what crit names, and never looks at a key in a header: the issuer's key refuses the signature
    "header fields": {"crit is empty"},
    # nothing: a token of another purpose that has our audience, and that the policy names, is taken
    "types": {"logout token", "event token", "DPoP proof", "event token in capitals"},
    # the signature: only tokens that are signed by the very key come through, whatever name they gave it
    "key by kid": {"unknown kid", "no kid, several keys", "kid is a path", "kid is SQL", "RS256 for an EC key"},
    # joserfc checks the type of the key
    "key fits algorithm": set(),
    # nothing for subjects; groups have their own look
    "names": {"sub is ours", "sub with a line", "sub that reads backwards"},
}


@pytest.mark.parametrize("guard", list(GUARDS))
async def test_the_next_guard_holds(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = {name: build() for name, (build, _) in HOSTILE.items()}
    GUARDS[guard](monkeypatch)
    verifier = gate(**WIDE.get(guard, {}))
    through = {name for name, token in built.items() if isinstance(await verifier.identify(token, NOW), Caller)}
    assert through == BEHIND[guard]
    changed = {name for name, (_, reason) in HOSTILE.items() if await ask(verifier, built[name]) is not reason}
    assert changed or guard == "strict signed payload", "the guard was not switched off"  # that one is behind another


async def test_without_the_signature_nothing_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one guard behind which nothing can stand, shown so that nobody believes otherwise."""

    def unsigned(token: bytes, key: object, registry: object) -> Any:
        payload = token.split(b".")[1]

        class Signed:
            pass

        found = Signed()
        found.payload = base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))  # type: ignore[attr-defined]
        return found

    token = attacker(kid="k1")
    monkeypatch.setattr(checks.jws, "deserialize_compact", unsigned)
    assert isinstance(await gate().identify(token, NOW), Caller)
