from __future__ import annotations

import datetime as dt
import hashlib
import os
import stat
from pathlib import Path

import pytest

from tidegate.identity.static import PREFIX, StaticTokens, create, read
from tidegate.model import Caller, Denial, Reason
from tidegate.policy.policy import PolicyError, StaticIdentity

NOW = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
HASH = hashlib.sha256(b"tg_x").hexdigest()
GOOD = f"tokens:\n- {{name: a, sha256: {HASH}, groups: [dev], created: '2026-01-01T00:00:00Z'}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def identify(path: Path, token: str, now: dt.datetime = NOW) -> Caller | Denial:
    return StaticTokens(StaticIdentity("local", str(path))).identify(token, now.timestamp())


def messages(path: Path) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        read(path)
    return [str(fault).removeprefix(str(path)) for fault in caught.value.faults]


def test_create_and_identify(path: Path) -> None:
    token = create(path, "laptop", ["dev", "ops"])
    assert token.startswith(PREFIX)
    assert len(token) == 46
    assert identify(path, token) == Caller("local", "laptop", frozenset({"local:dev", "local:ops"}), None)


def test_the_file_holds_no_token_and_is_private(path: Path) -> None:
    token = create(path, "laptop", ["dev"])
    text = path.read_text()
    assert token not in text
    assert token[len(PREFIX) :] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["tokens.yaml"], "nothing temporary is left"


def test_several_tokens_and_an_end(path: Path) -> None:
    first = create(path, "one", [])
    second = create(path, "two", ["dev"], NOW)
    assert isinstance(identify(path, first), Caller)
    assert isinstance(identify(path, second, NOW - dt.timedelta(seconds=1)), Caller)
    ended = identify(path, second, NOW)
    assert isinstance(ended, Denial)
    assert ended.reason is Reason.TOKEN_EXPIRED


def test_a_name_twice(path: Path) -> None:
    create(path, "one", [])
    with pytest.raises(PolicyError, match="name: found a token named one; accepted: each name once"):
        create(path, "one", [])


@pytest.mark.parametrize("name", ["", "Has Space", "-x"])
def test_a_name_that_is_none(path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match="accepted: a name of lower-case letters"):
        create(path, name, [])
    assert not path.exists()


def test_a_group_with_an_identity(path: Path) -> None:
    with pytest.raises(PolicyError, match="found 'local:dev'; accepted: a group without the identity's name"):
        create(path, "one", ["local:dev"])


@pytest.mark.parametrize("token", ["tg_", "tg_wrong", "", "tg_" + "x" * 43, "tg_\udc80"])
def test_unknown_tokens(path: Path, token: str) -> None:
    create(path, "one", [])
    found = identify(path, token)
    assert isinstance(found, Denial)
    assert (found.reason, found.status) == (Reason.TOKEN_UNKNOWN, 401)


def test_a_long_token_is_not_hashed(path: Path) -> None:
    found = identify(path, "tg_" + "x" * 1000)
    assert isinstance(found, Denial)
    assert found.reason is Reason.TOKEN_TOO_LARGE


def test_no_file_means_no_tokens(path: Path) -> None:
    assert read(path) == ()
    assert isinstance(identify(path, "tg_x"), Denial)


def test_a_change_is_seen(path: Path) -> None:
    tokens = StaticTokens(StaticIdentity("local", str(path)))
    first = create(path, "one", [])
    assert isinstance(tokens.identify(first, 0), Caller)
    second = create(path, "two", [])
    assert isinstance(tokens.identify(second, 0), Caller)
    path.unlink()
    assert isinstance(tokens.identify(first, 0), Denial)


def test_a_file_at_fault_accepts_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = StaticTokens(StaticIdentity("local", str(path)))
    token = create(path, "one", [])
    assert isinstance(tokens.identify(token, 0), Caller)
    write(path, path.read_text() + "\nmore: 1\n")
    assert isinstance(tokens.identify(token, 0), Denial)
    assert "no static token is accepted" in caplog.text
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        pytest.param(GOOD, 0o600, [], id="sound"),
        pytest.param(
            GOOD,
            0o640,
            [": the file: found mode 0640; accepted: mode 0600, so that only its owner reads it"],
            id="mode",
        ),
        pytest.param("", 0o600, [": the file: found nothing; accepted: a mapping"], id="empty"),
        pytest.param("tokens: 1", 0o600, [":1: tokens: found 1; accepted: a list"], id="no list"),
        pytest.param(
            GOOD.replace(HASH, "tg_secret"),
            0o600,
            [":2: tokens[0].sha256: found something else (not shown); accepted: 64 hexadecimal digits"],
            id="a token in the place of its hash",
        ),
        pytest.param(
            GOOD + GOOD.partition("\n")[2],
            0o600,
            [":3: tokens[1]: found a second token of this name or hash; accepted: each name and hash once"],
            id="twice",
        ),
        pytest.param(
            GOOD.replace("}", ", expires: tomorrow}"),
            0o600,
            [":2: tokens[0].expires: found 'tomorrow'; accepted: a moment such as 2027-01-31T00:00:00Z"],
            id="expires",
        ),
        pytest.param(
            GOOD.replace("}", ", expires: 2027-01-31T00:00:00}"),
            0o600,
            [":2: tokens[0].expires: found '2027-01-31T00:00:00'; accepted: a moment such as 2027-01-31T00:00:00Z"],
            id="expires without a zone",
        ),
        pytest.param(
            GOOD.replace("groups", "group"),
            0o600,
            [
                ":2: tokens[0].group: found an unknown key; accepted: the keys name, sha256, groups, created, expires",
                ":2: tokens[0].groups: found nothing; accepted: a list of groups",
            ],
            id="unknown key",
        ),
    ],
)
def test_files(path: Path, text: str, mode: int, expected: list[str]) -> None:
    write(path, text, mode)
    if not expected:
        assert read(path)[0].name == "a"
    else:
        assert messages(path) == expected


def test_not_utf8(path: Path) -> None:
    path.write_bytes(b"\xff")
    path.chmod(0o600)
    assert messages(path) == [": the file: found nothing; accepted: a mapping"]


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(path, "one", [])
    before = path.read_text()

    def broken(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        create(path, "two", [])
    assert path.read_text() == before
    assert [each.name for each in path.parent.iterdir()] == ["tokens.yaml"]


def test_a_hash_never_shows(path: Path) -> None:
    create(path, "one", [])
    entry = read(path)[0]
    assert entry.sha256 not in repr(entry)
