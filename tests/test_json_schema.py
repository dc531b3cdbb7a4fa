"""The schema that editors use says what the readers of a policy say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.e2e.harness import policy
from tidegate.policy.json_schema import schema
from tidegate.policy.schema import SECTIONS

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "rules" / "policy.schema.json"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json.loads(SHIPPED.read_text()))
    return jsonschema.Draft202012Validator(json.loads(SHIPPED.read_text()))


def test_the_shipped_one_is_current() -> None:
    assert json.loads(SHIPPED.read_text()) == schema(), "run: tidegate policy schema > rules/policy.schema.json"


def examples() -> Iterator[Any]:
    for path in (ROOT / "rules" / "policy.yaml", ROOT / "tests" / "data" / "policy.yaml"):
        yield pytest.param(yaml.safe_load(path.read_text()), id=str(path.relative_to(ROOT)))
    for path in sorted((ROOT / "docs").glob("*.md")):
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)):
            try:
                value = yaml.safe_load(block)
            except yaml.YAMLError:
                continue
            own = isinstance(value, dict) and not isinstance(value.get("tokens"), list)  # a file of tokens is no policy
            if own and value.keys() <= set(SECTIONS[""]):
                yield pytest.param(value, id=f"{path.name} {number}")


@pytest.mark.parametrize("value", list(examples()))
def test_every_example_is_valid(validator: jsonschema.Draft202012Validator, value: dict[str, Any]) -> None:
    whole = {"version", "identity", "connections", "inspection"} <= value.keys()
    errors = [each for each in validator.iter_errors(value) if whole or each.validator != "required"]
    assert not errors, [f"{each.json_path}: {each.message}" for each in errors]


def test_the_policy_of_the_tests_is_valid(validator: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    validator.validate(yaml.safe_load(policy(tmp_path, "http://127.0.0.1:9").read_text()))


RULE = {"connections": ["*"], "endpoints": ["*"]}
WRONG = [
    ({"version": 2}, "$.version"),
    ({"mode": "maybe"}, "$.mode"),
    ({"colour": "red"}, "$"),
    ({"identity": "nobody"}, "$.identity"),
    ({"roles": {"r": {"allow": [{**RULE, "model": ["x"]}]}}}, "$.roles.r.allow[0]"),
    ({"roles": {"r": {"allow": [{"connections": ["*"]}]}}}, "$.roles.r.allow[0]"),
    ({"roles": {"r": {"allow": [{**RULE, "max_age": "soon"}]}}}, "$.roles.r.allow[0].max_age"),
    ({"roles": {"r": {"allow": [{**RULE, "modalities": ["smell"]}]}}}, "$.roles.r.allow[0].modalities[0]"),
    ({"roles": {"r": {"allow": [{**RULE, "limits": {"body": "much"}}]}}}, "$.roles.r.allow[0].limits.body"),
    ({"roles": {"R": {"allow": [RULE]}}}, "$.roles"),
    ({"inspection": {"prompt": {"pii": "erase"}, "response": {}}}, "$.inspection.prompt.pii"),
    ({"inspection": {"prompt": {}, "response": {"pii": "tokenise"}}}, "$.inspection.response.pii"),
    ({"connections": [{"name": "a", "dialect": "openai"}]}, "$.connections[0]"),
    ({"limits": {"response": {"idle": "5 minutes"}}}, "$.limits.response.idle"),
]


@pytest.mark.parametrize(("change", "place"), WRONG, ids=[each[1] for each in WRONG])
def test_what_is_wrong_is_marked_where_it_stands(
    validator: jsonschema.Draft202012Validator, change: dict[str, Any], place: str
) -> None:
    sound = yaml.safe_load((ROOT / "tests" / "data" / "policy.yaml").read_text())
    assert place in {each.json_path for each in validator.iter_errors({**sound, **change})}


def test_every_key_is_described(validator: jsonschema.Draft202012Validator) -> None:
    def bare(value: Any, at: str) -> Iterator[str]:
        for name, each in value.get("properties", {}).items():
            if not each.keys() & {"description", "type", "anyOf", "const", "enum"}:
                yield f"{at}.{name}"
            yield from bare(each, f"{at}.{name}")
        for below in (value.get("items"), value.get("additionalProperties"), *value.get("anyOf", ())):
            if isinstance(below, dict):
                yield from bare(below, f"{at}[]")

    assert not list(bare(validator.schema, ""))


def test_editors_find_it_from_the_default_policy() -> None:
    first = (ROOT / "rules" / "policy.yaml").read_text().partition("\n")[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found is not None
    assert (ROOT / "rules" / found[1]).resolve() == SHIPPED
