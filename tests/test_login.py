"""The parts of ``tidegate login`` that a provider of good will does not try: hostile answers, slow answers, races."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tidegate.login import browser, device, provider
from tidegate.login.provider import Client, Endpoints, Tokens
from tidegate.login.store import Login, Store
from tidegate.login.web import LoginError, Unreachable, get, is_allowed, post

NOW = 1_800_000_000.0


class Idp(ThreadingHTTPServer):
    """Answers each path with what the test put there: a list is used up, one answer a request."""

    answers: dict[str, Any]
    asked: list[tuple[str, dict[str, list[str]]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def client(self) -> Client:
        return Client(self.url, "cli", "openid")


class _Answers(BaseHTTPRequestHandler):
    server: Idp

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0"))).decode()
        self.server.asked.append((self.path, parse_qs(body)))
        found = self.server.answers.get(self.path, (404, {}))
        status, value = found.pop(0) if isinstance(found, list) else found
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def idp() -> Iterator[Idp]:
    server = Idp(("127.0.0.1", 0), _Answers)
    server.answers, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


GOOD = {"access_token": "tok", "token_type": "Bearer", "expires_in": 600}


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("https://login.example.com/x", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://[::1]/x", True),
        ("http://login.example.com/x", False),
        ("https://user@login.example.com/", False),
        ("https://a b/", False),
        ("https://a/\x1b[2J", False),
        ("https://\u202ea/", False),
        ("javascript:alert(1)", False),
        ("file:///etc/passwd", False),
        ("https://a:port/", False),
        ("", False),
    ],
)
def test_which_addresses_are_asked_or_shown(address: str, allowed: bool) -> None:
    assert is_allowed(address) is allowed


def test_no_redirect_is_followed_and_a_form_goes_nowhere_else(idp: Idp) -> None:
    idp.answers = {"/token": (302, {}), "/elsewhere": (200, GOOD)}
    assert post(f"{idp.url}/token", {"code": "x"}).status == 302
    assert [path for path, _ in idp.asked] == ["/token"]


def test_what_is_no_answer(idp: Idp) -> None:
    idp.answers = {
        "/large": (200, b'{"a": "' + b"x" * 600_000 + b'"}'),
        "/list": (200, []),
        "/deep": (200, b"[" * 100_000),
        "/text": (200, b"hello"),
        "/away": (503, b"later"),
    }
    for path in ("/large", "/list", "/deep", "/text"):
        assert get(idp.url + path).body == {}
    with pytest.raises(Unreachable):
        get(f"{idp.url}/away")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"issuer": "https://other", "token_endpoint": "https://x/t"}, "names another issuer"),
        ({"token_endpoint": "https://x/t"}, "names another issuer"),
        ({}, "publishes no configuration"),
    ],
)
def test_a_provider_that_says_who_it_is_not(idp: Idp, document: dict[str, str], message: str) -> None:
    idp.answers = {"/.well-known/openid-configuration": (200, document)}
    with pytest.raises(LoginError, match=message):
        provider.discover(idp.url)


def test_discovery_as_rfc_8414_has_it(idp: Idp) -> None:
    """How an authorization server that is no OpenID provider describes itself: the token service of the gate."""
    document = {"issuer": idp.url, "token_endpoint": f"{idp.url}/token", "device_authorization_endpoint": "https://x/d"}
    idp.answers = {"/.well-known/oauth-authorization-server": (200, document)}
    assert provider.discover(idp.url) == Endpoints(f"{idp.url}/token", None, "https://x/d", None)


@pytest.mark.parametrize(
    "answer",
    [
        {**GOOD, "access_token": "a b"},
        {**GOOD, "access_token": "a\x1b[2J"},
        {**GOOD, "access_token": "x" * 20_000},
        {**GOOD, "access_token": "é"},
        {**GOOD, "token_type": "DPoP"},
        {**GOOD, "token_type": None},
        {**GOOD, "access_token": ["a"]},
    ],
    ids=range(7),
)
def test_a_token_that_is_none(idp: Idp, answer: dict[str, Any]) -> None:
    idp.answers = {"/token": (200, answer)}
    with pytest.raises(LoginError):
        provider.ask_for_tokens(idp.client, f"{idp.url}/token", {}, lambda: NOW)


def jwt(**claims: Any) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.x"


@pytest.mark.parametrize(
    ("answer", "expires"),
    [
        ({**GOOD, "expires_in": "300"}, NOW + 300),
        ({**GOOD, "expires_in": None, "access_token": jwt(exp=NOW + 42)}, NOW + 42),
        ({**GOOD, "expires_in": -1}, NOW + provider.UNKNOWN_LIFE),
        ({**GOOD, "expires_in": True, "access_token": jwt(exp="soon")}, NOW + provider.UNKNOWN_LIFE),
    ],
)
def test_until_when_a_token_is_good(idp: Idp, answer: dict[str, Any], expires: float) -> None:
    idp.answers = {"/token": (200, answer)}
    assert provider.ask_for_tokens(idp.client, f"{idp.url}/token", {}, lambda: NOW).expires == expires


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = NOW, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


CODE = device.Code("https://x/device", "ABCD", None, "secret", 5.0, 600.0)


def test_polling_slows_down_when_told_to_and_when_nobody_answers(idp: Idp) -> None:
    pending, slower = (400, {"error": "authorization_pending"}), (400, {"error": "slow_down"})
    idp.answers = {"/token": [pending, slower, pending, (503, b"x"), (200, GOOD)]}
    clock = Clock()
    found = device.wait(idp.client, f"{idp.url}/token", CODE, clock=clock, sleep=clock.sleep)
    assert found.access == "tok"
    assert clock.slept == [5, 5, 10, 10, 20]
    assert idp.asked[-1][1]["device_code"] == ["secret"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("access_denied", "declined"),
        ("expired_token", "not entered in time"),
        ("invalid_client", "refused: invalid_client"),
        ("<script>", "refused: other"),
    ],
)
def test_polling_ends(idp: Idp, error: str, message: str) -> None:
    idp.answers = {"/token": (400, {"error": error})}
    clock = Clock()
    with pytest.raises(LoginError, match=message):
        device.wait(idp.client, f"{idp.url}/token", CODE, clock=clock, sleep=clock.sleep)
    assert len(clock.slept) == 1


def test_polling_does_not_go_on_for_ever(idp: Idp) -> None:
    idp.answers = {"/token": (400, {"error": "authorization_pending"})}
    clock = Clock()
    code = device.Code("https://x", "A", None, "s", 5.0, 30.0)
    with pytest.raises(LoginError, match="in time"):
        device.wait(idp.client, f"{idp.url}/token", code, clock=clock, sleep=clock.sleep)
    assert clock.now <= NOW + 30


@pytest.mark.parametrize(
    "answer",
    [
        {"verification_uri": "http://evil.example/"},
        {"verification_uri": "https://x/\u001b]0;x"},
        {"user_code": "A\u001b[2J"},
        {"user_code": "A" * 65},
        {"device_code": ""},
    ],
    ids=range(5),
)
def test_a_code_that_cannot_be_shown(idp: Idp, answer: dict[str, str]) -> None:
    good = {"device_code": "d", "user_code": "ABCD", "verification_uri": "https://x/device"}
    idp.answers = {"/device": (200, good)}
    assert device.begin(idp.client, f"{idp.url}/device").interval == 5.0
    idp.answers = {"/device": (200, {**good, **answer})}
    with pytest.raises(LoginError):
        device.begin(idp.client, f"{idp.url}/device")


ATTEMPT = browser.Attempt("state", "nonce", "verifier")


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"aud": ["other", "cli"]}, True),
        ({"nonce": "replayed"}, False),
        ({"nonce": None}, False),
        ({"iss": "https://other"}, False),
        ({"aud": "other"}, False),
        ({"exp": NOW - 120}, False),
    ],
)
def test_an_id_token_is_of_this_login(changes: dict[str, Any], good: bool) -> None:
    client = Client("https://idp", "cli", "openid")
    token = jwt(**{"iss": "https://idp", "aud": "cli", "exp": NOW + 60, "nonce": "nonce", **changes})
    if good:
        browser._check(token, client, ATTEMPT, NOW)
    else:
        with pytest.raises(LoginError, match="not of this login"):
            browser._check(token, client, ATTEMPT, NOW)


@pytest.mark.parametrize(
    ("query", "announced", "message"),
    [
        ({"code": ["c"]}, False, None),
        ({"code": ["c"], "iss": ["https://idp"]}, True, None),
        ({"code": ["c"], "iss": ["https://evil"]}, False, "another provider"),
        ({"code": ["c"]}, True, "another provider"),
        ({"code": ["c", "d"]}, False, "refused in the browser"),
        ({"error": ["access_denied"]}, False, "declined"),
        ({"error": ["\x1b[2J"]}, False, "refused in the browser"),
    ],
)
def test_what_comes_back_in_the_browser(query: dict[str, list[str]], announced: bool, message: str | None) -> None:
    client, endpoints = Client("https://idp", "cli", "openid"), Endpoints("t", "a", None, None, announced)
    if message is None:
        assert browser._code(query, client, endpoints) == "c"
    else:
        with pytest.raises(LoginError, match=message):
            browser._code(query, client, endpoints)


def test_nobody_comes(idp: Idp) -> None:
    clock = iter([NOW, NOW, NOW + 400, NOW + 400])
    endpoints = Endpoints(f"{idp.url}/token", f"{idp.url}/authorize", None, None)
    with pytest.raises(LoginError, match="in time"):
        browser.login(idp.client, endpoints, port=0, show=lambda _: None, clock=lambda: next(clock), patience=300)


def kept(idp: Idp, folder: Path, refresh: str | None = "r1", expires: float = NOW - 1) -> Store:
    store = Store(folder / "new")
    store.keep(Login("corp", idp.client, f"{idp.url}/token", None, Tokens("old", refresh, expires, NOW - 600)))
    return store


def test_a_refresh_token_is_used_once_however_many_ask(idp: Idp, tmp_path: Path) -> None:
    idp.answers = {"/token": [(200, {**GOOD, "access_token": "new", "refresh_token": "r2"})]}
    store, found = kept(idp, tmp_path), []

    def ask() -> None:
        found.append(Store(store.folder).valid("corp", valid_for=60, force=False, clock=lambda: NOW).tokens.access)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert found == ["new"] * 8
    assert [fields["refresh_token"] for _, fields in idp.asked] == [["r1"]]
    again = store.load("corp")
    assert again is not None
    assert again.tokens.refresh == "r2"


def test_a_provider_that_rotates_nothing_keeps_its_refresh_token(idp: Idp, tmp_path: Path) -> None:
    idp.answers = {"/token": (200, GOOD)}
    assert kept(idp, tmp_path).valid(None, valid_for=60, force=True, clock=lambda: NOW).tokens.refresh == "r1"


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"logins": {"a": 7}, "last": "a"}', b"\xff"])
def test_a_damaged_file_is_one_sentence(idp: Idp, tmp_path: Path, damage: bytes) -> None:
    store = kept(idp, tmp_path)
    store.path.write_bytes(damage)
    with pytest.raises(LoginError, match="is not what tidegate wrote"):
        store.valid(None, valid_for=60, force=False, clock=lambda: NOW)


def test_errors_and_reprs_hold_no_token(idp: Idp, tmp_path: Path) -> None:
    store = kept(idp, tmp_path, refresh="refresh-CANARY")
    idp.answers = {"/token": (400, {"error": "invalid_grant", "error_description": "refresh-CANARY"})}
    with pytest.raises(LoginError) as refused:
        store.valid(None, valid_for=60, force=False, clock=lambda: NOW)
    shown = f"{refused.value!r}{store.load(None)!r}{CODE!r}{ATTEMPT!r}"
    assert not [each for each in ("CANARY", "'old'", "'secret'", "nonce", "verifier") if each in shown]


def test_a_secret_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s\n")
    file.chmod(0o644)
    client = Client("https://idp", "cli", "openid", str(file))
    with pytest.raises(LoginError, match="0600"):
        client.identified()
    file.chmod(0o600)
    assert client.identified() == {"client_id": "cli", "client_secret": "s"}
