from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.model import AnswerLimits, Connection, Denial, Head, Origin, Reason, Route
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy, Unlisted
from tidegate.policy.routing import PATH_BYTES, QUERY_BYTES, Pass, route, routes

DATA = Path(__file__).resolve().parent / "data"
OPENAI = Origin("https", "api.openai.com", 443)
SHARED = Origin("http", "127.0.0.1", 8091)


def connection(name: str, dialect: str, upstream: Origin, prefix: str | None, path: str = "") -> Connection:
    return Connection(name, dialect, upstream, path, prefix, None, 1000, AnswerLimits())


CONNECTIONS = (
    connection("openai", "openai", OPENAI, "/openai"),
    connection("europe", "openai", Origin("https", "eu.example.com", 8443), "/openai/eu", "/base"),
    connection("local", "openai", SHARED, "/local"),
    connection("claude", "anthropic", SHARED, "/claude"),
    connection("deep", "anthropic", SHARED, None, "/deep"),
    connection("google", "gemini", Origin("https", "gemini.example.com", 443), "/google"),
    connection("aws", "bedrock", Origin("https", "aws.example.com", 443), "/aws"),
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    loaded = load(DATA / "policy.yaml")
    return replace(loaded, connections={each.name: each for each in CONNECTIONS}, routes=routes(CONNECTIONS))


def go(policy: Policy, path: str, origin: Origin | None = None, method: str = "POST") -> Route | Pass | Denial:
    return route(policy, Head(method, path, (), origin))


@pytest.mark.parametrize(
    ("path", "method", "name", "endpoint", "upstream"),
    [
        ("/openai/v1/chat/completions", "POST", "openai", "chat", "/v1/chat/completions"),
        ("/openai/chat/completions", "POST", "openai", "chat", "/chat/completions"),
        ("/openai/v1/models", "GET", "openai", "models", "/v1/models"),
        ("/openai/eu/v1/chat/completions", "POST", "europe", "chat", "/base/v1/chat/completions"),
        ("/claude/v1/messages?beta=true", "POST", "claude", "messages", "/v1/messages?beta=true"),
        ("/claude/v1/messages?", "POST", "claude", "messages", "/v1/messages?"),
    ],
)
def test_reverse(policy: Policy, path: str, method: str, name: str, endpoint: str, upstream: str) -> None:
    found = go(policy, path, method=method)
    assert isinstance(found, Route)
    assert (found.connection.name, found.endpoint, found.path) == (name, endpoint, upstream)


@pytest.mark.parametrize(
    ("path", "origin", "name", "upstream"),
    [
        ("/v1/chat/completions", OPENAI, "openai", "/v1/chat/completions"),
        ("/v1/chat/completions", Origin("https", "API.OpenAI.com.", 443), "openai", "/v1/chat/completions"),
        ("/v1/chat/completions", SHARED, "local", "/v1/chat/completions"),
        ("/v1/messages", SHARED, "claude", "/v1/messages"),
        ("/deep/v1/messages", SHARED, "deep", "/deep/v1/messages"),
        ("/base/v1/embeddings", Origin("https", "eu.example.com", 8443), "europe", "/base/v1/embeddings"),
    ],
)
def test_by_origin(policy: Policy, path: str, origin: Origin, name: str, upstream: str) -> None:
    found = go(policy, path, origin)
    assert isinstance(found, Route)
    assert (found.connection.name, found.path) == (name, upstream)


@pytest.mark.parametrize(
    ("path", "origin", "method", "reason", "status"),
    [
        pytest.param("/v1/chat/completions", None, "POST", Reason.NO_CONNECTION, 404, id="no prefix"),
        pytest.param("/openaix/v1/chat/completions", None, "POST", Reason.NO_CONNECTION, 404, id="prefix of a word"),
        pytest.param("/openai", None, "POST", Reason.NO_CONNECTION, 404, id="prefix alone"),
        pytest.param("/openai/v1/uploads", None, "POST", Reason.NO_ENDPOINT, 404, id="unknown endpoint"),
        pytest.param("/openai/v1/chat/completions", None, "PUT", Reason.NO_ENDPOINT, 404, id="other method"),
        pytest.param("/openai/eu/x", None, "POST", Reason.NO_ENDPOINT, 404, id="no fall-back to a shorter prefix"),
        pytest.param("/v1/models", SHARED, "GET", Reason.NO_CONNECTION, 404, id="two connections know it"),
        pytest.param("/v1/messages", OPENAI, "POST", Reason.NO_ENDPOINT, 404, id="other dialect"),
        pytest.param("/v1/x", Origin("https", "evil.example", 443), "POST", Reason.UNLISTED_HOST, 403, id="host"),
        pytest.param("/v1/x", Origin("http", "api.openai.com", 443), "POST", Reason.UNLISTED_HOST, 403, id="scheme"),
        pytest.param("/v1/x", Origin("https", "api.openai.com", 444), "POST", Reason.UNLISTED_HOST, 403, id="port"),
    ],
)
def test_refused(policy: Policy, path: str, origin: Origin | None, method: str, reason: Reason, status: int) -> None:
    found = go(policy, path, origin, method)
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (reason, status)


TRAPS = [
    "",
    "*",
    "v1/chat/completions",
    "http://api.openai.com/v1/chat/completions",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat/../chat/completions",
    "/v1/./chat/completions",
    "/v1/chat/completions/..",
    "/..",
    "/v1/chat%2fcompletions",
    "/v1/chat%2Fcompletions",
    "/v1/chat%5ccompletions",
    "/v1/chat\\completions",
    "/v1/%2e%2e/x",
    "/v1/chat/completions%00",
    "/v1/chat/completions\x00",
    "/v1/chat/completions%0d%0ax",
    "/v1/chat/completions%252f",
    "/v1/chat/completions;x=1",
    "/v1/chat/completions%3bx=1",
    "/v1/chat/completions#x",
    "/v1/chat/completions ",
    "/v1/chat/completions\t",
    "/v1/chat/completions%",
    "/v1/chat/completions%zz",
    "/v1/chàt/completions",
    "/v1/chat/completions?x#y",
    "/v1/chat/completions?x\x00",
    "/v1/chat/completions?x y",
    "/v1/chat/completions?" + "x" * (QUERY_BYTES + 1),
    "/" + "x" * PATH_BYTES,
]


@pytest.mark.parametrize("path", TRAPS)
@pytest.mark.parametrize("prefix", ["", "/openai"], ids=["explicit", "reverse"])
def test_a_path_with_two_readings_is_refused(policy: Policy, path: str, prefix: str) -> None:
    found = go(policy, prefix + path, None if prefix else OPENAI)
    if prefix and path in ("", "*", "v1/chat/completions"):
        assert isinstance(found, Denial)
        return
    if prefix and path.startswith("http:"):
        assert isinstance(found, Denial)
        return
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (Reason.PROTOCOL, 400)


@pytest.mark.parametrize(
    "query", ["key=x", "a=1&api_key=x", "api-key=x", "access_token=x", "TOKEN=x", "apikey=x", "a;key=x"]
)
def test_a_credential_in_the_query_is_refused(policy: Policy, query: str) -> None:
    found = go(policy, f"/openai/v1/chat/completions?{query}")
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (Reason.CALLER_MISSING, 401)


@pytest.mark.parametrize(
    ("path", "origin", "method", "said"),
    [
        ("/v1/models", SHARED, "GET", "several connections of the gateway's policy; use a path of one."),
        ("/other/v1/models", None, "GET", "No connection of the gateway's policy is served under this path."),
    ],
    ids=["an address of several", "a path of none"],
)
def test_no_connection_is_named_before_the_caller_is_known(
    policy: Policy, path: str, origin: Origin | None, method: str, said: str
) -> None:
    found = go(policy, path, origin, method)
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (Reason.NO_CONNECTION, 404)
    assert found.message.endswith(said)
    assert not any(name in found.message for name in policy.connections)


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        (Origin("https", "weather.example", 443), True),
        (Origin("https", "api.openai.com", 8443), False),
        (Origin("http", "api.openai.com", 80), False),
        (Origin("https", "API.openai.com.", 8443), False),
    ],
)
def test_unlisted_pass(policy: Policy, origin: Origin, passes: bool) -> None:
    found = go(replace(policy, unlisted=Unlisted.PASS), "/simple//x;y", origin)
    assert isinstance(found, Pass) is passes
    if isinstance(found, Denial):
        assert found.reason is Reason.UNLISTED_HOST


def test_unlisted_pass_has_no_meaning_on_a_reverse_listener(policy: Policy) -> None:
    found = go(replace(policy, unlisted=Unlisted.PASS), "/x")
    assert isinstance(found, Denial)


@given(st.text(alphabet="/openai.v1chat%2fF;#?\\ \x00completns", max_size=60))
def test_what_is_routed_is_plain(policy: Policy, path: str) -> None:
    found = go(policy, "/openai/" + path)
    if isinstance(found, Route):
        plain = found.path.partition("?")[0]
        assert found.path == "/" + path
        assert not set(plain) & set("%;#\\ \x00")
        assert "//" not in plain
        assert not {".", ".."} & set(plain.split("/"))


@pytest.mark.parametrize(
    ("path", "model", "upstream"),
    [
        ("/google/v1beta/models/g-2:generateContent", "g-2", "/v1beta/models/g-2:generateContent"),
        ("/google/v1/models/g-2:streamGenerateContent?alt=sse", "g-2", "/v1/models/g-2:streamGenerateContent?alt=sse"),
        ("/aws/model/us.a-v1%3A0/converse", "us.a-v1:0", "/model/us.a-v1%3A0/converse"),
        ("/openai/v1/chat/completions", None, "/v1/chat/completions"),
    ],
)
def test_a_path_may_name_the_model(policy: Policy, path: str, model: str | None, upstream: str) -> None:
    found = go(policy, path)
    assert isinstance(found, Route)
    assert (found.model, found.path) == (model, upstream)


REALTIME = {
    "the model": ("model=gpt-realtime", "gpt-realtime"),
    "no model": ("", None),
    "a parameter that is known": ("intent=transcription", None),
    "both": ("intent=x&model=m", "m"),
    "escaped": ("%6Dodel=a%2Eb", "a.b"),
    "another parameter": ("call_id=rtc_1", Reason.PROTOCOL),
    "another parameter beside it": ("model=m&x=1", Reason.PROTOCOL),
    "behind a semicolon": ("model=m;x=1", Reason.PROTOCOL),
    "the model behind a semicolon": ("model=m;model=n", Reason.PROTOCOL),
    "twice": ("model=m&model=m", Reason.PROTOCOL),
    "twice, once escaped": ("model=m&%6Dodel=n", Reason.PROTOCOL),
    "empty": ("model=", Reason.PROTOCOL),
    "odd": ("model=a+b", Reason.PROTOCOL),
    "a path": ("model=a/b", Reason.PROTOCOL),
    "another case": ("Model=m", Reason.PROTOCOL),
}


@pytest.mark.parametrize(("query", "found"), REALTIME.values(), ids=REALTIME.keys())
def test_an_address_may_name_the_model_in_its_query(policy: Policy, query: str, found: str | Reason | None) -> None:
    routed = go(policy, f"/openai/v1/realtime?{query}", method="GET")
    if isinstance(found, Reason):
        assert isinstance(routed, Denial)
        assert routed.reason is found
    else:
        assert isinstance(routed, Route)
        assert (routed.endpoint, routed.model) == ("realtime", found)
        assert routed.path == f"/v1/realtime?{query}"


def test_a_query_means_nothing_to_other_endpoints(policy: Policy) -> None:
    routed = go(policy, "/openai/v1/chat/completions?model=a&model=b")
    assert isinstance(routed, Route)
    assert routed.model is None


CLOSED = {
    "keys": ("/openai/v1/realtime/client_secrets", None, "a key with which a client goes round"),
    "keys, older": ("/openai/v1/realtime/sessions", None, "a key with which a client goes round"),
    "one call": ("/openai/v1/realtime/calls/rtc_1/accept", None, "a WebRTC or SIP call"),
    "explicit": ("/v1/realtime/sessions", OPENAI, "a key with which a client goes round"),
    "of Gemini": ("/google/v1alpha/auth_tokens", None, "a key with which a client goes round"),
    "nothing of the kind": ("/openai/v1/realtime/other", None, "has no endpoint for this method and path"),
}


@pytest.mark.parametrize(("path", "origin", "why"), CLOSED.values(), ids=CLOSED.keys())
def test_what_is_closed_on_purpose_says_why(policy: Policy, path: str, origin: Origin | None, why: str) -> None:
    found = go(policy, path, origin)
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (Reason.NO_ENDPOINT, 404)
    assert why in found.message
