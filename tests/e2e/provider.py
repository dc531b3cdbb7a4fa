"""A real OpenID Connect provider, nanoidp, in a process of its own: alice may ask models, bob is in another group."""

from __future__ import annotations

import base64
import contextlib
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

from tests.e2e.harness import free_port
from tests.tokens import identity
from tidegate.policy.policy import OidcIdentity

SETTINGS = """
config_version: 1
server: {{host: 127.0.0.1, port: {port}}}
oauth:
  issuer: "{url}"
  audience: tidegate
  clients: [{{client_id: tg-cli, client_secret: s3cret, redirect_uris: {redirects}}}]
"""
USERS = """
config_version: 1
users:
  alice: {password: pw, email: alice@example.org, groups: [ml-eng]}
  bob: {password: pw, email: bob@example.org, groups: [interns]}
"""


@dataclass(frozen=True)
class Provider:
    """A running nanoidp."""

    url: str
    process: subprocess.Popen[bytes]

    def post(self, path: str, **fields: str) -> bytes:
        return self._send(path, urllib.parse.urlencode(fields).encode())

    def token(self, kind: str = "access_token", user: str = "alice", **fields: str) -> str:
        """Log a user in; ``resource`` asks for a token of another audience."""
        answer = self.post("/token", grant_type="password", username=user, password="pw", scope="openid", **fields)
        return str(json.loads(answer)[kind])

    def expired(self, user: str = "alice", minutes: int = 10) -> str:
        """Return a token that the provider signed now and that ended some minutes ago."""
        body = json.dumps({"exp_minutes": -minutes, "client_id": "tg-cli"}).encode()
        return str(json.loads(self._send(f"/api/users/{user}/token", body, "application/json"))["access_token"])

    def _send(self, path: str, body: bytes, kind: str = "application/x-www-form-urlencoded") -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", body, {"content-type": kind}, method="POST")
        request.add_header("authorization", "Basic " + base64.b64encode(b"tg-cli:s3cret").decode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return bytes(answer.read())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def identity(self) -> OidcIdentity:
        """The identity as the core knows it."""
        return identity(
            issuer=self.url,
            discovery_url=f"{self.url}/.well-known/openid-configuration",
            insecure_http=True,
        )

    def section(self) -> dict[str, object]:
        """The identity as a policy file names it."""
        oidc = {"issuer": self.url, "audience": "tidegate", "groups": "$.groups", "insecure_http": True}
        return {"name": "corp", "oidc": oidc}


@contextlib.contextmanager
def nanoidp(folder: Path, *redirects: str) -> Iterator[Provider]:
    """Start a provider on a free port with its files in ``folder``; stop it at the end.

    ``redirects`` are further addresses that people may be sent back to.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "config").mkdir()
    (folder / "config" / "settings.yaml").write_text(
        SETTINGS.format(port=port, url=url, redirects=json.dumps([f"{url}/cb", *redirects]))
    )
    (folder / "config" / "users.yaml").write_text(USERS)
    command = [str(Path(sys.executable).parent / "nanoidp"), "--config", "config", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
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
