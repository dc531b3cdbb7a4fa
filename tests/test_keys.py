from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import tokens
from tests.clock import Clock
from tests.tokens import NOW, claims, identity, public, rsa, sign
from tidegate.identity import fetching
from tidegate.identity.keys import BACKOFF, FLOOR, REFRESH, STALE, FetchError, KeySource, fetch_keys
from tidegate.identity.static import create
from tidegate.identity.verifier import CACHE_CALLERS, CACHE_SECONDS, REFUSED_SECONDS, REFUSED_TOKENS, Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import OidcIdentity, StaticIdentity


class Provider:
    """A provider in memory: answers with ``data``, or raises it."""

    def __init__(self, data: bytes | Exception) -> None:
        self.data = data
        self.asked = 0
        self.delay = 0.0

    def __call__(self, _: OidcIdentity) -> bytes:
        self.asked += 1
        time.sleep(self.delay)
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def provider() -> Provider:
    return Provider(public(rsa()))


@pytest.fixture
def source(provider: Provider, clock: Clock) -> KeySource:
    return KeySource(identity(), provider, clock)


def verifier(source: KeySource) -> Verifier:
    return Verifier([source.identity], [source])


def reason(answer: Caller | Denial | None) -> Reason | None:
    return answer.reason if isinstance(answer, Denial) else None


# ── when the provider is asked ───────────────────────────────────────────────


async def test_five_hundred_unknown_kids_are_one_fetch(provider: Provider, source: KeySource, clock: Clock) -> None:
    await source.refresh()
    clock.now += FLOOR
    provider.delay = 0.05
    gate = verifier(source)
    answers = await asyncio.gather(*(gate.identify(sign(header={"kid": f"k{n}"}), NOW) for n in range(1000, 1500)))
    assert {reason(answer) for answer in answers} == {Reason.KEY_UNKNOWN}
    assert provider.asked == 2


async def test_not_before_its_moment(provider: Provider, source: KeySource, clock: Clock) -> None:
    await source.refresh()
    clock.now += FLOOR - 0.1
    await source.refresh()
    assert provider.asked == 1
    clock.now += 0.1
    await source.refresh()
    assert provider.asked == 2


async def test_backing_off(provider: Provider, source: KeySource, clock: Clock) -> None:
    provider.data = FetchError("down")
    waits = []
    for _ in range(9):
        await source.refresh()
        waits.append(source.due)
        clock.now += source.due
    first, most = BACKOFF
    assert waits == [min(most, first * 2**n) for n in range(9)]
    assert provider.asked == 9


async def test_due(source: KeySource, clock: Clock) -> None:
    await source.refresh()
    assert source.due == REFRESH
    clock.now += REFRESH + 1
    assert source.due == 0.0


# ── what an answer changes ───────────────────────────────────────────────────


async def test_a_worse_answer_changes_nothing(
    provider: Provider, source: KeySource, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await source.refresh()
    good = source.keys
    for bad in (b"", b'{"keys": []}', public(rsa(1024, "weak")), FetchError("it is down"), RuntimeError("bug")):
        clock.now += BACKOFF[1] + FLOOR
        provider.data = bad
        await source.refresh()
        assert source.keys is good
        assert source.failing
    assert "identity corp: the keys could not be fetched (it is down); the keys at hand stay in use" in caplog.text
    assert "identity corp: the keys could not be fetched (no key in its answer is fit for use)" in caplog.text


async def test_the_same_keys_stay_the_same_object(source: KeySource, clock: Clock) -> None:
    await source.refresh()
    keys = source.keys
    clock.now += FLOOR
    await source.refresh()
    assert source.fetches == 2
    assert source.keys is keys


async def test_stale_keys_end(provider: Provider, source: KeySource, clock: Clock) -> None:
    await source.refresh()
    provider.data = FetchError("down")
    clock.now += STALE
    assert source.keys is not None
    clock.now += 1
    assert source.keys is None
    assert reason(await verifier(source).identify(sign(), NOW)) is Reason.IDP_UNAVAILABLE


# ── the verifier ─────────────────────────────────────────────────────────────


async def test_a_token_is_verified_once(source: KeySource) -> None:
    gate = verifier(source)
    token = sign()
    assert gate.cached(token, NOW) is None
    caller = await gate.identify(token, NOW)
    assert isinstance(caller, Caller)
    assert gate.cached(token, NOW) is caller
    assert await gate.identify(token, NOW) is caller


async def test_what_is_remembered_ends(source: KeySource) -> None:
    gate = verifier(source)
    short, long = sign(claims(exp=NOW + 100)), sign(claims(exp=NOW + 5000))
    await gate.identify(short, NOW)
    await gate.identify(long, NOW)
    assert isinstance(gate.cached(short, NOW + 159), Caller), "leeway"
    assert gate.cached(short, NOW + 160) is None
    assert reason(await gate.identify(short, NOW + 160)) is Reason.TOKEN_EXPIRED
    assert isinstance(gate.cached(long, NOW + CACHE_SECONDS - 1), Caller)
    assert gate.cached(long, NOW + CACHE_SECONDS) is None


async def test_a_refusal_is_remembered_for_a_moment(source: KeySource) -> None:
    gate = verifier(source)
    for token in ("nonsense", sign(claims(iss="https://other.example")), sign(claims(sub=""))):
        denial = await gate.identify(token, NOW)
        assert gate.cached(token, NOW + REFUSED_SECONDS - 1) is denial
        assert gate.cached(token, NOW + REFUSED_SECONDS) is None


async def test_keys_that_change_end_what_is_remembered(provider: Provider, source: KeySource, clock: Clock) -> None:
    gate = verifier(source)
    old, new = sign(), sign(key=rsa(2048, "k2"))
    assert isinstance(await gate.identify(old, NOW), Caller)
    provider.data = public(rsa(2048, "k2"))
    clock.now += FLOOR
    assert isinstance(await gate.identify(new, NOW), Caller), "an unknown kid asks the provider"
    assert gate.cached(old, NOW) is None
    assert reason(await gate.identify(old, NOW)) is Reason.KEY_UNKNOWN


async def test_rotation_keeps_the_old_key(provider: Provider, source: KeySource, clock: Clock) -> None:
    gate = verifier(source)
    await gate.identify(sign(), NOW)
    provider.data = public(rsa(), rsa(2048, "k2"))
    clock.now += FLOOR
    assert isinstance(await gate.identify(sign(key=rsa(2048, "k2")), NOW), Caller)
    assert isinstance(await gate.identify(sign(), NOW), Caller)


async def test_a_provider_that_is_down(provider: Provider, source: KeySource, clock: Clock) -> None:
    provider.data = FetchError("down")
    gate = verifier(source)
    await gate.start()
    denial = await gate.identify(sign(), NOW)
    assert isinstance(denial, Denial)
    assert (denial.reason, denial.status) == (Reason.IDP_UNAVAILABLE, 503)
    assert gate.cached(sign(), NOW) is None, "not remembered"
    provider.data = public(rsa())
    clock.now += BACKOFF[1]
    assert isinstance(await gate.identify(sign(), NOW), Caller)
    await gate.close()


async def test_an_unknown_kid_while_the_provider_is_down(provider: Provider, source: KeySource, clock: Clock) -> None:
    gate = verifier(source)
    await gate.identify(sign(), NOW)
    provider.data = FetchError("down")
    clock.now += FLOOR
    assert reason(await gate.identify(sign(header={"kid": "new"}), NOW)) is Reason.IDP_UNAVAILABLE
    assert isinstance(await gate.identify(sign(claims(sub="bob")), NOW), Caller), "known keys go on"


async def test_two_issuers_do_not_pass_for_each_other(clock: Clock) -> None:
    other = identity(name="lab", issuer="https://lab.example")
    first = KeySource(identity(), Provider(public(rsa())), clock)
    second = KeySource(other, Provider(public(rsa(2048, "lab"), kid="k1")), clock)
    gate = Verifier([first.identity, other], [first, second])
    mine = await gate.identify(sign(claims(iss="https://lab.example"), key=rsa(2048, "lab"), header={"kid": "k1"}), NOW)
    assert isinstance(mine, Caller)
    assert (mine.identity, mine.groups) == ("lab", frozenset({"lab:ml-eng"}))
    forged = await gate.identify(sign(claims(), key=rsa(2048, "lab"), header={"kid": "k1"}), NOW)
    assert reason(forged) is Reason.TOKEN_SIGNATURE


async def test_memory_is_bounded(source: KeySource, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (CACHE_CALLERS, REFUSED_TOKENS) == (10_000, 1_000)
    monkeypatch.setattr("tidegate.identity.verifier.CACHE_CALLERS", 3)
    gate = verifier(source)
    signed = [sign(claims(sub=f"s{n}")) for n in range(5)]
    for token in signed:
        await gate.identify(token, NOW)
        assert isinstance(gate.cached(signed[0], NOW), Caller), "what is asked for stays"
    assert [gate.cached(token, NOW) is not None for token in signed] == [True, False, False, True, True]
    for n in range(REFUSED_TOKENS + 10):
        await gate.identify(f"junk{n}", NOW)
    assert len(gate._refused) == REFUSED_TOKENS


async def test_memory_holds_no_token(source: KeySource) -> None:
    gate = verifier(source)
    token = sign()
    await gate.identify(token, NOW)
    assert token not in repr(vars(gate))


async def test_static_tokens_have_an_answer_at_once(
    source: KeySource, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("static") / "tokens.yaml"
    other = path.with_name("other.yaml")
    token, second = create(path, "laptop", ["dev"]), create(other, "desk", [])
    gate = Verifier([source.identity, StaticIdentity("local", str(path)), StaticIdentity("more", str(other))], [source])
    assert gate.cached(token, NOW) == Caller("local", "laptop", frozenset({"local:dev"}))
    assert gate.cached(second, NOW) == Caller("more", "desk")
    assert reason(gate.cached("tg_unknown", NOW)) is Reason.TOKEN_UNKNOWN
    assert reason(await gate.identify("tg_unknown", NOW)) is Reason.TOKEN_UNKNOWN
    path.unlink()
    assert reason(gate.cached(token, NOW)) is Reason.TOKEN_UNKNOWN


async def test_no_identity_at_all() -> None:
    gate = Verifier(None)
    await gate.start()
    assert reason(await gate.identify(sign(), NOW)) is Reason.TOKEN_ISSUER
    assert reason(gate.cached("tg_x", NOW)) is Reason.TOKEN_UNKNOWN
    await gate.close()


async def test_keys_are_kept_fresh_in_the_background(
    provider: Provider, source: KeySource, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds
        if len(slept) > 3:
            await asyncio.Event().wait()

    gate = verifier(source)
    monkeypatch.setattr("tidegate.identity.verifier.asyncio.sleep", sleep)
    await gate.start()
    while len(slept) <= 3:
        await asyncio.to_thread(lambda: None)
    await gate.close()
    assert provider.asked == 4
    assert slept == [REFRESH] * 4


# ── over the network ─────────────────────────────────────────────────────────

Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A small web site on loopback whose pages are functions."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[], Answer]] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = site.pages.get(self.path, lambda: (404, {}, b""))()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def page(self, path: str, body: bytes | object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.pages[path] = lambda: (status, headers, data)

    def identity(self, **changes: object) -> OidcIdentity:
        url = f"{self.url}/.well-known/openid-configuration"
        return identity(issuer=self.url, discovery_url=url, insecure_http=True, **changes)


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    found.page("/.well-known/openid-configuration", {"issuer": found.url, "jwks_uri": f"{found.url}/keys"})
    found.page("/keys", public(rsa()))
    yield found
    found.server.shutdown()
    found.server.server_close()


def problem(who: OidcIdentity) -> str:
    with pytest.raises(FetchError) as caught:
        fetch_keys(who)
    return str(caught.value)


def test_fetch(site: Site) -> None:
    assert fetch_keys(site.identity()) == public(rsa())


def test_the_environment_s_proxy_is_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch_keys(site.identity()) == public(rsa())


def test_a_redirect_on_the_same_host(site: Site) -> None:
    site.page("/keys", b"", 302, Location="/moved")
    site.page("/moved", public(rsa()))
    assert fetch_keys(site.identity()) == public(rsa())


@pytest.mark.parametrize(
    "target", ["http://localhost:1/keys", "https://127.0.0.1/keys", "file:///etc/passwd", "ftp://127.0.0.1/x"]
)
def test_a_redirect_elsewhere(site: Site, target: str) -> None:
    site.page("/keys", b"", 302, Location=target)
    assert problem(site.identity()) in {"it redirects to another host", "it answered with status 302"}


def test_redirects_without_end(site: Site) -> None:
    site.page("/keys", b"", 302, Location="/keys")
    assert problem(site.identity()) == "it answered with status 302"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"issuer": "https://evil.example", "jwks_uri": "x"}, "its discovery document names another issuer"),
        ([], "its discovery document is not a JSON object"),
        (b"not json", "its discovery document is not a JSON object"),
        ({"issuer": "URL"}, "its discovery document names no jwks_uri"),
        ({"issuer": "URL", "jwks_uri": "file:///etc/passwd"}, "an address of it is not https"),
        ({"issuer": "URL", "jwks_uri": "http://192.0.2.1/keys"}, "an address of it is not https"),
        ({"issuer": "URL", "jwks_uri": "https://a@b/keys"}, "an address of it is not https"),
        ({"issuer": "URL", "jwks_uri": "https://[/keys"}, "an address of it is not https"),
    ],
)
def test_discovery(site: Site, document: object, expected: str) -> None:
    text = document if isinstance(document, bytes) else json.dumps(document).replace('"URL"', f'"{site.url}"').encode()
    site.page("/.well-known/openid-configuration", text)
    assert problem(site.identity()) == expected


def test_plain_http_needs_the_policy_s_word(site: Site) -> None:
    who = identity(issuer=site.url, discovery_url=f"{site.url}/.well-known/openid-configuration")
    assert problem(who) == "an address of it is not https"


def test_a_status_and_a_size(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.page("/keys", b"", 500)
    assert problem(site.identity()) == "it answered with status 500"
    site.page("/keys", b"", 204)
    assert problem(site.identity()) == "it answered with status 204"
    site.page("/keys", b"x" * 600_000)
    assert problem(site.identity()) == "its answer is longer than 524288 bytes"


def test_a_provider_that_is_slow_or_gone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 0.1)

    def slow() -> Answer:
        time.sleep(0.5)
        return 200, {}, b"{}"

    site.pages["/keys"] = slow
    assert problem(site.identity()) == "it could not be reached: TimeoutError"
    site.page("/.well-known/openid-configuration", {"issuer": site.url, "jwks_uri": "http://127.0.0.1:1/keys"})
    assert problem(site.identity()) == "it could not be reached: ConnectionRefusedError"


def test_an_answer_that_drips(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "DEADLINE", -1.0)
    assert problem(site.identity()) == "its answer took longer than -1 seconds"


async def test_the_loop_goes_on_while_keys_are_fetched(site: Site) -> None:
    def slow() -> Answer:
        time.sleep(0.3)
        return 200, {}, public(rsa())

    site.pages["/keys"] = slow
    source = KeySource(site.identity())
    task = asyncio.create_task(source.refresh())
    turns = 0
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 10
    assert source.keys is not None


def test_other_key_types_over_the_network(site: Site) -> None:
    site.page("/keys", public(rsa(), tokens.ec(), tokens.okp()))
    assert b"P-256" in fetch_keys(site.identity())
