"""People of a real SAML provider (nanoidp) sign in at a real gate, and ask a model with the token they are shown."""

from __future__ import annotations

import contextlib
import html
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import SampleModel
from tests.e2e import harness as h
from tests.e2e import provider as idp

pytestmark = pytest.mark.e2e

SAML = """
saml: {{sign_responses: true, default_acs_url: "{url}/acs", export_groups: true, groups_attr_name: groups}}
"""


@dataclass
class House:
    """A gate with its admin listener, and the provider its people sign in at."""

    gate: h.Process
    admin: str
    provider: idp.Provider
    metadata: Path

    def browser(self) -> httpx.Client:
        return httpx.Client(trust_env=False, timeout=30)

    def logs(self, text: str) -> None:
        """Wait for a line of the gate's log, which comes a moment after the answer."""
        end = time.monotonic() + 20
        while text not in self.gate.log:
            assert time.monotonic() < end, self.gate.log
            time.sleep(0.02)

    def learn(self) -> None:
        """Put the provider's present metadata where the policy looks."""
        self.metadata.write_bytes(httpx.get(f"{self.provider.url}/saml/metadata", trust_env=False).content)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, sample_model: SampleModel) -> Iterator[House]:
    tmp_path = tmp_path_factory.mktemp("house")
    port = h.free_port()
    admin = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(idp, "SETTINGS", idp.SETTINGS + SAML)
        provider = stack.enter_context(idp.nanoidp(tmp_path))
        metadata = tmp_path / "adfs.xml"
        found = House(None, admin, provider, metadata)  # type: ignore[arg-type]
        found.learn()
        path = h.policy(
            tmp_path,
            sample_model.url,
            identity=[
                {"name": "adfs", "saml": {"metadata": "adfs.xml", "groups": "groups"}},
                provider.section(),
            ],
            bindings=[{"groups": ["adfs:ml-eng", "corp:ml-eng"], "roles": ["dev"]}],
            admin={"url": admin},
        )
        with h.tidegate_run(path, "--admin", f":{port}") as gate:
            found.gate = gate
            yield found


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of a page's form."""
    fields = {}
    for each in re.findall(r"<input[^>]*>", page):
        found = dict(re.findall(r'(\w+)="([^"]*)"', each))
        if found.get("type") == "hidden" and "name" in found:
            fields[found["name"]] = html.unescape(found.get("value", ""))
    return fields


def sign_in(house: House, browser: httpx.Client, address: str, user: str = "alice") -> httpx.Response:
    """Go from the gate to the provider and back, as a browser would; return the gate's answer to the assertion."""
    to_provider = browser.get(address)
    assert to_provider.status_code == 302, to_provider.text
    back = browser.get(to_provider.headers["location"])
    if "SAMLResponse" not in hidden(back.text):  # else the provider knows the browser already
        fields = {**hidden(back.text), "username": user, "password": "pw"}
        back = browser.post(f"{house.provider.url}/saml/sso", data=fields)
    answer = hidden(back.text)
    assert "SAMLResponse" in answer, back.text[:2000]
    assert f"{house.admin}/saml/acs" in back.text
    return browser.post(f"{house.admin}/saml/acs", data=answer, headers={"origin": house.provider.url})


def shown(house: House, browser: httpx.Client) -> str:
    page = browser.post(f"{house.admin}/saml/finish", data={"answer": "yes"}, headers={"origin": house.admin})
    found = re.search(r'<pre class="token"[^>]*>([^<]+)</pre>', page.text)
    assert found is not None, page.text
    assert page.headers["cache-control"] == "no-store"
    return found[1]


def ask(house: House, token: str) -> str:
    """Ask the model with the real SDK."""
    client = openai.OpenAI(api_key=token, base_url=f"{house.gate.url}/openai/v1", max_retries=0)
    with client:
        answer = client.chat.completions.create(
            model="sample-small", messages=[{"role": "user", "content": "Say hello."}]
        )
    return str(answer.choices[0].message.content)


def test_from_a_sign_in_to_a_model_and_back_to_nothing(house: House) -> None:
    with house.browser() as browser:
        assert sign_in(house, browser, f"{house.admin}/saml/login").status_code == 303
        assert "alice@example.org" in browser.get(f"{house.admin}/saml/finish").text
        token = shown(house, browser)
        assert ask(house, token)
        house.logs('"caller": "adfs:alice@example.org", "connection": "openai"')
        for place in (str(each.url) for each in browser.get(f"{house.admin}/saml/finish").history):
            assert token not in place
        assert token not in house.gate.log

        assert browser.post(f"{house.admin}/revoke", data={"token": token}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            ask(house, token)

    with house.browser() as browser:  # bob is in no group that is bound
        sign_in(house, browser, f"{house.admin}/saml/login", "bob")
        with pytest.raises(openai.PermissionDeniedError):
            ask(house, shown(house, browser))
    assert "Traceback" not in house.gate.log


def test_a_terminal_waits_while_its_user_signs_in(house: House) -> None:
    with house.browser() as browser, house.browser() as terminal:
        given = terminal.post(f"{house.admin}/saml/device").json()
        poll = {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "device_code": given["device_code"],
        }
        assert terminal.post(f"{house.admin}/token", data=poll).json()["error"] == "authorization_pending"
        assert sign_in(house, browser, given["verification_uri_complete"]).status_code == 303
        assert given["user_code"] in browser.get(f"{house.admin}/saml/finish").text
        done = browser.post(f"{house.admin}/saml/finish", data={"answer": "yes"})
        assert "Go back to your terminal" in done.text
        end = time.monotonic() + 20
        while "access_token" not in (got := terminal.post(f"{house.admin}/token", data=poll).json()):
            assert time.monotonic() < end, got
            time.sleep(given["interval"])
        assert ask(house, got["access_token"])


def test_a_token_of_the_provider_is_exchanged(house: House) -> None:
    exchange = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "subject_token": house.provider.token(),
    }
    with house.browser() as client:
        got = client.post(f"{house.admin}/token", data=exchange).json()
        assert ask(house, got["access_token"])
        house.logs('"caller": "corp:alice", "connection": "openai"')
        keys = client.get(f"{house.admin}/jwks").json()["keys"]
        assert [each["alg"] for each in keys] == ["EdDSA"]


def test_the_provider_s_new_certificate_counts_once_its_metadata_is_there(house: House) -> None:
    house.provider.post("/api/keys/rotate")
    with house.browser() as browser:
        refused = sign_in(house, browser, f"{house.admin}/saml/login")
        assert refused.status_code == 403
        assert '"result": "refused", "reason": "signature"' in house.gate.log
        house.learn()
        assert sign_in(house, browser, f"{house.admin}/saml/login").status_code == 303
        assert ask(house, shown(house, browser))
