"""The commands for a company's own data, and the policy that names what they made."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tidegate.cli import main
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.model import Action, Direction
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy, PolicyError

ROOT = Path(__file__).resolve().parents[1]
CSV = "id,email,name,account\n1,anna@example.net,Anna Lee,4111 2222 3333\n2,bo@example.net,Bo Ek,5550001112\n"
CODE = "\n".join(f"def step_{n}(first, second):\n    return first * {n} + second - {n * 7}\n" for n in range(30))


def run(*said: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in said], input=stdin)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound policy with a table and documents beside it, and no index yet."""
    shutil.copytree(ROOT / "tests" / "data" / "packs", tmp_path / "packs")
    shutil.copytree(ROOT / "rules" / "dialects", tmp_path / "dialects")
    text = (ROOT / "tests" / "data" / "policy.yaml").read_text().replace("../../rules/dialects", "dialects")
    (tmp_path / "policy.yaml").write_text(text)
    (tmp_path / "customers.csv").write_text(CSV)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "steps.py").write_text(CODE)
    return tmp_path


def policy(folder: Path, *entries: str, classes: str, allow: str = "", response: str | None = None) -> Policy:
    path = folder / "policy.yaml"
    text = path.read_text()
    text = text.replace("pii: redact}", f"pii: redact, {classes}}}").replace(
        "pii: flag}", f"pii: flag, {response or classes}}}"
    )
    text += "  proprietary:\n" + "".join(f"    - {each}\n" for each in entries) if entries else ""
    path.write_text(text + (f"  allow:\n    - {allow}\n" if allow else ""))
    return load(path)


def asked(policy: Policy, text: str) -> str:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    endpoint = policy.dialects["openai"].endpoints["chat"]
    found = inspect_request(endpoint, policy.engine, policy.decide(Direction.PROMPT), body)
    assert isinstance(found, Inspected)
    return found.body.decode()


def index(folder: Path, *said: object) -> Path:
    done = run("rules", "fingerprint", *said, "-o", folder / "customers.edm")
    assert done.exit_code == 0, done.output
    return folder / "customers.edm"


# ── the whole way ────────────────────────────────────────────────────────────


def test_a_table_is_looked_for_in_prompts_and_whole_answers(folder: Path) -> None:
    made = index(folder, folder / "customers.csv", "--columns", "email,name,account")
    for path in (made, made.with_name("customers.edm.key")):
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"Anna" not in path.read_bytes()
    (folder / "customers.csv").unlink()
    loaded = policy(folder, "{edm: customers.edm, class: customer-data}", classes="customer-data: redact")
    assert '"content":"ask [REDACTED:customers] of [REDACTED:customers]"' in asked(
        loaded, "ask ANNA LEE of 4111-22223333"
    )
    assert "ask Anna Bo" in asked(loaded, "ask Anna Bo")
    assert loaded.warnings[-1] == (
        "inspection.response.customer-data is redact, but proprietary.customers looks at whole texts only: "
        "a streamed answer is not searched for it"
    )
    endpoint, decide = loaded.dialects["openai"].endpoints["chat"], loaded.decide(Direction.RESPONSE)
    answer = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"It is Bo Ek."}}]}'
    found = inspect_answer(endpoint, loaded.engine, decide, answer, status=200)
    assert isinstance(found, Inspected)
    assert b"It is [REDACTED:customers]." in found.body


def test_require_documents_and_names(folder: Path) -> None:
    index(folder, folder / "customers.csv", "--columns", "name,account")
    assert run("rules", "fingerprint", "--documents", folder / "src", "-o", folder / "docs.fp").exit_code == 0
    loaded = policy(
        folder,
        "{edm: customers.edm, class: customer-data, require: 2, window: 50}",
        "{documents: docs.fp, name: our-code, class: source-code, threshold: 0.2}",
        classes="customer-data: redact, source-code: redact",
    )
    assert "Anna Lee and" in asked(loaded, "Anna Lee and 5550001112")
    assert "[REDACTED:customers] and" in asked(loaded, "Anna Lee and 411122223333")
    said = asked(loaded, f"Please explain all of this: {' '.join(CODE[:800].split())}")
    assert "Please explain" in said
    assert "[REDACTED:our-code]" in said, "up to three words beside the part may go with it"
    assert "step" not in said
    assert loaded.actions["source-code", Direction.PROMPT] is Action.REDACT


def test_a_canary_is_known_again_in_streams_too(folder: Path) -> None:
    done = run("rules", "canary", "crm-export", "--form", "words", "-o", folder / "canaries.yaml")
    token = done.stdout.strip()
    assert token not in (folder / "canaries.yaml").read_text()
    assert run("rules", "canary", "wiki", "-o", folder / "canaries.yaml").exit_code == 0
    loaded = policy(folder, "{canaries: canaries.yaml, class: canary}", classes="canary: redact")
    assert "see [REDACTED:crm-export]!" in asked(loaded, f"see {token}!")
    assert {"proprietary.crm-export", "proprietary.wiki"} <= {rule.id for rule in loaded.engine.rules}
    assert not any("streamed" in each for each in loaded.warnings)
    again = run("rules", "canary", "wiki", "-o", folder / "canaries.yaml")
    assert again.exit_code == 1
    assert "found a canary named wiki; accepted: each name once" in again.stderr


def test_a_known_false_positive_is_let_through(folder: Path) -> None:
    words = (
        "rules",
        "allow",
        "small.token",
        "--policy",
        folder / "policy.yaml",
        "--reason",
        "a fixture",
        "--author",
        "al",
    )
    out = ("--expires", "2999-01-31", "-o", folder / "allowed.yaml")
    done = run(*words, *out, stdin="the tok_abcdef012345 of our tests\n")
    assert done.exit_code == 0, done.output
    assert "tok_" not in (folder / "allowed.yaml").read_text() + done.output
    loaded = policy(folder, classes="", allow="{file: allowed.yaml}")
    assert asked(loaded, "tok_abcdef012345 tok_abcdef012346").count("tok_abcdef012345 [REDACTED:token]") == 1
    twice = run(*words, *out, stdin="tok_abcdef012345")
    assert "found 0 values; accepted: a text in which small.token finds exactly one value" in twice.stderr


def test_an_expired_value_is_a_finding_and_a_warning(folder: Path) -> None:
    (folder / "allowed.yaml").write_text(
        "version: 1\nallowed:\n"
        f"  - {{rule: small.token, fingerprint: {'a' * 32}, reason: r, author: a, expires: 2020-01-01}}\n"
    )
    (folder / "allowed.yaml.key").write_text("k\n")
    (folder / "allowed.yaml.key").chmod(0o600)
    loaded = policy(folder, classes="", allow="{file: allowed.yaml}")
    assert "allowed.yaml: 1 of 1 known false positives have expired" in loaded.warnings


def test_the_hash_of_the_policy_covers_the_index(folder: Path) -> None:
    index(folder, folder / "customers.csv", "--columns", "name")
    first = policy(folder, "{edm: customers.edm, class: customer-data}", classes="customer-data: flag").sha256
    index(folder, folder / "customers.csv", "--columns", "email")
    assert load(folder / "policy.yaml").sha256 != first


# ── faults ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (CSV, "email,nmae", ":1: found no column 'nmae'; accepted: id, email, name, account"),
        (CSV, "name,name", "--columns: found 2 names; accepted: up to 255, each once"),
        ("a,a\n1,2\n", "a", ":1: found more than one column 'a'; accepted: a, a"),
        ("a,b\nAnna,x\nBo\n", "a,b", ":3: b: found a row of 1 fields; accepted: at least 2"),
        ('a,b\n"Anna Lee\nx', "a", ": found unexpected end of data; accepted: CSV"),
        ("a\nJo\n", "a", "found no value to look for; accepted: a table with values of four characters"),
        ("", "a", ":1: found no column 'a'; accepted: a head line"),
    ],
    ids=["column", "twice", "same", "row", "quote", "empty", "nothing"],
)
def test_what_is_wrong_with_a_table(folder: Path, text: str, columns: str, message: str) -> None:
    (folder / "t.csv").write_text(text)
    done = run("rules", "fingerprint", folder / "t.csv", "--columns", columns, "-o", folder / "t.edm")
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (folder / "t.edm").exists()
    assert "Anna" not in done.output


def wrong_key(folder: Path) -> None:
    index(folder, folder / "customers.csv", "--columns", "name")
    (folder / "customers.edm.key").write_text("another\n")


def open_key(folder: Path) -> None:
    index(folder, folder / "customers.csv", "--columns", "name")
    (folder / "customers.edm.key").chmod(0o644)


def one_column(folder: Path) -> None:
    index(folder, folder / "customers.csv", "--columns", "name")


@pytest.mark.parametrize(
    ("made", "entry", "message"),
    [
        (one_column, "{edm: nowhere.edm, class: c}", "proprietary[0].edm: found {folder}/nowhere.edm: No such file"),
        (wrong_key, "{edm: customers.edm, class: c}", "found a seal that does not fit: another key, or a damaged file"),
        (open_key, "{edm: customers.edm, class: c}", "its mode is 0644; make it 0600 or 0400"),
        (one_column, "{edm: customers.edm, class: c, require: 2}", "found require: 2; accepted: at most the 1 columns"),
        (one_column, "{edm: customers.edm, class: c, threshold: 2}", "found threshold beside edm"),
        (one_column, "{documents: customers.edm, key: secret, class: c}", "found a literal value (not shown)"),
        (
            one_column,
            "{documents: d.fp, threshold: 1.5, class: c}",
            "found 1.5; accepted: a share of the document such as",
        ),
        (one_column, "{edm: a.edm, documents: b.fp, class: c}", "found edm and documents; accepted: exactly one of"),
        (one_column, "{class: c}", "found none of them; accepted: exactly one of edm, documents, canaries"),
    ],
    ids=["missing", "key", "mode", "require", "threshold", "literal", "share", "two", "none"],
)
def test_what_is_wrong_with_an_entry(folder: Path, made: Callable[[Path], None], entry: str, message: str) -> None:
    made(folder)
    with pytest.raises(PolicyError) as caught:
        policy(folder, entry, classes="c: flag")
    assert message.replace("{folder}", str(folder)) in str(caught.value)


def test_a_class_of_one_s_own_needs_an_action(folder: Path) -> None:
    one_column(folder)
    with pytest.raises(PolicyError, match=r"inspection\.prompt\.customer-data: found nothing"):
        policy(folder, "{edm: customers.edm, class: customer-data}", classes="")


def test_faults_of_lists_name_file_and_line(folder: Path) -> None:
    (folder / "allowed.yaml").write_text(
        "version: 1\nallowed:\n  - {rule: small.nothing, fingerprint: abc, reason: r, author: a, expires: soon}\n"
        f"  - {{rule: small.nothing, fingerprint: {'a' * 32}, reason: r, author: a, expires: 2999-01-01}}\n"
    )
    (folder / "allowed.yaml.key").write_text("k\n")
    (folder / "allowed.yaml.key").chmod(0o600)
    with pytest.raises(PolicyError) as caught:
        policy(folder, classes="", allow="{file: allowed.yaml}")
    said = str(caught.value)
    where = folder / "allowed.yaml"
    assert f"{where}:3: allowed[0].fingerprint: found something else; accepted: 32 hexadecimal digits" in said
    assert f"{where}:3: allowed[0].expires: found 'soon'; accepted: a date such as 2027-01-31" in said
    assert f"{where}: small.nothing: found a rule that is not loaded" in said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (("fingerprint", "-o", "x"), "accepted: a table and --columns, or --documents"),
        (("canary", "Bad", "-o", "x"), "accepted: lower-case letters, digits and hyphens, first a letter"),
        (
            ("allow", "a.b", "--reason", "r", "--author", "a", "--expires", "2020-01-01", "-o", "x"),
            "found a date that is over",
        ),
    ],
    ids=["nothing", "name", "over"],
)
def test_what_is_wrong_with_a_command(said: tuple[str, ...], message: str) -> None:
    done = run("rules", *said)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


def test_binary_files_and_short_ones_are_counted(folder: Path) -> None:
    (folder / "src" / "logo.png").write_bytes(io.BytesIO(b"\x89PNG\xff").getvalue())
    (folder / "src" / "short.txt").write_text("a few words")
    (folder / "src" / ".hidden").write_text(CODE)
    done = run("rules", "fingerprint", "--documents", folder / "src", "-o", folder / "docs.fp")
    assert "1 documents" in done.stderr
    assert "left out: 1 files that are not UTF-8 text" in done.stderr
    assert "left out: 1 files of fewer than eight words" in done.stderr
