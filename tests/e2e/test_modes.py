"""Block and mask hold in every mode and in every program, over HTTP/1 and HTTP/2, with and without TLS."""

from __future__ import annotations

import functools
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.harness import (
    ANSWER,
    BIN,
    CREDENTIAL,
    Process,
    Received,
    Upstream,
    chat_sse,
    free_port,
    mitm,
    policy,
    started,
    tidegate_run,
    token,
    wait_for_port,
)
from tests.e2e.peers import NAME, SERVER, TURNED, Network, SecureUpstream, authority, inside, missing, network
from tests.e2e.wiring import CARD, KEY, MAIL, Client, Stage

pytestmark = pytest.mark.e2e

LEAK = f"mail {MAIL} card {CARD} end"
MASKED = "mail [REDACTED:email] card [REDACTED:card-visa] end"


def leaks(received: Received) -> tuple[str, list[bytes]]:
    """Answer with personal data, whole or streamed as asked."""
    if json.loads(received.body).get("stream"):
        return "text/event-stream", chat_sse(LEAK)
    choice = {"index": 0, "message": {"role": "assistant", "content": LEAK}, "finish_reason": "stop"}
    return "application/json", [json.dumps({**ANSWER, "choices": [choice]}).encode()]


def leaking(context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int | None = None) -> SecureUpstream:
    upstream = SecureUpstream(context, host=host, port=port)
    upstream.pieces = leaks
    return upstream


def streamed(text: str) -> str:
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)


def holds(client: httpx.Client, url: str, access: str, upstream: Upstream, *, credential: bool = True) -> None:
    """Send a key, a whole request and a streamed one on this client; check what each side sees."""
    headers = {"authorization": f"Bearer {access}", "content-type": "application/json"} | dict(client.headers)

    def ask(text: str, stream: bool = False) -> httpx.Response:
        body = {"model": "sample-small", "stream": stream, "messages": [{"role": "user", "content": text}]}
        return client.post(url, json=body, headers=headers)

    upstream.data = b""
    refusal = ask(f"why does {KEY} fail?")
    assert refusal.status_code == 403, refusal.text
    assert refusal.json()["error"]["code"] == "finding"
    assert upstream.data == b""
    for _ in range(2):
        whole = ask(f"write to {MAIL}")
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["message"]["content"] == MASKED
        assert streamed(ask("hi", stream=True).text) == MASKED
    assert b"write to [REDACTED:email]" in upstream.data
    assert (CREDENTIAL.encode() in upstream.data) is credential
    assert access.encode() not in upstream.data
    assert "alt-svc" not in whole.headers


class Http2Only(ssl.SSLContext):
    """A client that speaks nothing but HTTP/2; httpx would offer HTTP/1.1 first, which mitmproxy then takes."""

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        super().set_alpn_protocols(["h2"])


def trusting(folder: Path, *, http2: bool = False) -> ssl.SSLContext:
    """What a client has that was given the gate's CA."""
    context = (Http2Only if http2 else ssl.SSLContext)(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca" / "mitmproxy-ca-cert.pem")
    return context


# ── reverse ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Start = Callable[[Path], AbstractContextManager[Process]]

PROGRAMS: dict[str, Start] = {
    "tidegate-run": tidegate_run,
    "mitmdump": lambda path: mitm("mitmdump", path),
    "mitmweb": lambda path: mitm(
        "mitmweb", path, "--no-web-open-browser", "--set", f"web_port={free_port()}", "--set", "web_password=x"
    ),
}


@dataclass(frozen=True)
class Reverse:
    stage: Stage
    folder: Path


@pytest.fixture(scope="module", params=PROGRAMS)
def reverse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reverse]:
    folder = tmp_path_factory.mktemp(request.param)
    with leaking() as upstream:
        path, access = policy(folder, upstream.url), token(folder)
        with PROGRAMS[request.param](path) as gate:
            yield Reverse(Stage(gate, upstream, access), folder)


@pytest.mark.parametrize(
    ("scheme", "http1", "http2"),
    [("http", True, False), ("http", False, True), ("https", True, False), ("https", False, True)],
    ids=["h1", "h2c", "tls-h1", "tls-h2"],
)
def test_reverse(reverse: Reverse, scheme: str, http1: bool, http2: bool) -> None:
    stage = reverse.stage
    url = f"{scheme}://127.0.0.1:{stage.gate.port}/openai/v1/chat/completions"
    with httpx.Client(http1=http1, http2=http2, verify=trusting(reverse.folder, http2=http2), timeout=20) as client:
        assert client.get(f"{scheme}://127.0.0.1:{stage.gate.port}/").http_version == (
            "HTTP/2" if http2 else "HTTP/1.1"
        )
        holds(client, url, stage.token, stage.upstream)


# ── explicit ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Explicit:
    """An explicit proxy before three upstreams: TLS with HTTP/2, TLS with HTTP/1 only, and plain."""

    gate: Process
    folder: Path
    token: str
    both: SecureUpstream
    old: SecureUpstream
    plain: SecureUpstream
    reverse: int

    def client(self, *, http2: bool) -> httpx.Client:
        verify = trusting(self.folder, http2=http2)
        return httpx.Client(http2=http2, http1=not http2, proxy=self.gate.url, verify=verify, timeout=20)


def listed(name: str, upstream: Upstream) -> dict[str, object]:
    credential = {"header": "authorization", "value": "Bearer ${env:TIDEGATE_TEST_CREDENTIAL}"}
    found = {"name": name, "dialect": "openai", "upstream": upstream.url, "credential": credential}
    return {**found, "serve": {"path": f"/{name}"}}


@pytest.fixture(scope="module", params=["tidegate-run", "mitmdump"])
def explicit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explicit]:
    folder = tmp_path_factory.mktemp(f"explicit-{request.param}")
    trust = authority(folder, "127.0.0.1")
    with (
        leaking(trust.context(["h2", "http/1.1"])) as both,
        leaking(trust.context(["http/1.1"])) as old,
        leaking() as plain,
    ):
        connections = [listed("both", both), listed("old", old), listed("plain", plain)]
        path, access = policy(folder, both.url, connections=connections), token(folder)
        regular, reverse = free_port(), free_port()
        ca = f"ssl_verify_upstream_trusted_ca={trust.ca}"
        if request.param == "mitmdump":
            modes = ["--mode", f"reverse:http://unset.invalid@{reverse}"]
            running = mitm("mitmdump", path, "--set", ca, *modes, mode="regular", port=regular)
        else:
            modes = ["--mode", "regular", "--mode", f"reverse@{reverse}"]
            running = tidegate_run(path, *modes, "--set", ca, port=regular)
        with running as gate:
            with Client(reverse, seconds=240) as client:
                client.ask(b"GET / HTTP/1.1\r\nhost: gate\r\n\r\n", "GET")
            yield Explicit(gate, folder, access, both, old, plain, reverse)


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize("upstream", ["both", "old"])
def test_explicit_over_tls(explicit: Explicit, upstream: str, http2: bool) -> None:
    target = getattr(explicit, upstream)
    target.versions.clear()
    with explicit.client(http2=http2) as client:
        holds(client, f"{target.url}/v1/chat/completions", explicit.token, target)
    assert set(target.versions) == {"2" if http2 and upstream == "both" else "1.1"}


def test_explicit_without_tls(explicit: Explicit) -> None:
    with explicit.client(http2=False) as client:
        holds(client, f"{explicit.plain.url}/v1/chat/completions", explicit.token, explicit.plain)


@pytest.mark.parametrize("name", ["both", "old", "plain"])
def test_reverse_and_explicit_in_one_process(explicit: Explicit, name: str) -> None:
    """Several connections behind one listener; each upstream gets its own requests only."""
    target: SecureUpstream = getattr(explicit, name)
    for each in (explicit.both, explicit.old, explicit.plain):
        each.data = b""
    with httpx.Client(timeout=20) as client:
        holds(client, f"http://127.0.0.1:{explicit.reverse}/{name}/v1/chat/completions", explicit.token, target)
    others = {"both", "old", "plain"} - {name}
    assert all(getattr(explicit, other).data == b"" for other in others)


def test_the_openai_sdk_with_nothing_but_its_environment(explicit: Explicit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", explicit.gate.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(explicit.folder / "ca" / "mitmproxy-ca-cert.pem"))
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    explicit.both.data = b""
    with openai.OpenAI(base_url=f"{explicit.both.url}/v1", api_key=explicit.token) as sdk:
        with pytest.raises(openai.PermissionDeniedError, match="secrets") as refusal:
            sdk.chat.completions.create(model="sample-small", messages=[{"role": "user", "content": KEY}])
        assert refusal.value.code == "finding"
        assert explicit.both.data == b""
        answer = sdk.chat.completions.create(model="sample-small", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == MASKED
        with sdk.chat.completions.create(
            model="sample-small", stream=True, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == MASKED
    assert explicit.token.encode() not in explicit.both.data


def test_an_upstream_whose_certificate_is_not_trusted_gets_nothing(tmp_path: Path, explicit: Explicit) -> None:
    """The address is listed, but whoever answers there cannot prove it: here a server with another CA's certificate."""
    explicit.old.data = b""
    stranger = authority(tmp_path, "127.0.0.1")
    assert explicit.old.context is not None
    explicit.old.context.load_cert_chain(stranger.chain)
    with explicit.client(http2=False) as client:
        reply = client.post(
            f"{explicit.old.url}/v1/chat/completions",
            json={"model": "m", "messages": []},
            headers={"authorization": f"Bearer {explicit.token}"},
        )
    explicit.old.context.load_cert_chain(explicit.folder / "upstream.pem")
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_failed")
    assert explicit.old.data == b""


@pytest.mark.parametrize("target", ["plain", "both"])
def test_through_a_parent_proxy(tmp_path: Path, target: str) -> None:
    trust, parent = authority(tmp_path, "127.0.0.1"), free_port()
    context = trust.context(["h2", "http/1.1"]) if target == "both" else None
    tunnels = ["--ignore-hosts", ".*", "--listen-host", "127.0.0.1", "--set", f"confdir={tmp_path / 'parent'}"]
    with leaking(context) as upstream, leaking() as other:
        path, access = policy(tmp_path, upstream.url, connections=[listed(target, upstream)]), token(tmp_path)
        options = ["--mode", f"upstream:http://127.0.0.1:{parent}"]
        with (
            started([BIN / "mitmdump", *tunnels, "-p", parent], parent, tmp_path) as through,
            tidegate_run(path, *options, "--set", f"ssl_verify_upstream_trusted_ca={trust.ca}") as gate,
            httpx.Client(proxy=gate.url, verify=trusting(tmp_path), timeout=20) as client,
        ):
            holds(client, f"{upstream.url}/v1/chat/completions", access, upstream)
            assert str(upstream.port) in through.log  # it went through the parent
            assert client.get(f"{other.url}/v1/models").json()["error"]["code"] == "unlisted_host"
            assert client.get(f"http://127.0.0.1:{parent}/").json()["error"]["code"] == "unlisted_host"
        assert other.data == b""


# ── hosts that the policy does not list ──────────────────────────────────────────────────────────────────────────────


def connect(port: int, target: str) -> int:
    with Client(port) as client:
        return client.ask(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode(), "CONNECT").status


def get(port: int, target: str) -> tuple[int, str]:
    with Client(port) as client:
        reply = client.ask(f"GET http://{target}/x HTTP/1.1\r\nhost: {target}\r\n\r\n".encode(), "GET")
        return reply.status, reply.body.decode()


def test_an_unlisted_host_is_denied(explicit: Explicit) -> None:
    with leaking() as other:
        for target in (f"127.0.0.1:{other.port}", "api.example.org:443", "169.254.169.254:80"):
            assert connect(explicit.gate.port, target) == 403
            status, body = get(explicit.gate.port, target)
            assert status == 403
            assert "unlisted_host" in body
        assert other.connections == 0


def own_names() -> list[str]:
    """Names of this machine that no list of reserved names holds."""
    found = []
    for name in (socket.gethostname(), "ip6-loopback", "ip6-localhost"):
        try:
            socket.getaddrinfo(name, 80)
        except OSError:
            continue
        found.append(name)
    return found


@pytest.fixture(scope="module")
def passing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Upstream]]:
    folder = tmp_path_factory.mktemp("passing")
    with leaking() as listed_one, leaking() as other:
        path, port = policy(folder, listed_one.url, unlisted="pass"), free_port()
        token(folder)
        with tidegate_run(path, "--mode", "regular", port=port):
            yield port, other


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433",
        "0x7f.1", *own_names(),
    ],
)  # fmt: skip
def test_pass_leads_to_no_machine_of_our_own(passing: tuple[int, Upstream], host: str) -> None:
    port, other = passing
    other.connections = 0
    target = f"{host}:{other.port}"
    status, _ = get(port, target)
    assert status in (400, 403, 502)
    with Client(port) as client:
        client.send(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode())
        client.rest(0.3)
        client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        client.rest(0.3)
    assert other.connections == 0


# ── transparent ──────────────────────────────────────────────────────────────────────────────────────────────────────

ABSENT = missing() if "CI" not in os.environ else None  # in CI a missing part is a failure
transparent_only = pytest.mark.skipif(ABSENT is not None, reason=f"transparent mode cannot be tried: {ABSENT}")

ELSEWHERE = "192.88.98.7"  # an address that counts as public; nothing leaves the namespace


@dataclass(frozen=True)
class Transparent:
    net: Network
    gate: Process
    folder: Path
    token: str
    secure: SecureUpstream
    plain: SecureUpstream
    unlisted: SecureUpstream
    own: SecureUpstream
    regular: int


def beyond(net: Network, host: str, port: int, context: ssl.SSLContext | None = None) -> SecureUpstream:
    upstream = leaking(context, host, port)
    upstream.namespace = net.path(net.router)
    return upstream


@pytest.fixture(scope="module", params=["tidegate-run", "mitmdump"])
def transparent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transparent]:
    folder = tmp_path_factory.mktemp(f"transparent-{request.param}")
    port = free_port()
    trust = authority(folder, NAME)
    with network(port, 80, 443, 8081) as net:
        subprocess.run(["ip", "-n", net.router, "addr", "add", f"{ELSEWHERE}/32", "dev", "lo"], check=True)
        with (
            beyond(net, SERVER, 443, trust.context(["h2", "http/1.1"])) as secure,
            beyond(net, SERVER, 80) as plain,
            beyond(net, ELSEWHERE, 8081) as unlisted,
            beyond(net, "127.0.0.1", 8081) as own,
        ):
            secure.host = plain.host = NAME
            bare = listed("plain", plain)
            del bare["credential"]  # the policy allows none where there is no TLS
            connections = [listed("secure", secure), bare]
            identity = [
                {"name": "local", "static": {"tokens": "tokens.yaml"}},
                {"name": "net", "source": {"addresses": ["10.91.0.0/24"]}},
            ]
            bindings = [{"groups": ["local:dev"], "subjects": ["net:10.91.0.2"], "roles": ["dev"]}]
            path = policy(folder, "", connections=connections, unlisted="pass", identity=identity, bindings=bindings)
            access = token(folder)
            regular = free_port()
            options = [
                "--mode",
                "transparent",
                "--mode",
                f"regular@{regular}",
                "--set",
                f"ssl_verify_upstream_trusted_ca={trust.ca}",
            ]
            command: list[str | Path] = [
                BIN / "tidegate", "run", "--policy", path, "--listen", f"0.0.0.0:{port}", "--confdir", folder / "ca",
                *options,
            ]  # fmt: skip
            if request.param == "mitmdump":
                script = Path(__file__).resolve().parents[2] / "addons" / "gateway.py"
                command = [
                    BIN / "mitmdump", "-s", script, "--set", f"tidegate={path}", "--set", f"confdir={folder / 'ca'}",
                    "--listen-port", str(port), *options,
                ]  # fmt: skip
            with started(["ip", "netns", "exec", net.router, *command], port, folder, wait=False) as gate:
                inside(net.path(net.router), lambda: wait_for_port(port, gate.process))
                yield Transparent(net, gate, folder, access, secure, plain, unlisted, own, regular)


@pytest.mark.root
@transparent_only
@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
def test_transparent_over_tls(transparent: Transparent, http2: bool) -> None:
    """The client knows nothing of the gate but its CA; the packets are led there by the router."""

    def work() -> None:
        verify = trusting(transparent.folder, http2=http2)
        with httpx.Client(http1=not http2, http2=http2, verify=verify, timeout=60, headers={"host": NAME}) as client:
            client.post = functools.partial(client.post, extensions={"sni_hostname": NAME})  # type: ignore[method-assign]
            holds(client, f"https://{SERVER}/v1/chat/completions", transparent.token, transparent.secure)

    transparent.secure.versions.clear()
    inside(transparent.net.path(transparent.net.client), work)
    assert set(transparent.secure.versions) == {"2" if http2 else "1.1"}


@pytest.mark.root
@transparent_only
def test_transparent_without_tls(transparent: Transparent) -> None:
    def work() -> None:
        with httpx.Client(timeout=60, headers={"host": NAME}) as client:
            url = f"http://{SERVER}/v1/chat/completions"
            holds(client, url, transparent.token, transparent.plain, credential=False)

    inside(transparent.net.path(transparent.net.client), work)


@pytest.mark.root
@transparent_only
def test_transparent_for_a_caller_who_is_known_by_address(transparent: Transparent) -> None:
    def work() -> list[int]:
        url, body = f"http://{SERVER}/v1/chat/completions", {"model": "sample-small", "messages": []}
        with httpx.Client(timeout=60, headers={"host": NAME, "x-forwarded-for": "192.0.2.9"}) as client:
            tokens: list[dict[str, str]] = [{}, {"authorization": "Bearer tg_wrong"}]
            return [client.post(url, json=body, headers=each).status_code for each in tokens]

    transparent.plain.requests.clear()
    assert inside(transparent.net.path(transparent.net.client), work) == [200, 401]
    assert len(transparent.plain.requests) == 1


@pytest.mark.root
@transparent_only
def test_a_public_name_that_leads_home_is_not_passed(transparent: Transparent) -> None:
    inside(transparent.net.path(transparent.net.router), lambda: get(transparent.regular, f"{TURNED}:8081"))
    assert transparent.own.data == b""
    assert transparent.own.connections == 0


@pytest.mark.root
@transparent_only
def test_an_unlisted_host_may_pass_untouched(transparent: Transparent) -> None:
    """With ``unlisted: pass`` another host is reached, uninspected and without our credential."""

    def work() -> httpx.Response:
        with httpx.Client(timeout=60) as client:
            body = {"note": KEY}
            return client.post(
                f"http://{ELSEWHERE}:8081/any/path", json=body, headers={"authorization": "Bearer theirs"}
            )

    reply = inside(transparent.net.path(transparent.net.client), work)
    assert reply.status_code == 200, reply.text
    assert MAIL in reply.text
    [sent] = transparent.unlisted.requests
    assert json.loads(sent.body) == {"note": KEY}
    assert CREDENTIAL.encode() not in transparent.unlisted.data
    transparent.unlisted.requests.clear()
