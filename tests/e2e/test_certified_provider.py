"""Every way to a token of a certified provider, and through a real gate with it: nothing of it goes upstream."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.certified import CALLBACK, Browser, Certified, certified, code_with_pkce, said
from tests.e2e.harness import BIN, Process, Upstream, policy, tidegate_run
from tests.tokens import ec, identity, okp
from tidegate.identity import keys
from tidegate.identity.keys import KeySource
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.e2e

PATH = "/openai/v1/chat/completions"
CHAT = {"model": "sample-small", "messages": [{"role": "user", "content": "hello"}]}
PERSON = {"login": "alice", "password": "pw"}


@dataclass
class Setting:
    idp: Certified
    gate: Process
    upstream: Upstream

    def ask(self, token: str, scheme: str = "Bearer", **headers: str) -> tuple[int, str]:
        """Ask the model; return the status, and the reason of a refusal."""
        with httpx.Client(trust_env=False) as client:
            fields = {"authorization": f"{scheme} {token}", **headers}
            answer = client.post(f"{self.gate.url}{PATH}", json=CHAT, headers=fields, timeout=30)
        return answer.status_code, str(answer.json().get("error", {}).get("code", ""))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("certified")
    with ExitStack() as stack:
        idp = stack.enter_context(certified(folder))
        idp.start()
        upstream = stack.enter_context(Upstream())
        secret = folder / "secret"
        secret.write_text("gate-gate-gate")
        secret.chmod(0o600)
        section = idp.section(
            introspection={"client_id": "gate", "client_secret": f"${{file:{secret}}}"},
            addresses=["https://gate.example.com"],
        )
        path = policy(
            folder, upstream.url, identity=[section], bindings=[{"groups": ["corp:ml-eng"], "roles": ["dev"]}]
        )
        gate = stack.enter_context(tidegate_run(path))
        yield Setting(idp, gate, upstream)


def test_client_credentials(setting: Setting) -> None:
    token = setting.idp.token()
    with openai.OpenAI(base_url=f"{setting.gate.url}/openai/v1", api_key=token, timeout=30, max_retries=0) as client:
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "hello"
    assert token.encode() not in setting.upstream.data


def test_code_with_pkce_and_what_else_comes_with_it(setting: Setting) -> None:
    form = code_with_pkce(
        f"{setting.idp.url}/auth", "tg-cli", CALLBACK, PERSON, scope="openid llm", resource="urn:tidegate"
    )
    found = setting.idp.post("/token", form)
    assert setting.ask(found["access_token"])[0] == 200
    assert setting.ask(found["id_token"])[0] == 401, "an ID token is no access token"
    assert setting.ask(found["refresh_token"])[0] == 401, "nor is a refresh token, though the provider calls it active"


def test_device_flow(setting: Setting) -> None:
    device = setting.idp.post("/device/auth", {"client_id": "tg-cli", "scope": "llm", "resource": "urn:tidegate"})
    Browser().go(device["verification_uri_complete"], PERSON)
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    form = {"grant_type": grant, "device_code": device["device_code"], "client_id": "tg-cli"}
    assert setting.ask(setting.idp.post("/token", form)["access_token"])[0] == 200


def test_an_opaque_token(setting: Setting) -> None:
    token = setting.idp.token("urn:tidegate:opaque")
    assert "." not in token
    assert setting.ask(token)[0] == 200
    assert setting.ask(token)[0] == 200
    assert setting.ask(token[:-4] + "AAAA") == (401, "token_inactive")
    assert token.encode() not in setting.upstream.data


def test_an_opaque_token_that_the_provider_takes_back(setting: Setting) -> None:
    token = setting.idp.token("urn:tidegate:opaque")
    with httpx.Client(trust_env=False) as client:
        done = client.post(
            f"{setting.idp.url}/token/revocation", data={"token": token}, auth=("svc-batch", "s3cret-s3cret")
        )
    assert done.status_code == 200
    assert setting.ask(token) == (401, "token_inactive")


def test_dpop(setting: Setting) -> None:
    key, address = ec(), f"https://gate.example.com{PATH}"
    token = setting.idp.token(key=key)
    first = setting.idp.proof(key, address, token)
    assert setting.ask(token, "DPoP", dpop=first)[0] == 200
    assert setting.ask(token, "DPoP", dpop=first) == (401, "token_proof"), "a proof counts once"
    assert setting.ask(token, "DPoP", dpop=setting.idp.proof(key, address, token))[0] == 200
    assert setting.ask(token) == (401, "token_bound"), "never a bearer token"
    assert setting.ask(token, "Bearer", dpop=setting.idp.proof(key, address, token)) == (401, "token_bound")
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{setting.gate.url}{PATH}", json=CHAT, headers={"x-api-key": token}, timeout=30)
    assert answer.status_code == 401
    assert setting.ask(token, "DPoP") == (401, "token_proof")
    other = setting.idp.proof(key, f"https://gate.example.com{PATH}x", token)
    assert setting.ask(token, "DPoP", dpop=other) == (401, "token_proof")
    for secret in (token, first, "dpop+jwt"):
        assert secret.encode() not in setting.upstream.data
    assert b"dpop" not in setting.upstream.data.lower(), "the proof stops here"


def test_a_token_that_is_taken_back_while_the_gate_runs(setting: Setting) -> None:
    token, other = setting.idp.token(), setting.idp.token()
    assert setting.ask(token)[0] == setting.ask(other)[0] == 200
    words = ("--policy", str(setting.gate.cwd / "policy.yaml"), "--issuer", "corp", "--jti", said(token)["jti"])
    done = subprocess.run([str(BIN / "tidegate"), "revoke", *words], capture_output=True, timeout=60, check=True)
    began = time.monotonic()
    while (found := setting.ask(token)) == (200, ""):
        assert time.monotonic() - began < 10, "another process is seen in a second or two"
        time.sleep(0.1)
    assert found == (401, "token_revoked")
    assert b"Revoked: entry 1." in done.stdout
    assert setting.ask(other)[0] == 200


def test_a_key_that_is_not_the_tokens(setting: Setting) -> None:
    token = setting.idp.token(key=ec())
    stolen = setting.idp.proof(okp(), f"https://gate.example.com{PATH}", token)
    assert setting.ask(token, "DPoP", dpop=stolen) == (401, "token_proof")


def test_no_token_is_recorded_or_logged(setting: Setting) -> None:
    token, opaque = setting.idp.token(), setting.idp.token("urn:tidegate:opaque")
    assert setting.ask(token)[0] == setting.ask(opaque)[0] == 200
    kept = b"".join(each.read_bytes() for each in setting.gate.cwd.glob("*.db*"))
    for secret in (token, opaque, "gate-gate-gate"):
        assert secret.encode() not in kept
        assert secret not in setting.gate.log


def test_a_provider_that_is_down_at_start_and_comes_back(tmp_path: Path) -> None:
    """In a real process: 503 until the provider is there, then 200, and nobody did anything to the gate."""
    with certified(tmp_path) as idp, Upstream() as upstream:
        idp.start()
        early = idp.token()
        idp.stop()
        path = policy(
            tmp_path, upstream.url, identity=[idp.section()], bindings=[{"subjects": ["corp:*"], "roles": ["dev"]}]
        )
        with tidegate_run(path) as gate:
            setting = Setting(idp, gate, upstream)
            assert setting.ask(early) == (503, "idp_unavailable")
            assert upstream.requests == []
            idp.start()
            token = idp.token()  # a new key: the one of ``early`` is gone
            end = time.monotonic() + 90
            while (found := setting.ask(token)[0]) != 200:
                assert found == 503
                assert time.monotonic() < end
                time.sleep(0.5)
            assert setting.ask(early)[0] == 401
            idp.stop()
            assert setting.ask(token)[0] == 200, "keys at hand go on"


async def test_keys_change_and_the_provider_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FLOOR", 0.0)
    with certified(tmp_path) as idp:
        idp.start()
        who = identity(issuer=idp.url, discovery_url=f"{idp.url}/.well-known/openid-configuration", insecure_http=True)
        source = KeySource(who)
        verifier = Verifier([who], [source])
        first = idp.token()
        assert isinstance(await verifier.identify(first, time.time()), Caller)
        idp.stop()
        idp.start()
        second = idp.token()
        assert isinstance(await verifier.identify(second, time.time()), Caller), "the new key is fetched"
        gone: Any = await verifier.identify(first, time.time())
        assert isinstance(gone, Denial), "a key that left the set flushes what was remembered of its tokens"
        assert gone.reason is Reason.KEY_UNKNOWN
        idp.stop()
        await source.refresh()
        assert source.failing
        assert isinstance(await verifier.identify(second, time.time()), Caller)
