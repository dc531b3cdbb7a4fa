"""The certified provider of ``idp.mjs`` in a process of its own, and a browser that fills in its forms."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import re
import secrets
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.harness import free_port, wait_for_port
from tests.e2e.node import node_modules
from tests.tokens import ec, segment
from tests.tokens import sign as signed

PACKAGE = "oidc-provider@9.13.3"
SCRIPT = Path(__file__).with_name("idp.mjs")
CALLBACK = "http://127.0.0.1/cb"


def package() -> Path:
    """Return where the package's code is."""
    return node_modules("idp", PACKAGE) / "node_modules" / "oidc-provider" / "lib" / "index.js"


@dataclass
class Certified:
    """A running provider. ``stop`` and ``start`` again: it then has other keys."""

    port: int
    code: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = ["node", str(SCRIPT), str(self.port), str(self.code)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for_port(self.port, self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def section(self, **changes: object) -> dict[str, object]:
        """The identity as a policy file names it."""
        return {
            "name": "corp",
            "oidc": {
                "issuer": self.url, "audience": "tidegate", "groups": "$.groups", "insecure_http": True, **changes,
            },
        }  # fmt: skip

    def token(self, resource: str = "urn:tidegate", key: Any = None) -> str:
        """Get a token by client credentials, bound to a key if there is one."""
        form = {"grant_type": "client_credentials", "scope": "llm", "resource": resource}
        headers = {} if key is None else {"dpop": self.proof(key, f"{self.url}/token")}
        return str(self.post("/token", form, ("svc-batch", "s3cret-s3cret"), headers)["access_token"])

    def post(
        self,
        path: str,
        form: dict[str, str],
        auth: tuple[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{self.url}{path}", data=form, auth=auth, headers=headers, timeout=20)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    @staticmethod
    def proof(key: Any, address: str, token: str | None = None, method: str = "POST", **changes: Any) -> str:
        """Make a DPoP proof."""
        said = {"htm": method, "htu": address, "iat": int(time.time()), "jti": secrets.token_urlsafe(12), **changes}
        if token is not None:
            said["ath"] = segment(hashlib.sha256(token.encode()).digest())
        return signed(said, {"typ": "dpop+jwt", "alg": "ES256", "kid": ..., "jwk": key.as_dict(private=False)}, key)


@contextlib.contextmanager
def certified(folder: Path) -> Iterator[Certified]:
    """Make a provider on a free port, not started yet; stop it at the end."""
    found = Certified(free_port(), package(), folder / "idp.log")
    try:
        yield found
    finally:
        found.stop()


@dataclass
class Browser:
    """Follows redirects and fills in forms as a person would, until it comes to ``back`` or a page without a form."""

    back: str = CALLBACK

    def go(self, address: str, fields: dict[str, str]) -> str:
        """Return the address of the callback, or the last page's text."""
        with httpx.Client(trust_env=False, timeout=20) as client:
            return self._go(client, address, fields)

    def _go(self, client: httpx.Client, address: str, fields: dict[str, str]) -> str:
        answer = client.get(address)
        for _ in range(20):
            if answer.is_redirect:
                target = urllib.parse.urljoin(str(answer.url), answer.headers["location"])
                if target.startswith(self.back):
                    return target
                answer = client.get(target)
                continue
            form = re.search(r"(?s)<form([^>]*)>(.*?)</form>", answer.text)
            if form is None:
                return answer.text
            action = re.search(r'action="([^"]*)"', form[1])
            inputs = dict(re.findall(r'<input[^>]*type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"', form[2]))
            names = re.findall(r'name="([^"]+)"', form[2])
            inputs |= {name: value for name, value in fields.items() if name in names}
            inputs = {name: html.unescape(value) for name, value in inputs.items()}
            answer = client.post(
                urllib.parse.urljoin(str(answer.url), html.unescape(action[1]) if action else ""), data=inputs
            )
        raise AssertionError(f"the forms have no end: {answer.text}")


def code_with_pkce(authorize: str, client: str, redirect: str, fields: dict[str, str], **more: str) -> dict[str, str]:
    """Log in with a browser; return the form that gets the tokens."""
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code", "client_id": client, "redirect_uri": redirect, "state": secrets.token_urlsafe(8),
        "code_challenge": challenge, "code_challenge_method": "S256", **more,
    }  # fmt: skip
    back = Browser(redirect).go(f"{authorize}?{urllib.parse.urlencode(query)}", fields)
    found = urllib.parse.parse_qs(urllib.parse.urlsplit(back).query)
    assert "code" in found, back
    assert found["state"] == [query["state"]]
    return {
        "grant_type": "authorization_code", "code": found["code"][0], "redirect_uri": redirect,
        "client_id": client, "code_verifier": verifier,
    }  # fmt: skip


def said(token: str) -> dict[str, Any]:
    """Read a token's payload, unchecked."""
    part = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


KEY = ec()
