from __future__ import annotations

import fnmatch
import re
import timeit
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.identity.permission import admit, matches, permit
from tidegate.model import AllowRule, Asked, Caller, Denial, DenyRule, Grant, Reason, Route
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy

DATA = Path(__file__).resolve().parent / "data"
ROLES = """
roles:
  engineer:
    allow:
      - {connections: [openai], endpoints: [chat, embeddings], models: ["gpt-*"], limits: {max_output_tokens: 100}}
      - {connections: [openai], endpoints: [chat], models: ["o1"], limits: {body: 1KiB}}
    deny:
      - {models: ["*-preview"]}
      - {tools: [bash, "computer_*"]}
  tester:
    allow:
      - {connections: ["*"], endpoints: [models]}
      - {connections: [openai], endpoints: [chat], models: ["gpt-4*"], limits: {max_output_tokens: 50, tools: [search]}}
  banned:
    deny:
      - {connections: [openai], endpoints: [chat]}
  lister:
    allow:
      - {connections: ["*"], endpoints: ["*"], models: ["gpt-*"]}
    deny:
      - {models: ["*-preview"]}
  unlisted:
    deny:
      - {endpoints: [models]}
  odd:
    allow:
      - {connections: ["*"], endpoints: ["*"]}
    deny:
      - {endpoints: [chat], models: ["gpt-4"], tools: [search]}
bindings:
  - {groups: ["corp:ml-eng"], roles: [engineer]}
  - {groups: ["corp:test", "corp:more"], roles: [tester]}
  - {groups: ["corp:bad"], roles: [banned]}
  - {groups: ["corp:odd"], roles: [odd]}
  - {groups: ["corp:lister"], roles: [lister]}
  - {groups: ["corp:unlisted"], roles: [unlisted]}
  - {subjects: ["corp:robot"], roles: [tester]}
  - {subjects: ["ci:*"], roles: [odd]}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("policy")
    text = (DATA / "policy.yaml").read_text()
    text = re.sub(r"roles:\n.*?packs: .*?\n", lambda _: ROLES, text, flags=re.DOTALL)
    text = text.replace("connections:", "  - name: ci\n    static: {tokens: t.yaml}\nconnections:", 1)
    text = text.replace("../../rules/dialects/*.yaml", "dialects/*.yaml")
    (folder / "policy.yaml").write_text(text)
    (folder / "packs").symlink_to(DATA / "packs")
    (folder / "dialects").symlink_to(DATA.parents[1] / "rules" / "dialects")
    return load(folder / "policy.yaml")


def caller(*groups: str, subject: str = "alice", identity: str = "corp") -> Caller:
    return Caller(identity, subject, frozenset(groups))


def at(policy: Policy, endpoint: str = "chat") -> Route:
    return Route(policy.connections["openai"], endpoint, "/v1/x")


def asked(model: str | None = "gpt-4", tools: tuple[str, ...] = (), output: int | None = 10) -> Asked:
    return Asked(model, stream=False, tools=tools, max_output=output)


def decide(policy: Policy, who: Caller, what: Asked, endpoint: str = "chat") -> Grant | Denial:
    grant = admit(policy, at(policy, endpoint), who)
    return grant if isinstance(grant, Denial) else permit(grant, what)


ENGINEER, TESTER = caller("corp:ml-eng"), caller("corp:test")
CASES = [
    pytest.param(ENGINEER, "chat", asked(), None, id="allowed"),
    pytest.param(ENGINEER, "chat", asked("o1", output=None), None, id="by the second rule"),
    pytest.param(caller(), "chat", asked(), Reason.NOT_GRANTED, id="no groups"),
    pytest.param(caller("ml-eng"), "chat", asked(), Reason.NOT_GRANTED, id="group without its identity"),
    pytest.param(caller("evil:ml-eng", identity="evil"), "chat", asked(), Reason.NOT_GRANTED, id="group of another"),
    pytest.param(ENGINEER, "responses", asked(), Reason.NOT_GRANTED, id="other endpoint"),
    pytest.param(ENGINEER, "embeddings", asked("o1"), Reason.MODEL_DENIED, id="allows do not add up"),
    pytest.param(ENGINEER, "chat", asked("claude-4"), Reason.MODEL_DENIED, id="other model"),
    pytest.param(ENGINEER, "chat", asked("GPT-4"), Reason.MODEL_DENIED, id="other spelling is another model"),
    pytest.param(ENGINEER, "chat", asked("gpt-4 "), Reason.MODEL_DENIED, id="model with a space"),
    pytest.param(ENGINEER, "chat", asked("gpt-" + "x" * 300), Reason.MODEL_DENIED, id="model too long"),
    pytest.param(ENGINEER, "chat", asked("gpt-\u0430"), Reason.MODEL_DENIED, id="model with look-alike letter"),
    pytest.param(ENGINEER, "chat", asked(""), Reason.MODEL_DENIED, id="model empty"),
    pytest.param(ENGINEER, "chat", asked(None), Reason.MODEL_DENIED, id="model missing"),
    pytest.param(ENGINEER, "chat", asked("gpt-5-preview"), Reason.MODEL_DENIED, id="deny wins"),
    pytest.param(ENGINEER, "chat", asked("gpt-5-PREVIEW"), Reason.MODEL_DENIED, id="deny in any case"),
    pytest.param(ENGINEER, "chat", asked(tools=("bash",)), Reason.TOOL_DENIED, id="tool denied"),
    pytest.param(ENGINEER, "chat", asked(tools=("ok", "Computer_use")), Reason.TOOL_DENIED, id="one of the tools"),
    pytest.param(ENGINEER, "chat", asked(tools=("ba sh",)), Reason.TOOL_DENIED, id="tool that is no name"),
    pytest.param(ENGINEER, "chat", asked(tools=("search",)), None, id="tool allowed"),
    pytest.param(ENGINEER, "chat", asked(output=100), None, id="tokens at the limit"),
    pytest.param(ENGINEER, "chat", asked(output=101), Reason.OUTPUT_LIMIT, id="tokens above it"),
    pytest.param(ENGINEER, "chat", asked(output=None), Reason.OUTPUT_LIMIT, id="tokens not given"),
    pytest.param(ENGINEER, "embeddings", asked("gpt-e", output=None), None, id="no tokens on this endpoint"),
    pytest.param(TESTER, "chat", asked(tools=("search",)), None, id="tool in the list"),
    pytest.param(TESTER, "chat", asked(tools=("search", "x")), Reason.TOOL_DENIED, id="tool not in the list"),
    pytest.param(TESTER, "chat", asked("gpt-4 x"), Reason.MODEL_DENIED, id="no name, and no deny rule"),
    pytest.param(TESTER, "chat", asked("gpt-4\n"), Reason.MODEL_DENIED, id="name with a line break"),
    pytest.param(TESTER, "models", asked(None), None, id="no model where no rule asks"),
    pytest.param(caller("corp:test", "corp:ml-eng"), "chat", asked(output=60), Reason.OUTPUT_LIMIT, id="tightest"),
    pytest.param(caller("corp:test", "corp:ml-eng"), "chat", asked("gpt-5", output=60), None, id="of those that match"),
    pytest.param(caller("corp:ml-eng", "corp:bad"), "chat", asked(), Reason.NOT_GRANTED, id="deny of another role"),
    pytest.param(caller("corp:bad"), "chat", asked(), Reason.NOT_GRANTED, id="only denied"),
    pytest.param(caller("corp:ml-eng", "corp:bad"), "embeddings", asked("gpt-e"), None, id="deny elsewhere"),
    pytest.param(caller("corp:lister"), "models", asked(None), None, id="a list names no model"),
    pytest.param(caller("corp:lister"), "chat", asked(None), Reason.MODEL_DENIED, id="but a chat has to"),
    pytest.param(caller("corp:lister"), "chat", asked("o1"), Reason.MODEL_DENIED, id="of those of the rule"),
    pytest.param(caller("corp:lister", "corp:unlisted"), "models", asked(None), Reason.NOT_GRANTED, id="list denied"),
    pytest.param(caller(subject="robot"), "models", asked(None), None, id="by subject"),
    pytest.param(caller(subject="robot2"), "models", asked(None), Reason.NOT_GRANTED, id="other subject"),
    pytest.param(caller(subject="any", identity="ci"), "chat", asked("x"), None, id="every subject of an identity"),
    pytest.param(caller("corp:odd"), "chat", asked("gpt-4", ("search",)), Reason.TOOL_DENIED, id="model and tool"),
    pytest.param(caller("corp:odd"), "chat", asked("gpt-4"), None, id="model without the tool"),
    pytest.param(caller("corp:odd"), "chat", asked("gpt-5", ("search",)), None, id="tool without the model"),
    pytest.param(caller("corp:odd"), "chat", asked(None, ("search",)), Reason.TOOL_DENIED, id="tool, model unknown"),
]


@pytest.mark.parametrize(("who", "endpoint", "what", "expected"), CASES)
def test_decisions(policy: Policy, who: Caller, endpoint: str, what: Asked, expected: Reason | None) -> None:
    found = decide(policy, who, what, endpoint)
    assert (found.reason if isinstance(found, Denial) else None) == expected
    if isinstance(found, Denial):
        assert found.status == 403


def test_deny_on_model_alone_denies_an_unknown_model(policy: Policy) -> None:
    grant = admit(policy, at(policy), ENGINEER)
    assert isinstance(grant, Grant)
    open_grant = replace(grant, allows=(AllowRule("r", None, None, None, None),), denies=(DenyRule("r", ("x",), None),))
    found = permit(open_grant, asked(None))
    assert isinstance(found, Denial)
    assert found.reason is Reason.MODEL_DENIED


def test_limits_widest_before_the_body_and_tightest_after(policy: Policy) -> None:
    grant = admit(policy, at(policy), ENGINEER)
    assert isinstance(grant, Grant)
    assert (grant.request_bytes, grant.max_output_tokens, grant.roles) == (8 * 2**20, None, ("engineer",))
    small = permit(grant, asked("o1"))
    assert isinstance(small, Grant)
    assert (small.request_bytes, small.max_output_tokens) == (1024, None)
    wide = permit(grant, asked("gpt-4"))
    assert isinstance(wide, Grant)
    assert (wide.request_bytes, wide.max_output_tokens, len(wide.allows)) == (8 * 2**20, 100, 1)


def test_messages_are_whole_sentences_without_what_was_asked(policy: Policy) -> None:
    for who, endpoint, what, expected in (case.values for case in CASES):
        found = decide(policy, who, what, endpoint)
        if expected is None or not isinstance(found, Denial):
            continue
        assert found.message.endswith(".")
        assert not what.model or what.model not in found.message


# ── an oracle: the same semantics, written the slow and obvious way ──────────

MODELS, TOOLS = ["m1", "m2", "n1"], ["t1", "t2"]
PATTERNS = st.sampled_from(["*", "m*", "m1", "n1", "*2"])
ALLOWS = st.builds(
    AllowRule,
    role=st.just("r"),
    models=st.none() | st.tuples(PATTERNS),
    tools=st.none() | st.tuples(st.sampled_from(["*", "t1"])),
    max_output_tokens=st.none() | st.integers(1, 3),
    body=st.none() | st.integers(1, 3),
)
DENIES = st.builds(
    DenyRule, role=st.just("r"), models=st.none() | st.tuples(PATTERNS), tools=st.tuples(st.sampled_from(["t*", "t2"]))
)
ASKED = st.builds(
    Asked,
    model=st.none() | st.sampled_from(MODELS),
    stream=st.just(value=False),
    tools=st.lists(st.sampled_from(TOOLS), max_size=2, unique=True).map(tuple),
    max_output=st.none() | st.integers(1, 4),
)


def oracle(allows: list[AllowRule], denies: list[DenyRule], what: Asked) -> bool:
    def any_of(patterns: tuple[str, ...], name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    for rule in denies:
        on_model = rule.models is None or what.model is None or any_of(rule.models, what.model)
        if on_model and any(any_of(rule.tools or (), tool) for tool in what.tools):
            return False
    covering = [r for r in allows if r.models is None or (what.model is not None and any_of(r.models, what.model))]
    return bool(covering) and all(
        (rule.tools is None or all(any_of(rule.tools, tool) for tool in what.tools))
        and (rule.max_output_tokens is None or (what.max_output or 99) <= rule.max_output_tokens)
        for rule in covering
    )


@given(st.lists(ALLOWS, max_size=4), st.lists(DENIES, max_size=2), ASKED)
def test_against_the_oracle(policy: Policy, allows: list[AllowRule], denies: list[DenyRule], what: Asked) -> None:
    grant = Grant(at(policy), ENGINEER, ("r",), tuple(allows), tuple(denies), None, 100)
    assert isinstance(permit(grant, what), Grant) is oracle(allows, denies, what)
    assert isinstance(permit(replace(grant, allows=tuple(reversed(allows))), what), Grant) is oracle(
        allows, denies, what
    )


@given(st.text(alphabet="ab*", max_size=6), st.text(alphabet="ab", max_size=8))
def test_matches_is_a_glob(pattern: str, name: str) -> None:
    assert matches(pattern, name) is bool(re.fullmatch(pattern.replace("*", ".*"), name))


def test_a_pattern_cannot_be_made_slow() -> None:
    assert timeit.timeit(lambda: matches("*a" * 40 + "b", "a" * 256), number=10) < 0.1


def test_a_decision_takes_microseconds(policy: Policy) -> None:
    what = asked()
    best = min(timeit.repeat(lambda: decide(policy, ENGINEER, what), number=200, repeat=5)) / 200
    assert best < 1e-3  # about 8 us; the margin is for a busy core and for coverage's tracing
