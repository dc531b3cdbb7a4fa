"""What a provider is asked about a caller: opaque tokens (RFC 7662), groups that a token left out (userinfo)."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.tokens import NOW, claims, identity, public, rsa, sign
from tidegate.identity import questions as module
from tidegate.identity.keys import KeySource
from tidegate.identity.questions import Questions
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import Introspection, OidcIdentity, OnOverage

OPAQUE = "opaque-Token_1~2.3+4/5=="
SECRET = "s:cret with space & more"


class Site:
    """A provider on loopback: discovery, introspection and userinfo; ``answers`` maps a path to status and body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], str]] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.most = self._now = 0
        self._lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        document = {
            "issuer": self.url,
            "introspection_endpoint": f"{self.url}/introspect",
            "userinfo_endpoint": f"{self.url}/userinfo",
        }
        self.answers["/.well-known/openid-configuration"] = 200, json.dumps(document).encode()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length", "0"))).decode()
        with self._lock:
            self.asked.append((handler.path, {k.lower(): v for k, v in handler.headers.items()}, body))
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.delay)
        with self._lock:
            self._now -= 1
        status, data = self.answers.get(handler.path, (404, b""))
        handler.send_response(status)
        for name, value in {"content-length": str(len(data)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def says(self, path: str, said: Any, status: int = 200) -> None:
        self.answers[path] = status, said if isinstance(said, bytes) else json.dumps(said).encode()

    def questions(self, path: str) -> int:
        return len([each for each in self.asked if each[0] == path])


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(5)


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return f"${{file:{path}}}"


def who(site: Site, secret: str = "", **changes: Any) -> OidcIdentity:
    asked = Introspection("the gate", secret, **changes.pop("introspection", {})) if secret else None
    url = f"{site.url}/.well-known/openid-configuration"
    return identity(issuer=site.url, discovery_url=url, insecure_http=True, introspection=asked, **changes)


def gate(*identities: OidcIdentity) -> Verifier:
    return Verifier(identities, [KeySource(each, lambda _: public(rsa())) for each in identities])


def good(site: Site, **changes: Any) -> dict[str, Any]:
    return claims(**{"iss": site.url, "active": True, **changes})


def reason(answer: Caller | Denial | None) -> Reason | None:
    return answer.reason if isinstance(answer, Denial) else None


# ── introspection ────────────────────────────────────────────────────────────


async def test_an_opaque_token(site: Site, secret: str) -> None:
    site.says("/introspect", good(site))
    verifier = gate(who(site, secret))
    answer = await verifier.identify(OPAQUE, NOW)
    assert isinstance(answer, Caller)
    assert (answer.subject, answer.groups) == ("alice", frozenset({"corp:ml-eng"}))
    path, headers, body = site.asked[-1]
    assert (path, urllib.parse.parse_qs(body)) == (
        "/introspect",
        {"token": [OPAQUE], "token_type_hint": ["access_token"]},
    )
    name, _, value = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode().partition(":")
    assert (urllib.parse.unquote_plus(name), urllib.parse.unquote_plus(value)) == ("the gate", SECRET)
    assert verifier.cached(OPAQUE, NOW + 59) == answer
    assert verifier.cached(OPAQUE, NOW + 60) is None, "a minute"
    assert site.questions("/introspect") == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"active": False}, Reason.TOKEN_INACTIVE),
        ({"active": "true"}, Reason.TOKEN_INACTIVE),
        ({"active": 1}, Reason.TOKEN_INACTIVE),
        ({"active": ...}, Reason.TOKEN_INACTIVE),
        ({"iss": "https://other.example.com"}, Reason.TOKEN_ISSUER),
        ({"iss": ...}, None),
        ({"aud": "other"}, Reason.TOKEN_AUDIENCE),
        ({"aud": ...}, Reason.TOKEN_AUDIENCE),
        ({"exp": NOW - 61}, Reason.TOKEN_EXPIRED),
        ({"exp": ...}, Reason.TOKEN_EXPIRED),
        ({"nbf": NOW + 61}, Reason.TOKEN_NOT_YET),
        ({"sub": ...}, Reason.TOKEN_CLAIM),
        ({"sub": ..., "client_id": 7}, Reason.TOKEN_CLIENT),
        ({"sub": None, "client_id": "alice"}, Reason.TOKEN_CLAIM),
        ({"sub": ..., "client_id": "svc-batch"}, None),
        ({"token_type": "Bearer"}, None),
        ({"token_type": "refresh_token"}, Reason.TOKEN_TYPE),
        ({"token_type": 1}, Reason.TOKEN_TYPE),
        ({"typ": "Refresh"}, Reason.TOKEN_TYPE),
        ({"cnf": {"jkt": "A" * 43}}, Reason.TOKEN_BOUND),
        ({"groups": [1]}, Reason.TOKEN_CLAIM),
    ],
)
async def test_what_the_provider_says(site: Site, secret: str, said: dict[str, Any], expected: Reason | None) -> None:
    site.says("/introspect", good(site, **said))
    verifier = gate(who(site, secret))
    answer = await verifier.identify(OPAQUE, NOW)
    assert reason(answer) is expected
    assert verifier.cached(OPAQUE, NOW + 9.9) == answer, "a no is remembered, too"
    assert isinstance(answer, Caller) or verifier.cached(OPAQUE, NOW + 10) is None or expected is Reason.TOKEN_BOUND


@pytest.mark.parametrize("said", [b"", b"no", b"[true]", b'{"active": true, "active": true}'])
async def test_no_answer_of_its_kind_is_a_no(site: Site, secret: str, said: bytes) -> None:
    site.says("/introspect", said)
    assert reason(await gate(who(site, secret)).identify(OPAQUE, NOW)) is Reason.TOKEN_INACTIVE


async def test_a_yes_never_outlives_its_token(site: Site, secret: str) -> None:
    site.says("/introspect", good(site, exp=NOW + 5))
    verifier = gate(who(site, secret, leeway=1.0))
    assert isinstance(await verifier.identify(OPAQUE, NOW), Caller)
    assert isinstance(verifier.cached(OPAQUE, NOW + 5.9), Caller)
    assert verifier.cached(OPAQUE, NOW + 6) is None


async def test_many_with_one_token_ask_once(site: Site, secret: str) -> None:
    site.says("/introspect", good(site))
    site.delay = 0.1
    verifier = gate(who(site, secret))
    answers = await asyncio.gather(*(verifier.identify(OPAQUE, NOW) for _ in range(100)))
    assert all(isinstance(each, Caller) for each in answers)
    assert site.questions("/introspect") == 1


async def test_who_gives_up_does_not_end_the_question_of_others(site: Site, secret: str) -> None:
    site.says("/introspect", good(site))
    site.delay = 0.2
    verifier = gate(who(site, secret))
    first = asyncio.create_task(verifier.identify(OPAQUE, NOW))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(verifier.identify(OPAQUE, NOW))
    await asyncio.sleep(0)
    first.cancel()
    assert isinstance(await second, Caller)
    assert site.questions("/introspect") == 1


async def test_a_flood_of_tokens_is_a_few_questions_at_a_time(
    site: Site, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 20)
    site.says("/introspect", {"active": False})
    site.delay = 0.02
    verifier = gate(who(site, secret))
    answers = await asyncio.gather(*(verifier.identify(f"opaque-{n}", NOW) for n in range(60)))
    told = [reason(each) for each in answers]
    assert told.count(Reason.TOKEN_INACTIVE) == 20
    assert told.count(Reason.IDP_UNAVAILABLE) == 40
    assert site.most <= module.AT_ONCE


@pytest.mark.parametrize("status", [302, 401, 500])
async def test_a_provider_that_does_not_answer_is_left_alone(
    site: Site, secret: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    site.says("/introspect", b"", status)
    site.headers = {"location": f"{site.url}/elsewhere"}
    clock = [1000.0]
    verifier = gate(who(site, secret))
    asked = verifier._questions["corp"] = Questions(who(site, secret), lambda: clock[0])
    answer = await verifier.identify(OPAQUE, NOW)
    assert isinstance(answer, Denial)
    assert (answer.reason, answer.status) == (Reason.IDP_UNAVAILABLE, 503)
    assert reason(await verifier.identify("another", NOW)) is Reason.IDP_UNAVAILABLE
    assert (asked.asked, site.questions("/elsewhere")) == (1, 0)
    assert OPAQUE not in caplog.text
    assert SECRET not in caplog.text
    clock[0] += 1.0
    site.headers = {}
    site.says("/introspect", good(site))
    assert isinstance(await verifier.identify(OPAQUE, NOW), Caller), "by itself, and nothing was remembered"


async def test_waits_double_up_to_their_most(site: Site, secret: str) -> None:
    site.says("/introspect", b"", 500)
    clock = [1000.0]
    asked = Questions(who(site, secret), lambda: clock[0])
    waits = []
    for _ in range(8):
        assert await asked.introspect(OPAQUE) is None
        waits.append(asked._next_try - clock[0])
        clock[0] = asked._next_try
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


async def test_a_secret_that_comes_later(site: Site, tmp_path: Path) -> None:
    site.says("/introspect", good(site))
    path = tmp_path / "later"
    clock = [1000.0]
    asked = Questions(who(site, f"${{file:{path}}}"), lambda: clock[0])
    assert await asked.introspect(OPAQUE) is None
    path.write_text("x")
    path.chmod(0o600)
    clock[0] += 1.0
    assert await asked.introspect(OPAQUE) is not None


async def test_an_endpoint_of_the_policy_needs_no_discovery(site: Site, secret: str) -> None:
    site.says("/mine", good(site))
    verifier = gate(who(site, secret, introspection={"endpoint": f"{site.url}/mine"}))
    assert isinstance(await verifier.identify(OPAQUE, NOW), Caller)
    assert [each[0] for each in site.asked] == ["/mine"]


async def test_an_endpoint_that_is_not_named(site: Site, secret: str) -> None:
    site.says("/.well-known/openid-configuration", {"issuer": site.url})
    assert reason(await gate(who(site, secret)).identify(OPAQUE, NOW)) is Reason.IDP_UNAVAILABLE


@pytest.mark.parametrize("text", ["opaque token", "é" * 10, "a" * 20_000, "a\nb", ""])
async def test_what_is_no_token_is_not_asked_about(site: Site, secret: str, text: str) -> None:
    answer = await gate(who(site, secret)).identify(text, NOW)
    assert reason(answer) in {Reason.TOKEN_MALFORMED, Reason.TOKEN_TOO_LARGE}
    assert site.asked == []


async def test_a_signed_token_is_not_asked_about(site: Site, secret: str) -> None:
    verifier = gate(who(site, secret))
    assert isinstance(await verifier.identify(sign(claims(iss=site.url)), NOW), Caller)
    assert reason(await verifier.identify(sign(claims(iss="https://x")), NOW)) is Reason.TOKEN_ISSUER
    assert site.asked == []


async def test_without_introspection_an_opaque_token_is_malformed(site: Site) -> None:
    assert reason(await gate(who(site)).identify(OPAQUE, NOW)) is Reason.TOKEN_MALFORMED


async def test_a_token_is_shown_to_its_own_provider_alone(site: Site, secret: str) -> None:
    site.says("/one", {"active": False})
    site.says("/two", {"active": False})
    site.says("/rest", {"active": False})

    def one(name: str, prefix: str) -> OidcIdentity:
        issuer = f"{site.url}/{name}"
        asked = Introspection("gate", secret, f"{site.url}/{name}", prefix)
        return identity(name=name, issuer=issuer, insecure_http=True, introspection=asked)

    verifier = gate(one("rest", ""), one("one", "a_"), one("two", "a_b_"))
    for token in ("a_1", "a_b_2", "c_3"):
        await verifier.identify(token, NOW)
    shown = [(path, urllib.parse.parse_qs(body)["token"]) for path, _, body in site.asked]
    assert shown == [("/one", ["a_1"]), ("/two", ["a_b_2"]), ("/rest", ["c_3"])]


# ── groups that were left out ────────────────────────────────────────────────

TOO_MANY = {"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://evil.example.com/"}}}


def lacking(site: Site, **changes: Any) -> str:
    return sign(claims(iss=site.url, groups=..., **{**TOO_MANY, **changes}))


async def test_groups_from_userinfo(site: Site) -> None:
    site.says("/userinfo", {"sub": "alice", "groups": ["a", "b"]})
    site.delay = 0.05
    verifier = gate(who(site, on_overage=OnOverage.USERINFO))
    token = lacking(site)
    answers = await asyncio.gather(*(verifier.identify(token, NOW) for _ in range(50)))
    assert {answer.groups for answer in answers if isinstance(answer, Caller)} == {frozenset({"corp:a", "corp:b"})}
    assert len(answers) == 50
    assert site.questions("/userinfo") == 1
    assert site.asked[-1][1]["authorization"] == f"Bearer {token}"
    assert verifier.cached(token, NOW + 299) == answers[0]


@pytest.mark.parametrize(
    "said",
    [
        {"sub": "bob", "groups": ["a"]},
        {"groups": ["a"]},
        {"sub": "alice"},
        {"sub": "alice", "groups": []},
        {"sub": "alice", "groups": ["a"], "hasgroups": True},
        {"sub": "alice", **TOO_MANY},
        {"sub": "alice", "groups": ["tidegate:admin"]},
        b"eyJ.a.b",
    ],
    ids=["somebody else", "nobody", "none", "empty", "too many", "too many, elsewhere", "ours", "a JWT"],
)
async def test_userinfo_without_groups(site: Site, said: Any) -> None:
    site.says("/userinfo", said)
    answer = await gate(who(site, on_overage=OnOverage.USERINFO)).identify(lacking(site), NOW)
    assert isinstance(answer, Denial)
    assert (answer.reason, answer.status) == (Reason.GROUPS_OVERAGE, 403)


async def test_userinfo_that_cannot_be_asked_is_no_caller_without_groups(site: Site) -> None:
    site.says("/userinfo", b"", 500)
    answer = await gate(who(site, on_overage=OnOverage.USERINFO)).identify(lacking(site), NOW)
    assert isinstance(answer, Denial)
    assert (answer.reason, answer.status) == (Reason.IDP_UNAVAILABLE, 503)


async def test_an_opaque_token_without_groups(site: Site, secret: str) -> None:
    site.says("/introspect", good(site, groups=..., **TOO_MANY))
    site.says("/userinfo", {"sub": "alice", "groups": ["a"]})
    verifier = gate(who(site, secret, on_overage=OnOverage.USERINFO))
    answer = await verifier.identify(OPAQUE, NOW)
    assert isinstance(answer, Caller)
    assert answer.groups == {"corp:a"}
    assert verifier.cached(OPAQUE, NOW + 60) is None


async def test_groups_of_a_list(site: Site) -> None:
    listed = {"alice": ("ml-eng",)}
    verifier = gate(who(site, on_overage=OnOverage.STATIC, overage_groups=listed, group_map={"x": "y"}))
    answer = await verifier.identify(lacking(site), NOW)
    assert isinstance(answer, Caller)
    assert answer.groups == {"corp:ml-eng"}
    assert reason(await verifier.identify(lacking(site, sub="bob"), NOW)) is Reason.GROUPS_OVERAGE
    plain = await verifier.identify(sign(claims(iss=site.url, groups=["x", "z"])), NOW)
    assert isinstance(plain, Caller)
    assert plain.groups == {"corp:y"}, "those of a token are still its own"
