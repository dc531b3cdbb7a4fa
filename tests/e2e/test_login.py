"""``tidegate login`` against a real provider (nanoidp): device flow, browser with PKCE, renewal, logout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import provider as providers
from tests.e2e.harness import BIN, few_rules, policy
from tests.e2e.provider import Provider, nanoidp
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller
from tidegate.policy.loading import load

pytestmark = pytest.mark.e2e

SETTINGS = """
config_version: 1
server: {{host: 127.0.0.1, port: {port}}}
oauth:
  issuer: "{url}"
  audience: tidegate
  require_pkce: true
  refresh_token_rotation: true
  clients:
    - {{client_id: tg-cli, client_secret: s3cret, redirect_uris: ["{url}/cb"]}}
    - client_id: tg-login
      token_endpoint_auth_method: none
      redirect_uris: ["http://127.0.0.1:{back}/callback"]
device_flow: {{polling_interval: 1}}
"""


@dataclass(frozen=True)
class Home:
    """A person's machine: one configuration folder and one provider."""

    provider: Provider
    folder: Path
    back: int

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "XDG_CONFIG_HOME": str(self.folder),
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "BROWSER": "true",
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [str(BIN / "tidegate"), *words]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment, cwd=self.folder
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err.strip()

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return self.start("login", "--issuer", self.provider.url, "--client-id", "tg-login", "--no-browser", *words)

    @property
    def file(self) -> Path:
        return self.folder / "tidegate" / "login.json"

    def document(self) -> Any:
        return json.loads(self.file.read_text())

    def age(self, seconds: float) -> None:
        """Let the kept token end in so many seconds from now."""
        document = self.document()
        for each in document["logins"].values():
            each["expires"] = time.time() + seconds
        self.file.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Provider, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        back = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "SETTINGS", SETTINGS.replace("{back}", str(back)))
        with nanoidp(tmp_path_factory.mktemp("idp")) as found:
            yield found, back


@pytest.fixture
def home(provider: tuple[Provider, int], tmp_path: Path) -> Home:
    return Home(provider[0], tmp_path, provider[1])


def lines(process: subprocess.Popen[str], pattern: str) -> str:
    """Read what the command says until a line has what is looked for."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(seen)


def decide(home: Home, code: str, action: str = "authorize") -> None:
    fields = {"user_code": code, "username": "alice", "password": "pw", "action": action}
    assert httpx.post(f"{home.provider.url}/device", data=fields, trust_env=False).status_code == 200


def by_device(home: Home, *words: str) -> tuple[int, str, str]:
    with home.begin("--flow", "device", *words) as process:
        decide(home, lines(process, r"enter the code (\S+)"))
        out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err.strip()


def subject(token: str) -> str:
    import base64

    part = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(part + "=="))["sub"])


def test_device_flow_then_print_renew_and_logout(home: Home) -> None:
    status, out, err = by_device(home)
    assert (status, out) == (0, ""), err
    assert "Logged in at default as alice" in err
    assert home.file.stat().st_mode & 0o777 == 0o600
    assert home.file.parent.stat().st_mode & 0o777 == 0o700

    status, first, err = home.run("login", "--print")
    assert (status, err) == (0, "")
    assert subject(first) == "alice"
    assert home.run("login", "--print")[1] == first, "a good token is not renewed"

    home.age(-10)
    status, second, err = home.run("login", "--print")
    assert (status, err) == (0, "")
    assert second != first
    told = json.loads(home.run("login", "--print", "--json")[1])
    assert (told["access_token"], told["token_type"], told["issuer"]) == (second, "Bearer", home.provider.url)
    assert 0 < told["expires_in"] <= 24 * 3600

    assert home.run("login", "--refresh")[1] == ""
    third = home.run("login", "--print")[1]
    assert third != second

    kept = home.document()["logins"]["default"]["refresh_token"]
    status, out, err = home.run("logout")
    assert (status, out, err) == (0, "", "Logged out of default.")
    answer = httpx.post(
        f"{home.provider.url}/token",
        data={"grant_type": "refresh_token", "refresh_token": kept, "client_id": "tg-login"},
        trust_env=False,
    )
    assert answer.json()["error"] == "invalid_grant", "the provider took the refresh token back"
    assert home.run("login", "--print") == (1, "", "Error: Nobody is logged in here; run: tidegate login")


def test_many_at_once_renew_once(home: Home) -> None:
    by_device(home, "--quiet")
    home.age(-10)
    before = home.document()["logins"]["default"]["refresh_token"]
    running = [home.start("login", "--print") for _ in range(4)]
    found = [(each.communicate(timeout=60), each.returncode) for each in running]
    assert all(status == 0 for _, status in found), found
    assert len({out for (out, _), _ in found}) == 1
    assert home.document()["logins"]["default"]["refresh_token"] != before


def test_a_person_says_no(home: Home) -> None:
    with home.begin("--flow", "device") as process:
        decide(home, lines(process, r"enter the code (\S+)"), "deny")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, "", err)
    assert err.endswith("Error: The login was declined in the browser.\n")
    assert not home.file.exists()


def test_nothing_is_kept_that_should_not_be(home: Home) -> None:
    status, out, err = by_device(home, "--no-store", "--quiet")
    assert status == 0, err
    assert "Logged in" not in err
    assert subject(out) == "alice"
    assert not home.file.exists()


def through_the_browser(address: str) -> httpx.Response:
    """Do what a person does in the browser; return the answer of the loopback page."""
    with httpx.Client(trust_env=False, follow_redirects=True, timeout=30) as client:
        page = client.get(address)
        fields = dict(re.findall(r'<input[^>]*name="([^"]+)"[^>]*value="([^"]*)"', page.text))
        fields |= {"username": "alice", "password": "pw"}
        return client.post(str(page.url), data=fields)


def test_browser_flow(home: Home) -> None:
    with home.begin("--flow", "browser", "--port", str(home.back)) as process:
        address = lines(process, r"^(http\S+)")
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query))
        assert query["code_challenge_method"] == "S256"
        redirect = query["redirect_uri"]
        # whoever guesses the port cannot slip in a code of their own
        for state in ("", "&state=wrong", f"&state={query['state']}x", f"&state={query['state']}&state=x"):
            assert httpx.get(f"{redirect}?code=evil{state}", trust_env=False).status_code == 404
        assert (
            httpx.get(redirect.replace("callback", "x") + f"?state={query['state']}", trust_env=False).status_code
            == 404
        )
        page = through_the_browser(address)
        assert page.status_code == 200, page.text
        assert "Done" in page.text
        assert page.headers["cache-control"] == "no-store"
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), err
    assert "Logged in at default as alice" in err
    assert subject(home.run("login", "--print")[1]) == "alice"


def test_the_helper_imports_nothing_heavy(home: Home) -> None:
    by_device(home, "--quiet")
    script = (
        "import sys; from tidegate.cli import main\n"
        "main(['login', '--print'], standalone_mode=False)\n"
        "heavy = {'mitmproxy', 'hyperscan', 're2', 'cryptography', 'joserfc', 'pypdf', 'sqlite3'} & set(sys.modules)\n"
        "sys.exit(f'imports {sorted(heavy)}' if heavy else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env=home.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    assert subject(found.stdout.strip()) == "alice"


def test_a_provider_that_is_away(home: Home) -> None:
    by_device(home, "--quiet")
    good = home.run("login", "--print")[1]
    document = home.document()
    document["logins"]["default"]["token_endpoint"] = "http://127.0.0.1:9/token"
    home.file.write_text(json.dumps(document))
    home.age(30)
    assert home.run("login", "--print", "--valid-for", "3600")[1] == good, "what is still good is used"
    home.age(-1)
    status, out, err = home.run("login", "--print")
    assert (status, out) == (1, "")
    assert err == "Error: The provider at 127.0.0.1:9 could not be reached: ConnectionRefusedError."
    document["logins"]["default"].update(token_endpoint=f"{home.provider.url}/token", refresh_token="never-given")
    home.file.write_text(json.dumps(document))
    home.age(-1)
    status, out, err = home.run("login", "--print")
    assert (status, out) == (1, "")
    assert err == "Error: The provider does not renew the login default (invalid_grant); run: tidegate login"
    with contextlib.suppress(FileNotFoundError):
        home.file.chmod(0o644)
    assert "others may read it" in home.run("login", "--print")[2]


async def test_the_gate_accepts_what_the_policys_login_prints(home: Home) -> None:
    section = home.provider.section()
    oidc = section["oidc"]
    assert isinstance(oidc, dict)
    identity = [{**section, "oidc": {**oidc, "allowed_clients": ["tg-login"]}}]
    bindings = [{"groups": ["corp:ml-eng"], "roles": ["dev"]}]
    path = policy(home.folder, "http://127.0.0.1:9", identity=identity, bindings=bindings, **few_rules(home.folder))

    def logged_in() -> str:
        with home.start("login", "--policy", str(path), "--identity", "corp", "--no-browser") as process:
            decide(home, lines(process, r"enter the code (\S+)"))
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err
        assert "Logged in at corp as alice" in err
        return home.run("login", "--print", "--identity", "corp")[1]

    access = await asyncio.to_thread(logged_in)
    verifier = Verifier(load(path).identities)
    await verifier.start()
    try:
        caller = await verifier.identify(access, time.time())
        assert isinstance(caller, Caller)
        assert (caller.identity, caller.subject, caller.groups) == ("corp", "alice", frozenset({"corp:ml-eng"}))
    finally:
        await verifier.close()
    missing = await asyncio.to_thread(home.run, "login", "--policy", str(path), "--identity", "crop")
    assert missing[0] == 1
    assert "found 0 OIDC identities to choose from; it has: corp" in missing[2]
