from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy_faults import FAULTS
from tidegate.inspection.cache import DiskCache
from tidegate.model import Action, AnswerLimits, Direction, Mode, OnUnknown, Origin, Reason
from tidegate.policy.loading import load
from tidegate.policy.policy import Keep, OidcIdentity, Policy, PolicyError, RecordingMode, StaticIdentity, Unlisted
from tidegate.policy.reader import Reader
from tidegate.policy.schema import SECTIONS, read
from tidegate.policy.source import Node, parse

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
BROKEN = sorted(path.stem.removeprefix("policy-") for path in (DATA / "broken").glob("policy-*.yaml"))


def faults(path: Path) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load(path)
    return [str(fault) for fault in caught.value.faults]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the sound policy with its pack and dialects, to be changed."""
    shutil.copytree(DATA / "packs", tmp_path / "packs")
    shutil.copytree(ROOT / "rules" / "dialects", tmp_path / "dialects")
    text = (DATA / "policy.yaml").read_text().replace("../../rules/dialects", "dialects")
    (tmp_path / "policy.yaml").write_text(text)
    return tmp_path


def change(folder: Path, *pairs: tuple[str, str], more: str = "") -> Policy:
    path = folder / "policy.yaml"
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text + more)
    return load(path)


SCORED = """
pack: hints
class: injection
version: 1
threshold: 0.5
rules:
  - id: hint
    description: A hint
    severity: medium
    score: 0.5
    pattern: 'obey me'
    references: [https://a.test/]
    match: ['obey me', 'so obey me']
    pass: ['x', 'y']
"""
PROMPT, ANSWER = "prompt: {secrets: block, pii: redact}", "response: {secrets: redact, pii: flag}"


def scored(folder: Path, prompt: str, response: str, more: str = "") -> Policy:
    """The sound policy with a pack of hints and these actions for it."""
    (folder / "packs" / "hints.yaml").write_text(SCORED)
    prompt, response = (PROMPT[:-1] + f", {prompt}}}{more}"), (ANSWER[:-1] + f", {response}}}")
    return change(folder, (PROMPT, prompt), (ANSWER, response))


def test_a_scored_class_takes_the_policys_threshold(folder: Path) -> None:
    policy = scored(folder, "injection: flag", "injection: allow", "\n  thresholds: {injection: 0.8}")
    (rule,) = [rule for rule in policy.engine.rules if rule.score is not None]
    assert rule.threshold == 0.8
    assert policy.decide(Direction.PROMPT)(rule) is Action.FLAG
    assert policy.warnings == change(folder, ("injection: 0.8", "injection: 0.7")).warnings


@pytest.mark.parametrize("action", ["flag", "block"])
def test_each_start_says_that_streams_are_not_searched_for_a_scored_class(folder: Path, action: str) -> None:
    policy = scored(folder, "injection: flag", f"injection: {action}")
    assert (
        f"inspection.response.injection is {action}, but the pack hints is scored and looks at whole texts only: "
        "a streamed answer is not searched for it"
    ) in policy.warnings


@pytest.mark.parametrize(
    ("prompt", "more", "message"),
    [
        (
            "injection: redact",
            "",
            (
                "inspection.prompt.injection: found 'redact'; "
                "accepted: allow or flag or block, since a score has no place that could be redacted"
            ),
        ),
        (
            "injection: flag",
            "\n  thresholds: {pii: 1}",
            (
                "inspection.thresholds.pii: found a threshold of another class; "
                "accepted: the classes of scored rules: injection"
            ),
        ),
        (
            "injection: flag",
            "\n  thresholds: {injection: none}",
            "inspection.thresholds.injection: found 'none'; accepted: a number above 0, up to 1",
        ),
        ("injection: flag", "\n  thresholds: 1", "inspection.thresholds: found 1; accepted: a mapping"),
    ],
)
def test_faults_of_scored_classes(folder: Path, prompt: str, more: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        scored(folder, prompt, "injection: allow", more)
    assert [str(fault).partition(": ")[2] for fault in caught.value.faults] == [message]


def test_where_other_rules_of_its_class_are_redacted_a_score_is_flagged(folder: Path) -> None:
    rule = SCORED.replace("threshold: 0.5\n", "").replace("    score: 0.5\n", "").replace("pack: hints", "pack: rest")
    (folder / "packs" / "rest.yaml").write_text(rule)
    policy = scored(folder, "injection: redact", "injection: allow")
    acts = {rule.id: policy.decide(Direction.PROMPT)(rule) for rule in policy.engine.rules if rule.cls == "injection"}
    assert acts == {"hints.hint": Action.FLAG, "rest.hint": Action.REDACT}


EXFIL = """
pack: out
class: exfil
version: 1
rules:
  - id: address
    description: An address
    severity: high
    pattern: 'https://[!-~]{1,200}'
    validators: [url-data]
    references: [https://a.test/]
    match: ['https://a.test/?d=the+user+said+that+he+resigns', 'https://b.test/?d=the+user+said+that+he+resigns']
    pass: ['https://a.test/', 'https://a.test/logo.png']
"""


def test_the_policys_hosts_may_carry_data(folder: Path) -> None:
    (folder / "packs" / "out.yaml").write_text(EXFIL)
    acts = f"{ANSWER[:-1]}, exfil: redact}}"
    policy = change(
        folder,
        (PROMPT, f"{PROMPT[:-1]}, exfil: allow}}"),
        (ANSWER, acts + '\n  hosts: [docs.example.com, "*.wild.test"]'),
    )
    said = "https://{}/?d=the+user+said+that+he+resigns"
    found = {
        host: bool(policy.engine.find_text(said.format(host)))
        for host in ("docs.example.com", "a.wild.test", "evil.test", "docs.example.com@evil.test")
    }
    assert found == {
        "docs.example.com": False, "a.wild.test": False, "evil.test": True, "docs.example.com@evil.test": True,
    }  # fmt: skip


# ── broken policies ──────────────────────────────────────────────────────────


def test_every_broken_policy_has_its_messages() -> None:
    assert sorted(FAULTS) == BROKEN


@pytest.mark.parametrize("name", BROKEN)
def test_broken_policy(name: str) -> None:
    path = DATA / "broken" / f"policy-{name}.yaml"
    expected = [each.replace("FILE", str(path), 1) for each in FAULTS[name]]
    found = faults(path)
    assert found == expected
    assert "verysecret" not in "\n".join(found)


@pytest.mark.parametrize(
    "written",
    [
        "credential: sk-verysecret",
        "credential: [sk-verysecret]",
        "credential: {header: Bearer sk-verysecret, value: '${env:X}'}",
        "credential: {header: x-api-key, value: [sk-verysecret]}",
        "credential: {header: x-api-key, value: '${env:X}sk-verysecret'}",
        "credential: {header: x-api-key, value: 'sk-verysecret${env:X}'}",
        "credential: {header: x-api-key, value: '${sk-verysecret}'}",
        "credential: {header: x-api-key, value: '${exec:sk-verysecret}'}",
        "credential: {header: x-api-key, value: '${file:sk-verysecret}'}",
        "credential: {header: x-api-key, value: '${env:sk-verysecret}'}",
    ],
)
def test_a_misplaced_literal_never_shows(folder: Path, written: str) -> None:
    path = folder / "policy.yaml"
    path.write_text(re.sub("credential: .*", lambda _: written, path.read_text()))
    found = faults(path)
    assert found
    assert "verysecret" not in "\n".join(found)


def test_faults_of_all_files_come_at_once(folder: Path) -> None:
    (folder / "packs" / "bad.yaml").write_text("pack: bad\nclass: secrets\nversion: 1\nrules: []\n")
    (folder / "dialects" / "bad.yaml").write_text("dialect: bad\n")
    (folder / "policy.yaml").write_text((folder / "policy.yaml").read_text() + "bad: 1\n")
    named = {
        message.partition(": ")[0].rpartition("/")[2].partition(":")[0] for message in faults(folder / "policy.yaml")
    }
    assert named == {"policy.yaml", "bad.yaml"}
    assert len([message for message in faults(folder / "policy.yaml") if "dialects/bad.yaml" in message]) > 0
    assert len([message for message in faults(folder / "policy.yaml") if "packs/bad.yaml" in message]) > 0


def test_a_rule_twice_in_two_packs(folder: Path) -> None:
    shutil.copy(folder / "packs" / "small.yaml", folder / "packs" / "zmall.yaml")
    here = folder / "packs"
    assert faults(folder / "policy.yaml") == [
        f"{here}/zmall.yaml: rules[small.{name}]: found an id that {here}/small.yaml has; accepted: each id once"
        for name in ("token", "name")
    ]


def test_a_dialect_twice(folder: Path) -> None:
    shutil.copy(folder / "dialects" / "openai.yaml", folder / "dialects" / "zopenai.yaml")
    assert faults(folder / "policy.yaml") == [
        f"{folder}/dialects/zopenai.yaml: dialect: found a second dialect named openai; accepted: each name once"
    ]


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    assert faults(path) == [f"{path}: the file: found No such file or directory; accepted: a file that can be read"]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"version: \xff")
    assert faults(path) == [
        f"{path}: the file: found bytes that are not UTF-8, or too many; accepted: UTF-8 text up to 4 MiB"
    ]


@given(st.text(alphabet="ab:-[]{}\"'#&*!| \n\t0.\x00", max_size=60))
def test_any_text_is_read_without_an_exception(text: str) -> None:
    root, found = parse(text, "f")
    if root is None:
        assert found
        return
    read(Reader("f"), root)


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "- " * 20_000, "a: \x00", "a: \ud800", "a: b: c", "a: 1\n---\nb: 2", "a: !!x 1"]
)
def test_what_is_not_yaml_is_a_fault(text: str) -> None:
    _, found = parse(text, "f")
    assert len(found) == 1


def test_too_deep() -> None:
    root, found = parse("[" * 30 + "]" * 30, "f")
    assert root is not None
    assert "at most 20 levels" in str(found[0])


# ── sound policies ───────────────────────────────────────────────────────────


def test_sound_policy(folder: Path) -> None:
    policy = load(folder / "policy.yaml")
    assert (policy.mode, policy.unlisted) == (Mode.ENFORCE, Unlisted.DENY)
    assert isinstance(policy.identities[0], OidcIdentity)
    assert policy.identities[0].discovery_url == "https://login.example.com/.well-known/openid-configuration"
    connection = policy.connections["openai"]
    assert (connection.upstream, connection.upstream_path) == (Origin("https", "api.openai.com", 443), "")
    assert connection.credential is not None
    assert "OPENAI_KEY" not in repr(connection)
    assert (connection.request_bytes, connection.answer) == (8 * 2**20, AnswerLimits())
    assert (policy.recording.mode, policy.recording.keep) == (RecordingMode.STRICT, Keep.REDACTED)
    assert policy.recording.path == str(folder / "recordings" / "tidegate.db")
    assert policy.warnings == (
        "these rules only observe: small.name",
        "connection openai: an env: credential can be read by every process of this user",
    )


def test_actions(folder: Path) -> None:
    policy = load(folder / "policy.yaml")
    token, name = policy.engine.rules
    assert policy.actions["pii", Direction.PROMPT] is Action.REDACT
    assert policy.decide(Direction.PROMPT)(token) is Action.BLOCK
    assert policy.decide(Direction.RESPONSE)(token) is Action.REDACT
    assert policy.decide(Direction.PROMPT)(name) is Action.FLAG, "the rule only observes"


def test_observe(folder: Path) -> None:
    policy = change(folder, ("version: 1", "version: 1\nmode: observe"), ("pii: flag", "pii: allow"))
    token, name = policy.engine.rules
    assert policy.decide(Direction.PROMPT)(token) is Action.FLAG
    assert policy.decide(Direction.RESPONSE)(name) is Action.ALLOW
    assert policy.warnings[0] == "mode: observe: findings are recorded, nothing is redacted or blocked"


def test_identity_none(folder: Path) -> None:
    text = re.sub(r"identity:\n.*\n.*\n", "identity: none\n", (folder / "policy.yaml").read_text())
    (folder / "policy.yaml").write_text(text.replace('groups: ["corp:ml-eng"]', 'subjects: ["none:anyone"]'))
    policy = load(folder / "policy.yaml")
    assert policy.identities is None
    assert "identity: none: every client is let in as one anonymous caller" in policy.warnings


def test_limits_of_a_connection_go_over_the_general_ones(folder: Path) -> None:
    policy = change(
        folder,
        (
            "serve: {path: /openai}",
            "serve: {path: /openai}\n    limits: {request: {bytes: 1MiB}, response: {idle: 500ms}}",
        ),
        more="limits: {request: {bytes: 2MB}, response: {bytes: 64KiB, duration: 1m, idle: 30s}}\n",
    )
    connection = policy.connections["openai"]
    assert connection.request_bytes == 2**20
    assert connection.answer == AnswerLimits(bytes=65536, first_byte=60.0, idle=0.5, duration=60.0)


def test_static_paths_are_absolute(folder: Path) -> None:
    text = re.sub(r"    oidc: .*", "    static: {tokens: tokens.yaml}", (folder / "policy.yaml").read_text())
    (folder / "policy.yaml").write_text(text)
    assert load(folder / "policy.yaml").identities == (StaticIdentity("corp", str(folder / "tokens.yaml")),)


def test_sha256_covers_every_file_and_no_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = load(folder / "policy.yaml").sha256
    moved = tmp_path_factory.mktemp("moved") / "copy"
    shutil.copytree(folder, moved)
    assert load(moved / "policy.yaml").sha256 == first
    for name in ("policy.yaml", "packs/small.yaml", "dialects/openai.yaml"):
        path = moved / name
        path.write_text(path.read_text() + "\n# changed\n")
        changed = load(moved / "policy.yaml").sha256
        assert changed != first, name
        first = changed


@pytest.mark.parametrize(
    ("written", "bytes_", "seconds"),
    [
        ("1", 1, None),
        ("512KiB", 524288, None),
        ("4 MiB", 4194304, None),
        ("1GB", 10**9, None),
        ("250ms", None, 0.25),
        ("1.5s", None, 1.5),
        ("10m", None, 600.0),
        ("2h", None, 7200.0),
        ("1d", None, 86400.0),
        ("-1s", None, None),
        ("1e3", None, None),
        ("４MiB", None, None),
        ("0B", None, None),
    ],
)
def test_units(written: str, bytes_: int | None, seconds: float | None) -> None:
    reader = Reader("f")
    assert reader.bytes(Node("k", 1, written)) == bytes_
    assert reader.seconds(Node("k", 1, written)) == seconds


# ── what is shipped ──────────────────────────────────────────────────────────


def test_default_policy_needs_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache()
    monkeypatch.setattr("os.environ", {})
    policy = load(ROOT / "rules" / "policy.yaml", engine_cache=cache)
    assert policy.mode is Mode.ENFORCE
    assert {connection.upstream for connection in policy.connections.values()} == {Origin("http", "127.0.0.1", 8091)}
    assert all(connection.credential is None for connection in policy.connections.values())
    assert policy.identities == (StaticIdentity("local", str(ROOT / "rules" / "tokens.yaml")),)
    assert policy.permissions.groups == {"local:dev": ("developer",)}
    assert policy.warnings[0].startswith("these rules only observe: ")
    assert re.fullmatch(r"[^,]+(, [^,]+){4} and \d+ more \(tidegate rules list tells\)", policy.warnings[0])


def documented() -> set[str]:
    """Read the keys that docs/policy.md lists: the first column of its tables."""
    text = (ROOT / "docs" / "policy.md").read_text()
    tables = text.replace("| `${", "| ")  # the references are no keys
    return set(re.findall(r"^\| `([^`]+)` \|", tables, re.MULTILINE))


def keys(sections: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {f"{section}.{key}".removeprefix(".") for section, names in sections.items() for key in names}


@pytest.mark.parametrize(
    ("general", "own", "runs"),
    [(None, None, 0), ("1KiB", None, 1024), ("1KiB", "256B", 256), ("1KiB", "none", 0), (None, "64B", 64)],
)
def test_a_connection_says_for_itself_how_long_encoded_runs_wait(
    folder: Path, general: str | None, own: str | None, runs: int
) -> None:
    place = "    serve: {path: /openai}\n"
    said = place if own is None else f"{place}    encoded_runs: {own}\n"
    whole = "inspection:\n" if general is None else f"inspection:\n  encoded_runs: {general}\n"
    assert change(folder, (place, said), ("inspection:\n", whole)).connections["openai"].encoded_runs == runs


@pytest.mark.parametrize("rule", OnUnknown)
def test_what_a_connection_does_with_what_cannot_be_inspected(folder: Path, rule: OnUnknown) -> None:
    assert load(folder / "policy.yaml").connections["openai"].on_unknown is OnUnknown.BLOCK
    policy = change(folder, ("    serve: {path: /openai}\n", f"    serve: {{path: /openai}}\n    on_unknown: {rule}\n"))
    assert policy.connections["openai"].on_unknown is rule
    warning = f"connection openai: on_unknown: {rule}: what cannot be inspected is sent to the model"
    assert (warning in policy.warnings) is (rule is not OnUnknown.BLOCK)


def test_every_key_is_documented() -> None:
    assert documented() == keys(SECTIONS)


def test_the_document_s_example_loads(folder: Path) -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    example = re.search(r"```yaml\n(version: 1\n.*?)```", text, re.DOTALL)
    assert example is not None
    (folder / "policy.yaml").write_text(example[1])
    load(folder / "policy.yaml")


def test_every_reason_of_a_token_is_documented() -> None:
    text = (ROOT / "docs" / "identity.md").read_text()
    named = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    prefixes = ("caller_", "token_", "key_", "groups_", "idp_")
    assert named == {reason.value for reason in Reason if reason.value.startswith(prefixes)}


def test_where_the_control_store_is(folder: Path) -> None:
    policy = load(folder / "policy.yaml")
    assert (policy.state.path, policy.state.retain) == (str(folder / "recordings" / "control.db"), 400 * 86400)
    policy = change(folder, more="state: {path: a/b.db, retain: 30d}\n")
    assert (policy.state.path, policy.state.retain) == (str(folder / "a" / "b.db"), 30 * 86400)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{path: recordings/tidegate.db}", "state.path: found the file of the recording; accepted: a file of its own"),
        ("{path: .}", "state.path: found a directory; accepted: the path of an SQLite file"),
        ("{path: 5}", "state.path: found 5; accepted: the path of an SQLite file"),
        ("{retain: 5}", "state.retain: found 5; accepted: "),
        ("{keep: 5d}", "state.keep: found an unknown key; accepted: the keys path, retain"),
        ("[]", "state: found a list; accepted: "),
    ],
)
def test_a_control_store_that_cannot_be(folder: Path, state: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        change(folder, more=f"state: {state}\n")
    assert [message in str(each) for each in caught.value.faults] == [True]


def test_callers_that_nobody_tells_apart_share_what_they_store_and_the_start_says_so(folder: Path) -> None:
    path = folder / "policy.yaml"
    text = re.sub(r"identity:\n.*\n.*\n", "identity: none\n", path.read_text())
    path.write_text(re.sub(r"bindings:\n.*\n", 'bindings:\n  - {subjects: ["none:anyone"], roles: [engineer]}\n', text))
    assert not [each for each in load(path).warnings if "is stored" in each]
    path.write_text(path.read_text().replace("endpoints: [chat", "endpoints: [responses, threads, chat"))
    shared = "whatever is stored through responses, threads belongs to everybody who reaches this port"
    assert f"connection openai: identity: none: {shared}" in load(path).warnings
