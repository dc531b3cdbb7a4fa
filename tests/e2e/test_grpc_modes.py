"""gRPC however its client and its server are reached: with TLS and without, through a proxy, under mitmdump."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")

from tests.e2e.grpc_peer import Peer, infer_request  # noqa: E402
from tests.e2e.harness import Process, mitm, policy, tidegate_run, token  # noqa: E402
from tests.e2e.peers import authority  # noqa: E402
from tests.e2e.test_grpc import KEY, ROLES, Setting, Talking, denied, loaded, masked, reaching, texts  # noqa: E402
from tests.protos import open_inference  # noqa: E402

pytestmark = pytest.mark.e2e

NAMED = [("grpc.default_authority", "127.0.0.1"), ("grpc.ssl_target_name_override", "127.0.0.1")]


def connection(name: str, upstream: str, path: str | None) -> dict[str, Any]:
    credential = {"header": "authorization", "value": "Bearer ${env:TIDEGATE_TEST_CREDENTIAL}"}
    found: dict[str, Any] = {"name": name, "dialect": "open-inference-grpc", "descriptors": "set.binpb"}
    found |= {"upstream": upstream, "credential": credential}
    return found if path is None else {**found, "serve": {"path": path}}


def program(name: str, path: Path, mode: str, *options: str) -> AbstractContextManager[Process]:
    if name == "mitmdump":
        return mitm("mitmdump", path, *options, mode="regular" if mode == "regular" else "reverse:http://unset.invalid")
    modes = ["--mode", "regular"] if mode == "regular" else []
    return tidegate_run(path, *modes, *options)


@pytest.fixture(scope="module", params=["tidegate-run", "mitmdump"])
def secure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A gate before a server with TLS; its own clients come without."""
    folder = tmp_path_factory.mktemp(f"secure-{request.param}")
    (folder / "set.binpb").write_bytes(open_inference())
    trust = authority(folder, "127.0.0.1")
    chain = trust.chain.read_bytes()
    with Peer(grpc.ssl_server_credentials([(chain, chain[chain.index(b"-----BEGIN CERT") :])])) as peer:
        upstream = peer.url.replace("http:", "https:")
        path = policy(folder, upstream, connections=[connection("models", upstream, "/")], roles=ROLES)
        secret = token(folder)
        ca = ("--set", f"ssl_verify_upstream_trusted_ca={trust.ca}")
        with (
            program(request.param, path, "reverse", *ca) as gate,
            reaching(gate.port) as channel,
        ):
            found = Setting(gate, peer, secret, channel)
            loaded(found)
            yield found


def crosses(setting: Setting) -> None:
    """Run a call, a call with a refusal, and a call in which both sides speak."""
    assert texts(setting.infer(infer_request("hello"))) == ["You said: hello"]
    denied(setting, lambda: setting.infer(infer_request(f"key {KEY}")), grpc.StatusCode.PERMISSION_DENIED)
    call = Talking(setting)
    call.ask(infer_request("leak"))
    masked(call.until_final()[0])
    call.ask(None)
    assert list(call.answers) == []


def test_the_server_has_tls(secure: Setting) -> None:
    crosses(secure)


def test_both_sides_have_tls(secure: Setting) -> None:
    ca = (secure.gate.cwd / "ca" / "mitmproxy-ca-cert.pem").read_bytes()
    with reaching(secure.gate.port, *NAMED, credentials=grpc.ssl_channel_credentials(ca)) as channel:
        crosses(replace(secure, channel=channel))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A gate that is an explicit proxy, before a server without TLS: inside the tunnel is HTTP/2 at once."""
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "set.binpb").write_bytes(open_inference())
    with Peer() as peer:
        path = policy(folder, peer.url, connections=[connection("models", peer.url, None)], roles=ROLES)
        secret = token(folder)
        with program("tidegate-run", path, "regular") as gate:
            options = [("grpc.http_proxy", f"http://127.0.0.1:{gate.port}"), ("grpc.enable_http_proxy", 1)]
            with reaching(peer.port, *options) as channel:
                yield Setting(gate, peer, secret, channel)


def test_the_gate_is_a_proxy(proxy: Setting) -> None:
    crosses(proxy)
    assert proxy.row()["connection"] == "models"
