from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tidegate.inspection.engine import Engine, build
from tidegate.inspection.rules import Rule, Severity, check_examples, parse_pack

ROOT = Path(__file__).resolve().parents[1]
PACKS = sorted((ROOT / "rules" / "packs").glob("*.yaml"))
CORPORA = ROOT.parent / "shared" / "corpora" / "detection"
# First words of the ids of rules that belong to no provider; every other id begins with its provider's name.
NO_PROVIDER = {
    "basic", "bearer", "curl", "database", "generic", "jwt", "netrc", "password", "pgp", "private", "putty", "sk",
    "url",
}  # fmt: skip


def _rules(file: Path) -> tuple[Rule, ...]:
    rules, faults = parse_pack(file.read_text("utf-8"), file.name)
    assert [str(fault) for fault in faults] == []
    return rules


RULES = tuple(rule for file in PACKS for rule in _rules(file))
SECRETS = tuple(rule for rule in RULES if rule.pack == "secrets")


@functools.cache
def _engine(rule_id: str) -> Engine:
    return build([rule for rule in RULES if rule.id == rule_id], None)


@functools.cache
def _pack(name: str) -> Engine:
    return build([rule for rule in RULES if rule.pack == name], None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_finds_its_match_texts_and_leaves_its_pass_texts(rule: Rule) -> None:
    assert [str(fault) for fault in check_examples([rule], _engine(rule.id))] == []


def test_an_id_names_one_rule_in_all_packs() -> None:
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))


def test_the_secrets_pack_covers_at_least_sixty_providers() -> None:
    first = {rule.id.partition(".")[2].split("-")[0] for rule in SECRETS}
    assert first >= NO_PROVIDER
    assert len(first - NO_PROVIDER) >= 60


def test_rules_that_stand_on_a_name_alone_are_milder_than_fixed_formats() -> None:
    mild = {Severity.LOW, Severity.MEDIUM}
    assert {rule.severity for rule in SECRETS if rule.id.startswith("secrets.generic")} <= mild


def test_what_is_no_secret_by_itself_is_only_recorded() -> None:
    assert all(rule.severity is Severity.LOW for rule in SECRETS if rule.observe)


@pytest.mark.parametrize(
    ("text", "rule", "found"),
    [
        ("card 4111 1111 1111 1111 12/26", "pii.card-visa", "4111 1111 1111 1111"),
        ("card 4242424242424242 123", "pii.card-visa", "4242424242424242"),
        ("GB82 WEST 1234 5698 7654 32", "pii.iban", "GB82 WEST 1234 5698 7654 32"),
        ("my SSN is 536 90 4399, call me", "pii.us-ssn-named", "536 90 4399"),
        ("jane.doe@acme-corp.co.uk.", "pii.email", "jane.doe@acme-corp.co.uk"),
        ("Größe: jane@acme.de", "pii.email", "jane@acme.de"),
        ("born on 3 March 1979 in Ulm", "pii.date-of-birth-named", "3 March 1979"),
        ("postgres://app:v3ry-l0ng@db/x", "secrets.database-url", "v3ry-l0ng"),
        ('password = "c0rrect Horse"', "secrets.generic-quoted-secret", None),
        ("DB_PASSWORD=c0rrect-Horse9! # old", "secrets.generic-secret", "c0rrect-Horse9!"),
        ("GITHUB_TOKEN=$TOKEN", "secrets.generic-secret", None),
    ],
)
def test_the_span_is_what_must_go_and_no_more(text: str, rule: str, found: str | None) -> None:
    spans = _engine(rule).find_text(text)
    assert [text[span.start : span.end] for span in spans] == ([] if found is None else [found])


PLACEHOLDERS = """
AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE
aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
GITHUB_TOKEN=ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
export GITHUB_TOKEN="ghp_xxxxxxxx"
OPENAI_API_KEY=sk-...
ANTHROPIC_API_KEY=sk-ant-api03-...
client = OpenAI(api_key="sk-xxxxxxxxxxxxxxxxxxxxxxxx")
api_key: your-api-key-here
"apiKey": "<your-api-key>"
TOKEN=<TOKEN>
token: ${TOKEN}
password = os.environ["DB_PASSWORD"]
password: {{ vault_password }}
DB_PASSWORD=change_me_please
postgresql://user:${PGPASSWORD}@localhost/db
mongodb+srv://<user>:<password>@cluster0.mongodb.net
Authorization: Bearer YOUR_ACCESS_TOKEN
curl -H "X-API-Key: ********" https://x
token = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
STRIPE_KEY=sk_test_xxxxxxxxxxxxxxxxxxxxxxxx
SLACK_TOKEN=xoxb-xxxxxxxxxxxx-xxxxxxxxxxxx-xxxxxxxxxxxxxxxxxxxxxxxx
docker login -u user -p $DOCKER_PASSWORD
kubectl create secret generic x --from-literal=password=<value>
"password": "string"
//registry.acme.test/:_authToken=${NPM_TOKEN}
api_token = "0000000000000000000000000000000000000000"
bugsnag: your-bugsnag-api-key
ops_token = ops_eyJzaWduSW5BZGRyZXNzIjoiaHR0...
<password>${env.PASSWORD}</password>
""".strip().splitlines()


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_what_stands_for_a_secret_in_documentation_passes_the_whole_pack(text: str) -> None:
    assert [span.rule.id for span in _pack("secrets").find_text(text) if not span.rule.observe] == []


def _rows(name: str) -> list[dict[str, object]]:
    path = CORPORA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip("the detection corpora are not beside this checkout")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _fires(engine: Engine, row: dict[str, object], *, at_least: Severity = Severity.LOW) -> bool:
    order = list(Severity)
    spans = engine.find_text(str(row["text"]))
    return any(order.index(span.rule.severity) >= order.index(at_least) for span in spans)


def test_secrets_fire_on_less_than_a_fifth_of_a_percent_of_harmless_texts() -> None:
    rows = _rows("benign_lookalikes")
    engine = _pack("secrets")
    assert sum(_fires(engine, row) for row in rows) / len(rows) <= 0.002
    assert not any(_fires(engine, row, at_least=Severity.HIGH) for row in rows)


@pytest.mark.parametrize(
    ("corpus", "least"),
    [("noseyparker", 0.95), ("titus", 0.95), ("kingfisher", 0.95), ("gitleaks", 0.99), ("detect_secrets", 0.83)],
)
def test_secrets_of_others_collections_are_found(corpus: str, least: float) -> None:
    # What the collections hold beside secrets (public keys, weak words alone, repeated letters) is not meant to fire.
    rows = [row for row in _rows(corpus) if row["expect"]]
    engine = _pack("secrets")
    assert sum(_fires(engine, row) for row in rows) / len(rows) >= least


@pytest.mark.parametrize(
    ("entity", "least"),
    [("CREDIT_CARD", 0.97), ("EMAIL_ADDRESS", 1.0), ("IBAN_CODE", 0.9), ("US_SSN", 1.0), ("PHONE_NUMBER", 0.65)],
)
def test_personal_data_with_a_fixed_form_is_found(entity: str, least: float) -> None:
    engine, hit, seen = _pack("pii"), 0, 0
    for row in _rows("presidio_research"):
        found = engine.find_text(str(row["text"]))
        spans = row.get("spans")
        for span in spans if isinstance(spans, list) else ():
            if span["entity"] == entity:
                seen += 1
                hit += any(each.start <= span["start"] + 1 and each.end >= span["end"] - 1 for each in found)
    assert seen
    assert hit / seen >= least
