"""What a request costs: estimates, what answers tell, prices, what a client is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded import rows
from tests.wire import RECORDED, always, dialect
from tidegate import spending, steps
from tidegate.crossing import Crossing
from tidegate.dialects.counting import RATE_HEADERS
from tidegate.dialects.errors import GENERIC, GRPC, render
from tidegate.endings import CLIENT_GONE, UPSTREAM_FAILED, limit
from tidegate.identity.permission import admit, matches, permit
from tidegate.inspection.engine import build
from tidegate.limits import rate_fields
from tidegate.limits.budgets import UNIT, Limit, Metric, Order, Per, Refused, Standing
from tidegate.limits.usage import Meter, Usage, of_body
from tidegate.model import Action, Asked, Caller, Denial, Finding, Head, OnUnknown, Outcome, Reason, Route
from tidegate.policy.budgets import parse_prices
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy, PolicyError
from tidegate.steps import Stage
from tidegate.streams.answers import AnswerHead, StreamedAnswer

NO_RULES = build((), None)
DATA = Path(__file__).resolve().parent / "data"
NAMES = "a list of names in which * stands for any text"
A_PRICE = "a number, the price of a million tokens, such as 2.50, with at most six decimals"
ROLES = """
roles:
  engineer:
    allow:
      - {connections: [openai], endpoints: [chat, files, models], limits: {budgets: [people, groups]}}
      - {connections: [openai], endpoints: [embeddings]}
  dear:
    allow:
      - {connections: [openai], endpoints: ["*"], limits: {budgets: [money]}}
bindings:
  - {groups: ["corp:ml-eng", "corp:ml"], roles: [engineer]}
  - {groups: ["corp:dear"], roles: [dear]}
budgets:
  people: {requests: 100/1m, tokens: 10_000/1h, concurrent: 3, answer: 50}
  groups: {per: [group, model], requests: 1000/1d}
  money: {per: everyone, spend: 0.5/2d}
  unused: {requests: 1/1s}
prices: prices.yaml
packs: [packs/*.yaml]
"""
PRICES = """\
version: 1
currency: EUR
models:
  - {models: ["gpt-4*"], input: 2.5, cached: 1.25, output: 10}
  - {models: ["*-free"], input: 0, output: 0}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("policy")
    text = (DATA / "policy.yaml").read_text()
    text = re.sub(r"roles:\n.*?packs: .*?\n", lambda _: ROLES, text, flags=re.DOTALL)
    (folder / "policy.yaml").write_text(text.replace("../../rules/dialects/*.yaml", "dialects/openai.yaml"))
    (folder / "prices.yaml").write_text(PRICES)
    (folder / "packs").symlink_to(DATA / "packs")
    (folder / "dialects").symlink_to(DATA.parents[1] / "rules" / "dialects")
    return load(folder / "policy.yaml")


def ordered(
    policy: Policy, *groups: str, endpoint: str = "chat", model: str | None = "gpt-4", most: int | None = None
) -> Order | Denial | None:
    route = Route(policy.connections["openai"], endpoint, "/v1/x")
    asked = Asked(model, False, (), most)
    grant = admit(policy, route, Caller("corp", "alice", frozenset(groups)))
    assert not isinstance(grant, Denial)
    grant = permit(grant, asked)
    assert not isinstance(grant, Denial)
    return spending.order(policy, policy.dialects["openai"], grant, asked, 300, ())


def test_a_request_takes_from_every_budget_of_its_rules(policy: Policy) -> None:
    found = ordered(policy, "corp:ml-eng", "corp:ml", "corp:other", most=7)
    assert isinstance(found, Order)
    assert [(each.budget, each.who, each.metric, each.amount, each.kept) for each in found.charges] == [
        ("people", "caller=corp:alice", Metric.REQUESTS, 1, 1),
        ("people", "caller=corp:alice", Metric.TOKENS, 107, 100),
        ("groups", "group=corp:ml, model=gpt-4", Metric.REQUESTS, 1, 1),
        ("groups", "group=corp:ml-eng, model=gpt-4", Metric.REQUESTS, 1, 1),
    ]
    assert [(each.budget, each.most) for each in found.seats] == [("people", 3)]
    unknown = ordered(policy, "corp:ml-eng")
    assert isinstance(unknown, Order)
    assert unknown.charges[1].amount == 100 + 50, "where the request does not say, the budget does"


def test_what_has_no_budget_or_asks_no_model_takes_nothing(policy: Policy) -> None:
    assert ordered(policy, "corp:ml-eng", endpoint="embeddings") is None
    for endpoint in ("files", "models"):
        found = ordered(policy, "corp:ml-eng", endpoint=endpoint, model=None)
        assert isinstance(found, Order)
        assert [(each.metric, each.amount) for each in found.charges[:2]] == [("requests", 1), ("tokens", 0)]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            'version: 2\nmodels:\n  - {models: ["gpt-*"], input: "2.50", output: -1}\n',
            [
                "p.yaml:1: currency: found nothing; accepted: a currency, such as USD",
                "p.yaml:1: version: found 2; accepted: 1",
                f"p.yaml:3: models[0].input: found '2.50'; accepted: {A_PRICE}",
                f"p.yaml:3: models[0].output: found -1; accepted: {A_PRICE}",
            ],
        ),
        (
            "version: 1\ncurrency: USD\nmodels: [{models: [], input: 0.1234567, output: 1, cache: 1}]\n",
            [
                "p.yaml:3: models[0].cache: found an unknown key; accepted: the keys models, input, cached, output",
                f"p.yaml:3: models[0].input: found 0.1234567; accepted: {A_PRICE}",
                f"p.yaml:3: models[0].models: found an empty list; accepted: {NAMES}",
            ],
        ),
        ("", ["p.yaml: the file: found nothing; accepted: a mapping"]),
    ],
    ids=["figures", "keys", "empty"],
)
def test_what_is_wrong_with_a_price_table_is_told(text: str, faults: list[str]) -> None:
    prices, found = parse_prices(text, "p.yaml")
    assert prices is None
    assert [str(each) for each in found] == faults


def test_money_without_prices_is_a_fault(policy: Policy, tmp_path: Path) -> None:
    text = Path(policy.file).read_text().replace("prices: prices.yaml\n", "")
    (tmp_path / "policy.yaml").write_text(text)
    for name in ("packs", "dialects"):
        (tmp_path / name).symlink_to(Path(policy.file).parent / name)
    with pytest.raises(PolicyError) as told:
        load(tmp_path / "policy.yaml")
    accepted = "spend in a policy with prices, the path of a price table"
    assert str(told.value).endswith(f"budgets.money.spend: found spend without prices; accepted: {accepted}")
    (tmp_path / "policy.yaml").write_text(text + "prices: lost.yaml\n")
    with pytest.raises(PolicyError, match=r"lost\.yaml: the file: found No such file"):
        load(tmp_path / "policy.yaml")


def test_the_shipped_price_table_is_sound() -> None:
    path = DATA.parents[1] / "rules" / "prices.yaml"
    prices, faults = parse_prices(path.read_text(), str(path))
    assert not faults
    assert prices is not None
    assert prices.of("sample-small", matches) == prices.entries[0]


def test_money_needs_a_price(policy: Policy) -> None:
    found = ordered(policy, "corp:dear", most=10)
    assert isinstance(found, Order)
    assert found.charges[0].amount == 100 * 2_500_000 + 10 * 10_000_000
    assert found.charges[0].limit == Limit(UNIT // 2, 2 * 86400.0)
    free = ordered(policy, "corp:dear", model="llama-free")
    assert isinstance(free, Order)
    assert free.charges[0].amount == 0
    for endpoint, model in (("chat", "other"), ("batches", None)):
        denied = ordered(policy, "corp:dear", endpoint=endpoint, model=model)
        assert isinstance(denied, Denial)
        assert (denied.reason, denied.status) == (Reason.MODEL_UNPRICED, 403)
    assert isinstance(ordered(policy, "corp:dear", endpoint="models", model=None), Order)


def test_a_budget_that_no_rule_names_is_told(policy: Policy) -> None:
    assert "the budget unused has no effect: no allow rule names it in limits.budgets" in policy.warnings
    assert policy.budgets["groups"].per == (Per.GROUP, Per.MODEL)
    assert policy.budgets["money"].per == ()


def test_a_model_s_name_with_a_finding_is_not_shown_and_counts_all_the_same(policy: Policy) -> None:
    found = Finding("secrets.x", "secrets", "$.model", 0, 3, Action.FLAG)
    route = Route(policy.connections["openai"], "chat", "/v1/x")
    asked = Asked("gpt-4", False, (), 5)
    grant = admit(policy, route, Caller("corp", "alice", frozenset({"corp:ml"})))
    assert not isinstance(grant, Denial)
    shown, hidden = (
        spending.order(policy, policy.dialects["openai"], grant, asked, 300, findings) for findings in ((), (found,))
    )
    assert isinstance(shown, Order)
    assert isinstance(hidden, Order)
    assert hidden.charges[2].who == "group=corp:ml, model=[REDACTED]"
    assert hidden.charges[2].key == shown.charges[2].key


def test_the_crossing_asks_for_money_before_anything_is_recorded(policy: Policy) -> None:
    head = Head("POST", "/openai/v1/chat/completions", (("authorization", "Bearer x"),), None)
    body = json.dumps({"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}).encode()
    exchange = Crossing(policy, "ex_1")
    alice = Caller("corp", "alice", frozenset({"corp:dear"}))
    exchange.receive(steps.HeadArrived(head, alice))
    step = exchange.receive(steps.BodyArrived(body))
    assert isinstance(step, steps.Spend)
    assert exchange.stage is Stage.BUDGET
    assert isinstance(exchange.receive(steps.Spent()), steps.KeepIntent)
    assert isinstance(exchange.receive(steps.IntentKept(kept=True)), steps.Send)
    exchange.receive(steps.AnswerBegan(200, (("content-type", "application/json"),)))
    exchange.receive(steps.AnswerWhole(b'{"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 5}}'))
    assert exchange.outcome is Outcome.ANSWERED
    assert exchange.usage == Usage(11, 5)
    assert exchange.used(step.order) == (11 * 2_500_000 + 5 * 10_000_000,)
    denial = spending.refusal(Refused("money", Metric.SPEND, Limit(1, 86400.0), 5.2))
    other = Crossing(policy, "ex_2")
    other.receive(steps.HeadArrived(head, alice))
    other.receive(steps.BodyArrived(body))
    assert other.receive(steps.Spent(denial)) == steps.Refuse(denial)


TOLD = b'{"choices": [{"message": {"content": "take %s"}}], "usage": {"prompt_tokens": 11, "completion_tokens": 5}}'
KEY = b"sk-proj-Ab3dEf6hIj9kLm2nOp5q"
GONE = steps.Stopped(CLIENT_GONE, Outcome.ABORTED)
A_WHOLE = steps.AnswerBegan(200, (("content-type", "application/json"),))
UNREADABLE = steps.AnswerBegan(200, (("content-type", "text/event-stream"), ("content-encoding", "compress")))
GUESS = Usage(31, 0, 0, estimated=True)


@pytest.mark.parametrize(
    ("stream", "events", "usage"),
    [
        (False, [A_WHOLE, steps.AnswerWhole(TOLD % KEY)], Usage(11, 5)),
        (False, [A_WHOLE, steps.AnswerWhole(b'{"a": "' + b"x" * 53)], Usage(31, 15, 0, estimated=True)),
        (False, [A_WHOLE, GONE], Usage(31, 10, 0, estimated=True)),
        (False, [A_WHOLE, steps.Stopped(limit(Reason.ANSWER_TOO_LARGE))], Usage(31, 10, 0, estimated=True)),
        (False, [A_WHOLE, steps.Stopped(UPSTREAM_FAILED, Outcome.FAILED)], Usage(31, 10, 0, estimated=True)),
        (False, [steps.AnswerBegan(200, (("content-type", "audio/wav"),)), GONE], GUESS),
        (True, [A_WHOLE, steps.AnswerChunk(TOLD % KEY), steps.AnswerEnded()], Usage(11, 5)),
        (True, [A_WHOLE, steps.AnswerChunk(b'{"a": "' + b"x" * 53), GONE], Usage(30, 15, 0, estimated=True)),
        (True, [UNREADABLE], replace(GUESS, input=30)),
        (False, [GONE], GUESS),
        (False, [steps.Stopped(limit(Reason.ANSWER_FIRST_BYTE))], GUESS),
        (False, [steps.Stopped(UPSTREAM_FAILED, Outcome.FAILED)], Usage(0, 0)),
        (False, [steps.AnswerBegan(302, ())], Usage(0, 0)),
        (False, [replace(A_WHOLE, status=500), steps.AnswerWhole(b'{"error": {}}')], Usage(0, 0)),
    ],
    ids=[
        "blocked", "broken", "client left", "too large", "upstream left", "a voice", "whole one of a stream",
        "left that", "unreadable", "left before", "never began", "never reached", "redirect", "error",
    ],
)  # fmt: skip
def test_what_the_client_does_not_get_costs_what_it_took(
    policy: Policy, stream: bool, events: list[steps.Event], usage: Usage
) -> None:
    head = Head("POST", "/openai/v1/chat/completions", (("authorization", "Bearer x"),), None)
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "stream": stream}
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(head, Caller("corp", "alice", frozenset({"corp:dear"}))))
    for event in (steps.BodyArrived(json.dumps(body).encode()), steps.Spent(), steps.IntentKept(kept=True)):
        exchange.receive(event)
    for event in events:
        exchange.receive(event)
        exchange.came = 40 if event == A_WHOLE and not stream else 0
    assert exchange.stage is Stage.OVER
    assert exchange.usage == usage


REFUSALS = [
    (Refused("b", Metric.REQUESTS, Limit(1, 60.0), 5.2), "rate_limited", 6, "true"),
    (Refused("b", Metric.TOKENS, Limit(1, 3600.0), 300.0), "rate_limited", 300, "false"),
    (Refused("b", Metric.TOKENS, Limit(1, 86400.0), None), "budget_exhausted", None, "false"),
    (Refused("b", Metric.SPEND, Limit(1, 60.0), 0.1), "budget_exhausted", 1, "true"),
    (Refused("b", None, None, 1.0), "too_many_concurrent", 1, "true"),
]


@pytest.mark.parametrize(("refused", "reason", "after", "again"), REFUSALS, ids=[each[1] for each in REFUSALS])
def test_how_a_refusal_is_told(refused: Refused, reason: str, after: int | None, again: str) -> None:
    denial = spending.refusal(refused)
    assert (denial.reason, denial.status, denial.retry_after) == (reason, 429, after)
    fields = dict(render(GENERIC, denial, "ex_1")[0])
    assert fields["x-should-retry"] == again
    assert fields.get("retry-after") == (None if after is None else str(after))
    trailers = dict(render(GRPC, denial, "ex_1")[0])
    assert trailers["grpc-status"] == "8"
    assert trailers["grpc-retry-pushback-ms"] == (str(1000 * (after or 0)) if again == "true" else "-1")


def test_what_is_left_is_told_in_the_names_of_the_family() -> None:
    standings = (
        Standing("a", Metric.REQUESTS, Limit(10, 60.0), 9, 59.2),
        Standing("b", Metric.REQUESTS, Limit(100, 60.0), 5, 0.25),
        Standing("b", Metric.SPEND, Limit(5 * UNIT, 86400.0), 3 * UNIT - 1, 3661.0),
    )
    assert rate_fields.fields(standings, RATE_HEADERS, 0.0) == (
        ("x-ratelimit-limit-requests", "100"),
        ("x-ratelimit-remaining-requests", "5"),
        ("x-ratelimit-reset-requests", "250ms"),
        ("ratelimit-policy", '"a-requests";q=10;w=60, "b-requests";q=100;w=60, "b-spend";q=5;w=86400'),
        ("ratelimit", '"a-requests";r=9;t=60, "b-requests";r=5;t=1, "b-spend";r=2;t=3661'),
    )
    anthropic = dialect("anthropic").rate_headers
    told = rate_fields.fields((Standing("a", Metric.TOKENS, Limit(10, 60.0), 9, 3661.0),), anthropic, 0.0)
    assert told[:3] == (
        ("anthropic-ratelimit-tokens-limit", "10"),
        ("anthropic-ratelimit-tokens-remaining", "9"),
        ("anthropic-ratelimit-tokens-reset", "1970-01-01T01:01:01Z"),
    )
    assert rate_fields._reset(RATE_HEADERS.reset, 3661.0, 0.0) == "1h1m1s"
    assert rate_fields.own("x-ratelimit-remaining-tokens")
    assert not rate_fields.own("retry-after")


# ── what answers tell ────────────────────────────────────────────────────────


def test_an_aborted_stream_counts_what_came_after_the_last_number() -> None:
    meter = Meter(dialect("anthropic").usage.counts["messages"])
    meter.event({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}})
    for _ in range(6):
        meter.event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "12345678"}})
    assert meter.total(300, complete=False) == Usage(9, 12, 0, estimated=True)
    assert meter.total(300, complete=True) == Usage(9, 1)
    meter.event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}})
    assert meter.total(300, complete=False) == Usage(9, 7)


def test_an_answer_that_says_nothing_is_estimated() -> None:
    meter = Meter(dialect("openai").usage.counts["chat"])
    for text in ("Hel", "lo", "", " there, how are you today?"):
        meter.event({"choices": [{"index": 0, "delta": {"content": text}}]})
    assert meter.total(301, complete=True) == Usage(101, 8, 0, estimated=True)
    assert of_body(0) == 0
    whole = Meter(None)
    whole.whole(b"x" * 41)
    assert whole.total(9, complete=True) == Usage(3, 11, 0, estimated=True)
    assert Meter(None).total(9, complete=True, failed=True) == Usage(0, 0)


def test_the_answers_of_a_websocket_add_up() -> None:
    meter = Meter(dialect("openai").usage.counts["realtime"])
    for number in (1, 2):
        usage = {"input_tokens": 10 * number, "output_tokens": number, "input_token_details": {"cached_tokens": 4}}
        meter.event({"type": "response.done", "response": {"usage": usage}})
        meter.turn()
    assert meter.answers == 2
    assert meter.total(0, complete=True) == Usage(30, 3, 8)


@pytest.mark.parametrize("odd", [-1, 2**60, True, "7", None, [1], {"n": 1}], ids=repr)
def test_a_number_that_is_none_is_not_counted(odd: object) -> None:
    meter = Meter(dialect("openai").usage.counts["chat"])
    meter.whole(json.dumps({"usage": {"prompt_tokens": odd, "completion_tokens": 3}}).encode())
    assert meter.total(30, complete=True) == Usage(10, 3, 0, estimated=True)


def test_the_last_of_many_numbers_of_gemini_counts_with_its_thoughts() -> None:
    meter = Meter(dialect("gemini").usage.counts["stream"])
    for said in (3, 9):
        meter.event({"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": said, "thoughtsTokenCount": 4}})
    assert meter.total(0, complete=True) == Usage(5, 13)


# ── over the recorded exchanges: input and output are what the providers call the total ──────────────────────────────

TOTAL = re.compile(rb'"(?:total_tokens|totalTokenCount|totalTokens)": *([0-9]+)')


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded exchanges are not here")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streams"])
def test_what_is_read_of_recorded_answers_is_what_they_call_the_total(streamed: bool) -> None:
    checked, wrong = 0, []
    for row in [each for each in rows() if each.streamed == streamed and each.status < 300][:: 3 if streamed else 1]:
        counting = None if row.endpoint is None else row.dialect.usage.counts.get(row.endpoint.name)
        told = [int(each) for each in TOTAL.findall(row.answer)]
        if counting is None or not told or row.answer[:1] == b"[":
            continue
        assert row.endpoint is not None
        meter = Meter(counting)
        if streamed:
            head = AnswerHead(row.label, 200, OnUnknown.PASS)
            gate = StreamedAnswer(row.endpoint, row.dialect.error, NO_RULES, always(Action.ALLOW), "ex-1", head)
            gate.meter = meter
            gate.feed(row.answer)
            gate.end()
        else:
            meter.whole(row.answer)
        found = meter.total(0, complete=True)
        checked += 1
        if found.estimated or found.input + found.output not in told:
            wrong.append((row.id, row.api, found, told))
    assert checked > (100 if streamed else 1500)
    assert len(wrong) <= checked // 50, wrong


STREAM = b"".join(
    b"data: %s\n\n" % json.dumps(each).encode()
    for each in (
        *({"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hel", "lo ", "w\u00f6rld", "")),
        {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 3}},
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_what_is_read_does_not_depend_on_how_a_stream_is_cut(cuts: list[int], told: bool) -> None:
    data = STREAM if told else STREAM[: STREAM.index(b'data: {"choices": [], ')]
    openai = dialect("openai")
    endpoint = openai.endpoints["chat"]
    gate = StreamedAnswer(
        endpoint, openai.error, NO_RULES, always(Action.ALLOW), "ex-1", AnswerHead("text/event-stream")
    )
    gate.meter = Meter(openai.usage.counts["chat"])
    places = [0, *sorted(min(each, len(data)) for each in cuts), len(data)]
    for start, end in pairwise(places):
        gate.feed(data[start:end])
    gate.end()
    expected = Usage(12, 3) if told else Usage(10, 3, 0, estimated=True)
    assert gate.meter.total(30, complete=True) == expected
