"""Who calls through a proxy: what CONNECT says, what the request inside says, and what nobody says (real processes)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import yaml

from tests.e2e.harness import (
    CREDENTIAL,
    ROOT,
    Process,
    chat,
    few_rules,
    free_port,
    mitm,
    policy,
    post,
    recorded,
    started,
    tidegate_run,
    token,
)
from tests.e2e.peers import SecureUpstream, authority
from tests.e2e.test_modes import MASKED, leaking, listed, trusting
from tests.e2e.wiring import Client
from tests.test_peers import Signer, client_certificates
from tidegate.replay.flows import load_recording

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Explicit:
    gate: Process
    folder: Path
    secure: SecureUpstream
    plain: SecureUpstream
    alice: str
    bob: str

    def proxy(self, access: str, user: str = "anyone") -> str:
        return f"http://{user}:{access}@127.0.0.1:{self.gate.port}"

    def connect(self, client: Client, *fields: str) -> int:
        target = f"127.0.0.1:{self.secure.port}"
        head = f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n" + "".join(f"{each}\r\n" for each in fields) + "\r\n"
        return client.ask(head.encode(), "CONNECT").status

    def forget(self) -> None:
        for each in (self.secure, self.plain):
            each.data, each.connections = b"", 0
            each.requests.clear()


def basic(access: str, user: str = "me") -> str:
    return "proxy-authorization: Basic " + base64.b64encode(f"{user}:{access}".encode()).decode()


def start(program: str, path: Path, port: int, *options: str) -> AbstractContextManager[Process]:
    """Run the gate; as ``breakable`` it is ``tidegate run`` whose parts fail on demand."""
    if program == "mitmdump":
        return mitm("mitmdump", path, *options, mode="regular", port=port)
    if program == "tidegate-run":
        return tidegate_run(path, "--mode", "regular", *options, port=port)
    folder, script = path.parent, ROOT / "tests" / "e2e" / "break_hook.py"
    given = ["--policy", path, "--listen", f"127.0.0.1:{port}", "--confdir", folder / "ca", "--mode", "regular"]
    return started([sys.executable, script, "run", *given, *options], port, folder)


def explicit(program: str, folder: Path, **changes: object) -> Iterator[Explicit]:
    trust = authority(folder, "127.0.0.1")
    with leaking(trust.context(["h2", "http/1.1"])) as secure, leaking() as plain:
        claude = {**listed("claude", secure), "dialect": "anthropic", "serve": {"path": "/claude"}}
        connections = [listed("secure", secure), claude, listed("plain", plain)]
        path = policy(folder, secure.url, connections=connections, **changes)
        alice, bob, port = token(folder, "alice"), token(folder, "bob"), free_port()
        with start(program, path, port, "--set", f"ssl_verify_upstream_trusted_ca={trust.ca}") as gate:
            with Client(port, seconds=60) as client:
                client.ask(b"GET http://127.0.0.1:1/ HTTP/1.1\r\nhost: x\r\n\r\n", "GET")
            yield Explicit(gate, folder, secure, plain, alice, bob)


@pytest.fixture(scope="module")
def required(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explicit]:
    folder = tmp_path_factory.mktemp("required")
    yield from explicit("breakable", folder, proxy={"authentication": "required"}, unlisted="pass")


@pytest.fixture(scope="module")
def optional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explicit]:
    folder = tmp_path_factory.mktemp("optional")
    yield from explicit("tidegate-run", folder, **few_rules(folder))


@pytest.fixture(autouse=True)
def forgetful(request: pytest.FixtureRequest) -> None:
    for name in ("required", "optional"):
        if name in request.fixturenames:
            request.getfixturevalue(name).forget()


def ask(client: httpx.Client, upstream: SecureUpstream, access: str | None = None, **headers: str) -> httpx.Response:
    sent = {"content-type": "application/json", **headers}
    if access is not None:
        sent["authorization"] = f"Bearer {access}"
    return client.post(f"{upstream.url}/v1/chat/completions", content=chat("hi"), headers=sent)


def reason(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["code"])


# ── nothing for nobody ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param((), id="none"),
        pytest.param((basic("tg_wrong"),), id="unknown"),
        pytest.param((basic(""),), id="no-password"),
        pytest.param(("proxy-authorization: Basic ***",), id="no-base64"),
        pytest.param(("proxy-authorization: Digest username=x",), id="digest"),
        pytest.param((basic("tg_wrong"), basic("tg_wrong")), id="twice"),
        pytest.param(("authorization: Bearer x",), id="wrong-field"),
    ],
)
def test_no_tunnel_for_an_unknown_caller(required: Explicit, fields: tuple[str, ...]) -> None:
    with Client(required.gate.port) as client:
        reply = client.ask(
            f"CONNECT 127.0.0.1:{required.secure.port} HTTP/1.1\r\nhost: x\r\n".encode()
            + "".join(f"{each}\r\n" for each in fields).encode()
            + b"\r\n",
            "CONNECT",
        )
        assert reply.status == 407
        assert "realm" in reply.headers["proxy-authenticate"]
        # a client may try again on the same connection, as those do that send their password only when asked
        assert required.connect(client, basic(required.alice)) == 200
    assert required.secure.connections == 0


def test_no_plain_request_for_an_unknown_caller(required: Explicit) -> None:
    with httpx.Client(proxy=required.gate.url) as client:
        for url in (f"{required.plain.url}/v1/models", "http://unlisted.example.com/"):
            reply = client.get(url, headers={"authorization": f"Bearer {required.alice}"})
            assert (reply.status_code, reason(reply)) == (407, "caller_missing")
            assert reply.headers.get_list("proxy-authenticate") == ['Basic realm="tidegate"', 'Bearer realm="tidegate"']
    assert required.plain.connections == 0


def test_what_is_no_http_stays_refused_in_a_tunnel(required: Explicit) -> None:
    with Client(required.gate.port) as client:
        assert required.connect(client, basic(required.alice)) == 200
        client.send(b"\x00\x01\x02 not HTTP at all\r\n\r\n")
        assert client.rest(1.0).startswith(b"HTTP/1.1 400 ")
    assert required.secure.data == b""


# ── what counts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("target", ["secure", "plain"])
def test_the_connection_speaks_for_a_request_without_a_token(required: Explicit, target: str, scheme: str) -> None:
    upstream: SecureUpstream = getattr(required, target)
    proxy = httpx.Proxy(required.proxy(required.alice))
    if scheme == "bearer":
        proxy = httpx.Proxy(required.gate.url, headers={"proxy-authorization": f"Bearer {required.alice}"})
    with httpx.Client(proxy=proxy, verify=trusting(required.folder), timeout=20) as client:
        for own in (None, "tidegate", required.alice):
            reply = ask(client, upstream, own)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["message"]["content"] == MASKED
    assert required.alice.encode() not in upstream.data
    assert base64.b64encode(f"anyone:{required.alice}".encode()) not in upstream.data
    assert b"proxy-authorization" not in upstream.data.lower()
    assert CREDENTIAL.encode() in upstream.data


def test_two_callers_are_ambiguous_and_a_bad_token_is_never_overlooked(required: Explicit) -> None:
    with httpx.Client(proxy=required.proxy(required.alice), verify=trusting(required.folder), timeout=20) as client:
        for own, why in (
            (required.bob, "caller_ambiguous"),
            ("sk-somebody", "token_malformed"),
            ("tg_x", "token_unknown"),
        ):
            reply = ask(client, required.secure, own)
            assert (reply.status_code, reason(reply)) == (401, why)
    assert required.secure.data == b""


def test_a_token_that_is_taken_back_ends_its_tunnel(required: Explicit) -> None:
    carol = token(required.folder, "carol")
    file = required.folder / "tokens.yaml"
    kept = file.read_text()
    try:
        with httpx.Client(proxy=required.proxy(carol), verify=trusting(required.folder), timeout=20) as client:
            assert ask(client, required.secure).status_code == 200
            tokens = yaml.safe_load(kept)
            tokens["tokens"] = [each for each in tokens["tokens"] if each["name"] != "carol"]
            file.write_text(yaml.safe_dump(tokens))
            required.forget()
            reply = ask(client, required.secure)
            assert (reply.status_code, reason(reply)) == (401, "token_unknown")
            assert reply.headers["connection"] == "close"  # the next one needs a tunnel of its own, with a new token
            with pytest.raises(httpx.ProxyError, match="407"):
                ask(client, required.secure)
    finally:
        file.write_text(kept)
    assert required.secure.data == b""


def test_who_wants_no_proxy_password_still_needs_a_token(optional: Explicit) -> None:
    with httpx.Client(proxy=optional.gate.url, verify=trusting(optional.folder), timeout=20) as client:
        assert reason(ask(client, optional.secure)) == "caller_missing"
        assert reason(ask(client, optional.secure, "tidegate")) == "token_malformed"
        assert ask(client, optional.secure, optional.alice).status_code == 200
    with (
        httpx.Client(proxy=optional.proxy("tg_wrong"), verify=trusting(optional.folder)) as client,
        pytest.raises(httpx.ProxyError, match="407"),
    ):
        ask(client, optional.secure, optional.alice)
    with httpx.Client(proxy=optional.proxy(optional.bob), verify=trusting(optional.folder), timeout=20) as client:
        assert ask(client, optional.secure).status_code == 200


# ── real clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def environment(required: Explicit, monkeypatch: pytest.MonkeyPatch) -> Explicit:
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", required.proxy(required.alice, "alice"))
    monkeypatch.setenv("SSL_CERT_FILE", str(required.folder / "ca" / "mitmproxy-ca-cert.pem"))
    return required


def test_the_openai_sdk(environment: Explicit) -> None:
    with openai.OpenAI(base_url=f"{environment.secure.url}/v1", api_key="tidegate") as sdk:
        answer = sdk.chat.completions.create(model="sample-small", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == MASKED
        with sdk.chat.completions.create(
            model="sample-small", stream=True, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == MASKED


def test_the_anthropic_sdk(environment: Explicit, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    body = {**said, "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}}
    monkeypatch.setattr(environment.secure, "pieces", lambda _: ("application/json", [json.dumps(body).encode()]))
    with anthropic.Anthropic(base_url=environment.secure.url, api_key="tidegate") as sdk:
        message = sdk.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    assert message.id == "msg_1"


@pytest.mark.parametrize("more", [(), ("--proxy-anyauth",)], ids=["at-once", "when-asked"])
@pytest.mark.parametrize("target", ["secure", "plain"])
def test_curl(required: Explicit, target: str, more: tuple[str, ...]) -> None:
    """With ``--proxy-anyauth`` it sends its password after a 407 only, as programs on Node do."""
    curl = shutil.which("curl")
    if curl is None and "CI" not in os.environ:
        pytest.skip("no curl")
    assert curl is not None
    upstream: SecureUpstream = getattr(required, target)
    found = subprocess.run(
        [
            *(curl, "-sS", *more, "--noproxy", "", "-x", required.proxy(required.alice)),
            *("--cacert", required.folder / "ca" / "mitmproxy-ca-cert.pem"),
            *("-H", "content-type: application/json", "-d", chat("hi"), f"{upstream.url}/v1/chat/completions"),
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["choices"][0]["message"]["content"] == MASKED


# ── where tokens must not be ─────────────────────────────────────────────────────────────────────────────────────────


def test_no_log_and_no_recording_holds_a_proxy_password(tmp_path: Path) -> None:
    for found in explicit("mitmdump", tmp_path, proxy={"authentication": "required"}, **few_rules(tmp_path)):
        wrong = "tg_CANARY-of-a-wrong-token"
        with httpx.Client(proxy=found.proxy(found.alice), verify=trusting(tmp_path), timeout=20) as client:
            assert ask(client, found.secure).status_code == 200
            assert ask(client, found.plain).status_code == 200
        with Client(found.gate.port) as client:
            assert found.connect(client, basic(wrong)) == 407
        found.gate.stop()
        kept = recorded(tmp_path) + found.gate.log.encode()
        assert b'"reason": "token_unknown", "status": 407' in kept
        for secret in (found.alice, wrong):
            assert secret.encode() not in kept
            assert base64.b64encode(f"anyone:{secret}".encode())[:24] not in kept
        states = [str(flow.get_state()) for flow in load_recording(tmp_path / "recording.db", None)]
        assert states
        assert all("proxy-authorization" not in each.lower() for each in states)


# ── the parts fail ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("place", "when"),
    [
        *((f"Entrance.{name}", when) for name in ("shown", "opened") for when in ("before", "after")),
        ("Gateway.http_connect", "later"),
        ("Verifier.identify", "later"),
        ("Entrance.idle", "before"),
        ("Entrance.left", "before"),
    ],
)
def test_no_tunnel_where_the_gate_fails(required: Explicit, place: str, when: str) -> None:
    order = required.folder / "break.json"
    order.write_text(json.dumps({"place": place, "when": when, "error": "RuntimeError"}))
    try:
        with Client(required.gate.port) as client:
            opened = required.connect(client, basic(required.alice))
            assert (opened == 200) is (place == "Entrance.left")  # which only forgets
    finally:
        order.unlink()
    assert required.secure.connections == 0
    assert "CANARY" not in required.gate.log


@pytest.mark.parametrize("place", ["Entrance.inside", "Entrance.shown", "Entrance.idle", "Entrance.has_tunnel"])
@pytest.mark.parametrize("target", ["secure", "plain"])
def test_no_request_where_the_gate_fails(required: Explicit, target: str, place: str) -> None:
    upstream: SecureUpstream = getattr(required, target)
    order = required.folder / "break.json"
    with httpx.Client(proxy=required.proxy(required.alice), verify=trusting(required.folder), timeout=20) as client:
        assert ask(client, upstream).status_code == 200
        required.forget()
        order.write_text(json.dumps({"place": place, "when": "after", "error": "RuntimeError"}))
        try:
            reply = ask(client, upstream)
        finally:
            order.unlink()
    asked = place != "Entrance.inside" if target == "plain" else place != "Entrance.shown"
    assert (reply.status_code == 503) is asked
    assert (upstream.data == b"") is asked


# ── callers known by their connection ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Known:
    """A gate before one plain upstream that knows callers by certificate and by address."""

    gate: Process
    folder: Path
    upstream: SecureUpstream
    regular: int
    alice: str

    def context(self, certificate: str | None) -> ssl.SSLContext:
        found = trusting(self.folder)
        if certificate is not None:
            found.load_cert_chain(self.folder / certificate)
        return found

    def callers(self) -> list[str | None]:
        """Return the callers of all exchanges, as the log names them."""
        lines = [line[line.index("{") :] for line in self.gate.log.splitlines() if '{"event": "exchange"' in line]
        return [json.loads(each)["caller"] for each in lines]

    def caller(self, before: int) -> str | None:
        """Return the caller of the exchange that follows so many; its line is written once the answer is on its way."""
        end = time.monotonic() + 10
        while len(found := self.callers()) <= before and time.monotonic() < end:
            time.sleep(0.02)
        return found[before]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    folder = tmp_path_factory.mktemp("known")
    for file, signer in (("good.pem", client_certificates(folder)), ("foreign.pem", Signer())):
        (folder / file).write_bytes(signer.client_pem())
    identity = [
        {"name": "local", "static": {"tokens": "tokens.yaml"}},
        {"name": "machines", "certificate": {"ca": "machines.pem", "groups": ["ci"]}},
        {"name": "net", "source": {"addresses": ["127.0.0.1"], "groups": ["near"]}},
    ]
    roles = [{"groups": ["local:dev", "machines:ci", "net:near"], "roles": ["dev"]}]
    with leaking() as upstream:
        connections = [listed("one", upstream)]
        changes: dict[str, object] = {"identity": identity, "bindings": roles, "connections": connections}
        path = policy(folder, upstream.url, **changes, **few_rules(folder))
        regular, reverse, alice = free_port(), free_port(), token(folder, "alice")
        with start("tidegate-run", path, regular, "--mode", f"reverse@{reverse}") as gate:
            gate.port = reverse
            with Client(reverse, seconds=60) as client:
                client.ask(b"GET / HTTP/1.1\r\nhost: gate\r\n\r\n", "GET")
            found = Known(gate, folder, upstream, regular, alice)
            assert found.caller(0) is None
            yield found


ROWS = [
    pytest.param("good.pem", None, 200, "machines:build-7", id="certificate"),
    pytest.param("good.pem", "tidegate", 200, "machines:build-7", id="placeholder"),
    pytest.param("good.pem", "alice", 200, "local:alice", id="the-token-comes-first"),
    pytest.param("good.pem", "tg_wrong", 401, None, id="a-bad-token-is-not-overlooked"),
    pytest.param("foreign.pem", None, 401, None, id="nor-is-a-bad-certificate"),
    pytest.param(None, None, 200, "net:127.0.0.1", id="address"),
    pytest.param(None, "tg_wrong", 401, None, id="a-bad-token-before-an-address"),
]


@pytest.mark.parametrize(("certificate", "own", "status", "caller"), ROWS)
def test_who_connects_over_tls(
    known: Known, certificate: str | None, own: str | None, status: int, caller: str | None
) -> None:
    known.upstream.data = b""
    before = len(known.callers())
    headers = {"content-type": "application/json", "x-forwarded-for": "192.0.2.1", "forwarded": "for=192.0.2.1"}
    if own is not None:
        headers["authorization"] = f"Bearer {known.alice if own == 'alice' else own}"
    with httpx.Client(verify=known.context(certificate), timeout=20) as client:
        url = f"https://127.0.0.1:{known.gate.port}/one/v1/chat/completions"
        reply = client.post(url, content=chat("hi"), headers=headers)
    assert reply.status_code == status, reply.text
    assert (known.upstream.data == b"") is (status != 200)
    assert known.caller(before) == caller
    if certificate == "foreign.pem":
        assert reason(reply) == "certificate_refused"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_is_known_by_its_certificate(known: Known, version: ssl.TLSVersion) -> None:
    """Programs on Go and Node resume sessions by themselves."""
    before = len(known.callers())
    session, context = None, known.context("good.pem")
    context.maximum_version = version
    for _ in range(2):
        connection = socket.create_connection(("127.0.0.1", known.gate.port), timeout=20)
        with context.wrap_socket(connection, server_hostname="127.0.0.1", session=session) as client:
            client.sendall(post("/one/v1/chat/completions", chat("hi")))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert client.session_reused is (session is not None)
            session = client.session
    assert known.caller(before) == known.caller(before + 1) == "machines:build-7"


@pytest.mark.parametrize(
    ("certificate", "caller"), [("good.pem", "machines:build-7"), ("foreign.pem", None), (None, "net:127.0.0.1")]
)
@pytest.mark.parametrize("tunnel", [False, True], ids=["plain", "tunnel"])
def test_who_connects_to_the_proxy_over_tls(known: Known, tunnel: bool, certificate: str | None, caller: str) -> None:
    """The certificate that the proxy itself was shown speaks for what is inside the tunnel."""
    before = len(known.callers())
    with Client(known.regular) as client:
        client.secure(known.context(certificate), "127.0.0.1")
        target, body = f"127.0.0.1:{known.upstream.port}", chat("hi")
        url = f"http://{target}/v1/chat/completions"
        if tunnel:
            assert client.ask(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode(), "CONNECT").status == 200
            url = "/v1/chat/completions"
        fields = f"host: {target}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        reply = client.ask(f"POST {url} HTTP/1.1\r\n{fields}".encode() + body)
    assert reply.status == (401 if caller is None else 200), reply.body
    assert known.caller(before) == caller
