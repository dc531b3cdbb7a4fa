"""Tokens of a real OpenID Connect provider: nanoidp, in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import free_port
from tests.tokens import identity
from tidegate.identity import keys
from tidegate.identity.keys import KeySource
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import OidcIdentity

pytestmark = pytest.mark.e2e

SETTINGS = """
config_version: 1
server: {{host: 127.0.0.1, port: {port}}}
oauth:
  issuer: "{url}"
  audience: tidegate
  clients: [{{client_id: tg-cli, client_secret: s3cret, redirect_uris: ["{url}/cb"]}}]
"""
USERS = """
config_version: 1
users:
  alice: {password: pw, email: alice@example.org, groups: [ml-eng]}
"""


@dataclass(frozen=True)
class Provider:
    """A running nanoidp."""

    url: str
    process: subprocess.Popen[bytes]

    def post(self, path: str, **fields: str) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", urllib.parse.urlencode(fields).encode(), method="POST")
        request.add_header("authorization", "Basic " + base64.b64encode(b"tg-cli:s3cret").decode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return bytes(answer.read())

    def token(self, kind: str = "access_token") -> str:
        answer = self.post("/token", grant_type="password", username="alice", password="pw", scope="openid")
        return str(json.loads(answer)[kind])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def identity(self) -> OidcIdentity:
        return identity(
            issuer=self.url,
            discovery_url=f"{self.url}/.well-known/openid-configuration",
            insecure_http=True,
        )


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings.yaml").write_text(SETTINGS.format(port=port, url=url))
    (tmp_path / "config" / "users.yaml").write_text(USERS)
    command = [str(Path(sys.executable).parent / "nanoidp"), "--config", "config", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        found = Provider(url, process)
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    found.token()
                    break
                except (OSError, urllib.error.URLError):
                    assert time.monotonic() < until, "nanoidp did not start"
                    assert process.poll() is None, "nanoidp ended"
                    time.sleep(0.2)
            yield found
        finally:
            found.stop()


async def test_from_a_token_to_a_caller_and_through_a_rotation(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "FLOOR", 0.0)
    source = KeySource(provider.identity())
    verifier = Verifier([source.identity], [source])
    await verifier.start()
    try:
        first = await asyncio.to_thread(provider.token)
        caller = await verifier.identify(first, time.time())
        assert isinstance(caller, Caller)
        assert (caller.identity, caller.groups) == ("corp", frozenset({"corp:ml-eng"}))
        assert verifier.cached(first, time.time()) is caller

        id_token = await asyncio.to_thread(provider.token, "id_token")
        denial = await verifier.identify(id_token, time.time())
        assert isinstance(denial, Denial)
        assert denial.reason in {Reason.TOKEN_TYPE, Reason.TOKEN_AUDIENCE}

        await asyncio.to_thread(provider.post, "/api/keys/rotate")
        second = await asyncio.to_thread(provider.token)
        assert isinstance(await verifier.identify(second, time.time()), Caller), "the new key is fetched"
        assert isinstance(await verifier.identify(first, time.time()), Caller), "the old one is still published"

        third = await asyncio.to_thread(provider.token)
        provider.stop()
        await source.refresh()
        assert source.failing
        assert isinstance(await verifier.identify(third, time.time()), Caller), "keys at hand go on"
        head, _, rest = third.partition(".")
        changed = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        changed["kid"] = "unknown"
        forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode() + "." + rest
        answer = await verifier.identify(forged, time.time())
        assert isinstance(answer, Denial)
        assert answer.reason is Reason.IDP_UNAVAILABLE
    finally:
        await verifier.close()


async def test_a_provider_that_is_down_at_start(provider: Provider) -> None:
    token = await asyncio.to_thread(provider.token)
    provider.stop()
    verifier = Verifier([provider.identity()])
    await verifier.start()
    answer = await verifier.identify(token, time.time())
    await verifier.close()
    assert isinstance(answer, Denial)
    assert (answer.reason, answer.status) == (Reason.IDP_UNAVAILABLE, 503)
