"""Bound tokens through a real gate: a client certificate on the reverse listener, DPoP through the proxy."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec as curves
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.e2e.certified import Certified
from tests.e2e.harness import Process, Upstream, free_port, policy, tidegate_run, wait_for_port
from tests.tokens import ec, public, rsa, sign

pytestmark = pytest.mark.e2e

PATH = "/v1/chat/completions"
CHAT = {"model": "sample-small", "messages": [{"role": "user", "content": "hello"}]}


class Issuer:
    """Publishes a key, and signs whatever it is told to."""

    def __init__(self) -> None:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks"}
                data = public(rsa()) if self.path == "/jwks" else json.dumps(document).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def token(self, cnf: dict[str, str]) -> str:
        now = int(time.time())
        said = {"iss": self.url, "aud": "tidegate", "sub": "alice", "iat": now, "exp": now + 600, "cnf": cnf}
        return sign({**said, "groups": ["ml-eng"]})


@dataclass
class Setting:
    issuer: Issuer
    gate: Process
    proxy: int
    upstream: Upstream


def certificate(folder: Path, name: str) -> tuple[Path, str]:
    """Make a self-signed client certificate; return its file and its thumbprint."""
    key = curves.generate_private_key(curves.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM)
    path.write_bytes(pem)
    digest = hashlib.sha256(made.public_bytes(Encoding.DER)).digest()
    return path, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("bound")
    issuer = Issuer()
    thread = threading.Thread(target=issuer.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    with ExitStack() as stack:
        stack.callback(issuer.server.server_close)
        stack.callback(issuer.server.shutdown)
        upstream = stack.enter_context(Upstream())
        oidc = {"issuer": issuer.url, "audience": "tidegate", "groups": "$.groups", "insecure_http": True}
        connection = {
            "name": "openai", "dialect": "openai", "upstream": upstream.url, "serve": {"path": "/openai"},
        }  # fmt: skip
        path = policy(
            folder, upstream.url, identity=[{"name": "corp", "oidc": oidc}], connections=[connection],
            bindings=[{"groups": ["corp:ml-eng"], "roles": ["dev"]}],
        )  # fmt: skip
        reverse, proxy = free_port(), free_port()
        gate = stack.enter_context(
            tidegate_run(
                path, "--mode", f"reverse@{reverse}", "--mode", f"regular@{proxy}",
                "--set", "request_client_cert=true", port=reverse,
            )
        )  # fmt: skip
        wait_for_port(proxy, gate.process)
        yield Setting(issuer, gate, proxy, upstream)


def outcome(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json().get("error", {}).get("code", ""))


def test_a_client_certificate(setting: Setting, tmp_path: Path) -> None:
    mine, x5t = certificate(tmp_path, "mine")
    other, _ = certificate(tmp_path, "other")
    token = setting.issuer.token({"x5t#S256": x5t})

    def ask(shown: Path | None, scheme: str = "https") -> tuple[int, str]:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whose the gate's is, is not the question
        if shown is not None:
            context.load_cert_chain(shown)
        with httpx.Client(trust_env=False, verify=context) as client:
            address = f"{scheme}://127.0.0.1:{setting.gate.port}/openai{PATH}"
            return outcome(client.post(address, json=CHAT, headers={"x-api-key": token}, timeout=30))

    assert ask(mine) == (200, "")
    assert ask(other) == (401, "token_bound")
    assert ask(None) == (401, "token_bound")
    assert ask(None, "http") == (401, "token_bound")
    assert ask(mine) == (200, "")
    assert token.encode() not in setting.upstream.data


def test_dpop_through_the_proxy(setting: Setting) -> None:
    key = ec()
    token = setting.issuer.token({"jkt": str(key.thumbprint())})
    address = f"{setting.upstream.url}{PATH}"

    def ask(proof: str) -> httpx.Response:
        with httpx.Client(trust_env=False, proxy=f"http://127.0.0.1:{setting.proxy}") as client:
            headers = {"authorization": f"DPoP {token}", "dpop": proof}
            return client.post(address, json=CHAT, headers=headers, timeout=30)

    assert outcome(ask(Certified.proof(key, address, token))) == (200, "")
    for wrong in (f"{setting.gate.url}{PATH}", f"{setting.upstream.url}/v1/embeddings"):
        answer: Any = ask(Certified.proof(key, wrong, token))
        assert outcome(answer) == (401, "token_proof")
        assert answer.headers["www-authenticate"].startswith("DPoP ")
    assert b"dpop" not in setting.upstream.data.lower()
    assert token.encode() not in setting.upstream.data
