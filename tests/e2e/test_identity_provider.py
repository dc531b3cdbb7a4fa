"""Tokens of a real OpenID Connect provider: nanoidp, in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.certified import Browser, code_with_pkce
from tests.e2e.provider import Provider, nanoidp
from tidegate.identity import keys
from tidegate.identity.keys import KeySource
from tidegate.identity.verifier import Verifier
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import Introspection

pytestmark = pytest.mark.e2e


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    with nanoidp(tmp_path) as found:
        yield found


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


async def test_every_way_to_a_token(provider: Provider, tmp_path: Path) -> None:
    """Client credentials, code with PKCE, device flow; then the provider is asked about a token instead of its keys."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    asked = replace(provider.identity(), introspection=Introspection("tg-cli", f"${{file:{secret}}}", prefix="ey"))
    signed, opaque = Verifier([provider.identity()]), Verifier([asked])

    def own(**form: str) -> str:
        return str(json.loads(provider.post("/token", **form))["access_token"])

    def code() -> str:
        fields = {"username": "alice", "password": "pw"}
        back = f"{provider.url}/cb"
        return own(**code_with_pkce(f"{provider.url}/authorize", "tg-cli", back, fields, scope="openid"))

    def device() -> str:
        found = json.loads(provider.post("/device_authorization", client_id="tg-cli", scope="openid"))
        fields = {"username": "alice", "password": "pw", "user_code": found["user_code"], "action": "approve"}
        Browser().go(found.get("verification_uri_complete", found["verification_uri"]), fields)
        kind = "urn:ietf:params:oauth:grant-type:device_code"
        return own(grant_type=kind, device_code=found["device_code"], client_id="tg-cli")

    ways = {"client": lambda: own(grant_type="client_credentials"), "code": code, "device": device}
    for name, way in ways.items():
        token = await asyncio.to_thread(way)
        caller = await signed.identify(token, time.time())
        assert isinstance(caller, Caller), (name, caller)
        assert caller.groups == (frozenset() if name == "client" else {"corp:ml-eng"})
        same = await opaque.identify(token, time.time())
        assert isinstance(same, Caller), (name, same)
        assert same.subject == caller.subject
    assert opaque._questions["corp"].asked == len(ways)
    never = await opaque.identify("eyopaque", time.time())
    assert isinstance(never, Denial)
    assert never.reason is Reason.TOKEN_INACTIVE
