"""Measure what it costs to know a caller: one core, no network, the best of several rounds.

Each line has a limit; the program ends with 1 where one is passed. The first verification of a token is measured
with a new token each time, everything the gate does for it included; a token that is remembered is asked about as the
data path does, with a list of revoked tokens to look into.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import base64
import functools
import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tidegate.identity.keys import KeySource
from tidegate.identity.proof import Shown
from tidegate.identity.verifier import Proofs, Revoked, Verifier
from tidegate.model import Caller, Head
from tidegate.policy.policy import OidcIdentity
from tidegate.state.control import Control
from tidegate.state.revocations import Revocations

ISSUER, GATE, PATH = "https://login.example.com", "https://gate.example.com", "/openai/v1/chat/completions"
ROUNDS = 25
RSA = RSAKey.generate_key(2048, {"kid": "k1"})
REVOKED = 1_000
CACHED, FIRST = 5e-6, 5e-4  # seconds


@dataclass(frozen=True)
class Line:
    """One thing to measure: ``make`` returns the work of one round and how many times it does it."""

    name: str
    limit: float | None
    make: Callable[[], tuple[Callable[[], None], int]]


@dataclass(frozen=True)
class Measured:
    name: str
    seconds: float
    limit: float | None

    @property
    def good(self) -> bool:
        return self.limit is None or self.seconds <= self.limit


def identity() -> OidcIdentity:
    return OidcIdentity(
        name="corp", issuer=ISSUER, audiences=frozenset({"tidegate"}), groups="$.groups",
        algorithms=frozenset({"RS256", "ES256", "EdDSA"}), allowed_clients=None,
        discovery_url=f"{ISSUER}/.well-known/openid-configuration", max_lifetime=86400.0, leeway=60.0,
        types=frozenset({"at+jwt"}), insecure_http=False, addresses=(GATE,),
    )  # fmt: skip


class Issuer:
    """Signs tokens, no two alike."""

    def __init__(self, key: Any, algorithm: str) -> None:
        self.key, self.algorithm = key, algorithm
        self.count = 0

    def verifier(self, revoked: Revoked | None = None) -> Verifier:
        keys = json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()
        who = identity()
        return Verifier([who], [KeySource(who, lambda _: keys)], revoked)

    def token(self, **more: Any) -> str:
        self.count += 1
        said = {
            "iss": ISSUER, "aud": "tidegate", "sub": "alice", "exp": time.time() + 600, "iat": time.time(),
            "jti": f"t{self.count}", "groups": [f"group-{number}" for number in range(20)], "client_id": "cli", **more,
        }  # fmt: skip
        header = {"alg": self.algorithm, "kid": self.key.kid, "typ": "at+jwt"}
        return jws.serialize_compact(header, json.dumps(said).encode(), self.key, algorithms=[self.algorithm])


def tokens(key: Any, algorithm: str) -> Callable[[], tuple[Callable[[], None], int]]:
    def make() -> tuple[Callable[[], None], int]:
        issuer = Issuer(key, algorithm)
        verifier = issuer.verifier()
        made = [issuer.token() for _ in range(20)]
        asyncio.run(verifier.identify(issuer.token(), time.time()))  # the keys are there

        def work() -> None:
            async def all_of_them() -> None:
                for each in made:
                    assert isinstance(await verifier.identify(each, time.time()), Caller)

            asyncio.run(all_of_them())

        return work, len(made)

    return make


@functools.cache
def revoked() -> Revocations:
    """Open a control store in which tokens and subjects were revoked, as the gate does; it goes with the process."""
    folder = tempfile.TemporaryDirectory()
    control = Control(Path(folder.name) / "control.db")
    control.start()
    found = Revocations(control)
    found.start()
    kept = [found.revoke_token(ISSUER, f"revoked-{number}", made_by="bench") for number in range(REVOKED)]
    kept += [found.revoke_subject(ISSUER, f"subject-{number}", made_by="bench") for number in range(10)]
    for each in kept:
        each.result(60)
    atexit.register(lambda: (found.close(), control.close(), folder.cleanup()))
    return found


@functools.cache
def remembered() -> tuple[Callable[[], None], int]:
    issuer = Issuer(RSA, "RS256")
    verifier = issuer.verifier(revoked().covers)
    made = [issuer.token() for _ in range(100)]
    shown = Shown(False, Head("POST", PATH, (), None))
    for each in made:
        asyncio.run(verifier.identify(each, time.time()))

    def work() -> None:
        for _ in range(5):
            for each in made:
                assert verifier.cached(each, time.time(), shown) is not None

    return work, 5 * len(made)


def bound() -> tuple[Callable[[], None], int]:
    issuer, key = Issuer(RSA, "RS256"), ECKey.generate_key("P-256")
    verifier = issuer.verifier()
    token = issuer.token(cnf={"jkt": key.thumbprint()})
    digest = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
    header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.as_dict(private=False)}

    def shown(number: int) -> Shown:
        said = {"htm": "POST", "htu": GATE + PATH, "iat": time.time(), "jti": f"p{number}", "ath": digest}
        proof = jws.serialize_compact(header, json.dumps(said).encode(), key, algorithms=["ES256"])
        return Shown(True, Head("POST", PATH, (("dpop", proof),), None))

    made = [shown(number) for number in range(20)]
    asyncio.run(verifier.identify(token, time.time()))

    def work() -> None:
        for each in made:
            assert isinstance(verifier.cached(token, time.time(), each), Caller)
        verifier.proofs = Proofs()

    return work, len(made)


LINES: list[Line] = [
    Line("a token that is remembered, 1,000 revoked", CACHED, remembered),
    Line("first verification, RS256 (2048 bits)", FIRST, tokens(RSA, "RS256")),
    Line("first verification, ES256", FIRST, tokens(ECKey.generate_key("P-256", {"kid": "k1"}), "ES256")),
    Line("first verification, EdDSA", FIRST, tokens(OKPKey.generate_key("Ed25519", {"kid": "k1"}), "EdDSA")),
    Line("a remembered token with its DPoP proof, ES256", None, bound),
]
"""What is measured, in the order in which it is printed. Another part adds its own line here."""


def measure(lines: Sequence[Line], rounds: int = ROUNDS) -> Iterator[Measured]:
    for line in lines:
        taken = []
        for _ in range(rounds):
            work, times = line.make()
            begin = time.perf_counter()
            work()
            taken.append((time.perf_counter() - begin) / times)
        yield Measured(line.name, min(taken), line.limit)


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench --identity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="for machines: seconds")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the best of so many (default %(default)s)")
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")  # joserfc warns of the name EdDSA, which providers use
    found = list(measure(LINES, options.rounds))
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    else:
        for each in found:
            limit = "" if each.limit is None else f"   limit {each.limit * 1e6:.0f} us{'' if each.good else ': OVER'}"
            print(f"{each.name:<48}{each.seconds * 1e6:>9.1f} us{limit}")
    sys.exit(0 if all(each.good for each in found) else 1)
