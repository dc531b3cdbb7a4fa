"""Which header fields cross, and which never do."""

from __future__ import annotations

import pytest

from tidegate import headers


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie", "x-forwarded-user",
        "x-forwarded-for", "x-tidegate-anything", "forwarded", "via", "te", "trailer", "upgrade",
        "http2-settings", "expect",
        "x-http-method-override", "x-amz-security-token", "x-amz-date", "x-amz-content-sha256",
        "accept-encoding", "content-encoding", "transfer-encoding", "content-length", "connection", "keep-alive",
    ],
)  # fmt: skip
def test_what_stays_here(name: str) -> None:
    assert headers.upstream([(name, "x"), ("accept", "y")]) == [("accept", "y")]


@pytest.mark.parametrize(
    "name", ["content-type", "accept", "user-agent", "openai-organization", "anthropic-version", "anthropic-beta"]
)
def test_what_goes_on(name: str) -> None:
    assert headers.upstream([(name, "x")]) == [(name, "x")]


def test_members_of_repeated_fields_come_in_order() -> None:
    fields = [("content-encoding", "gzip, br"), ("other", "x"), ("content-encoding", " , zstd ")]
    assert headers.values(fields, "content-encoding") == ["gzip", "br", "zstd"]
