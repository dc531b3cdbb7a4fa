"""What a client says to the proxy, and whom a connection speaks for while policies come and go."""

from __future__ import annotations

import base64
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.e2e import harness as h
from tests.test_peers import SIGNER
from tidegate import steps
from tidegate.building import Gate
from tidegate.crossing import Crossing
from tidegate.entrance import Entrance, Tunnel, by_token
from tidegate.identity import claims, proxy
from tidegate.model import Caller, Denial, Head, Peer, Reason, Standing
from tidegate.policy.loading import load
from tidegate.policy.policy import (
    CertificateIdentity,
    CertificateName,
    Policy,
    ProxyAuthentication,
    SourceIdentity,
)

ALICE = Caller("local", "alice")


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (basic("alice:tg_x"), "tg_x"),
        (basic(":tg_x"), "tg_x"),
        (basic("a:b:c"), "b:c"),
        ("basic " + basic("a:tg_x")[6:], "tg_x"),
        ("BEARER tg_x", "tg_x"),
        ("  Bearer   tg_x  ", "tg_x"),
        (basic("tg_x"), None),
        (basic("tg_x:"), None),
        (basic(b"a:\xff"), None),
        ("Basic !!!!", None),
        ("Basic " + "QUJD" * 20_000, None),
        ("Basic", None),
        ("Bearer", None),
        ("Digest username=a", None),
        ("tg_x", None),
        ("", None),
    ],
)
def test_what_a_client_shows_to_a_proxy(value: str, token: str | None) -> None:
    found = proxy.token([("authorization", "Bearer other"), ("proxy-authorization", value)])
    assert found == (token if token is not None else proxy.MALFORMED)
    assert "tg_x" not in str(proxy.MALFORMED)


def test_nothing_and_too_much() -> None:
    assert proxy.token([("authorization", "Bearer other")]) is None
    twice = [("proxy-authorization", "Bearer a"), ("proxy-authorization", "Bearer a")]
    assert proxy.token(twice) is proxy.AMBIGUOUS


@pytest.mark.parametrize(
    ("reason", "status", "by_proxy"),
    [(Reason.TOKEN_EXPIRED, 401, 407), (Reason.GROUPS_OVERAGE, 403, 403), (Reason.IDP_UNAVAILABLE, 503, 503)],
)
def test_a_denial_by_the_proxy(reason: Reason, status: int, by_proxy: int) -> None:
    denial = Denial(reason, status, "no")
    assert by_token(denial, tunnelled=False) == Denial(reason, by_proxy, "no")
    assert by_token(denial, tunnelled=True) is denial
    assert by_token(ALICE, tunnelled=True) == Standing(ALICE, by_token=True)


@pytest.mark.parametrize(
    ("own", "standing", "wrong"),
    [
        (ALICE, Standing(ALICE, by_token=True), False),
        (Caller("local", "alice", frozenset({"local:new"})), Standing(ALICE, by_token=True), False),
        (Caller("local", "bob"), Standing(ALICE, by_token=True), True),
        (Caller("corp", "alice"), Standing(ALICE, by_token=True), True),
        (Caller("local", "bob"), Standing(ALICE), False),
    ],
)
def test_who_contradicts_a_connection(own: Caller, standing: Standing, wrong: bool) -> None:
    assert claims.contradicts(own, standing) is wrong


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("entrance")
    return load(h.policy(folder, "http://127.0.0.1:9", **h.few_rules(folder)))


def changed(policy: Policy, authentication: ProxyAuthentication, *sources: str) -> Policy:
    identities = (*(policy.identities or ()), *(SourceIdentity("net", (each,), "farm", ()) for each in sources))
    return dataclasses.replace(policy, proxy=authentication, identities=identities)


def test_a_tunnel_lives_through_reloads(written: Policy) -> None:
    required, off = changed(written, ProxyAuthentication.REQUIRED), changed(written, ProxyAuthentication.OFF)
    entrance = Entrance()
    entrance.opened("with", Tunnel("tg_x", None))
    entrance.opened("without", Tunnel(None, None))
    assert entrance.inside(written, "with") == "tg_x"
    assert entrance.inside(written, "without") is None
    denial = entrance.inside(required, "without")
    assert isinstance(denial, Denial)
    assert (denial.reason, denial.status) == (Reason.CALLER_MISSING, 401)
    assert entrance.inside(off, "with") is None
    assert "tg_x" not in repr(Tunnel("tg_x", b"der"))
    entrance.left("with")
    assert not entrance.has_tunnel("with")


def test_a_policy_that_knows_nobody_by_connection_asks_nothing(written: Policy) -> None:
    entrance, off = Entrance(), changed(written, ProxyAuthentication.OFF)
    assert entrance.idle(written, proxied=False)
    assert not entrance.idle(written, proxied=True)
    assert entrance.idle(off, proxied=True)
    assert not entrance.idle(changed(written, ProxyAuthentication.OFF, "10.0.0.0/8"), proxied=False)
    nobody = dataclasses.replace(written, identities=None)
    assert entrance.idle(nobody, proxied=True)
    assert entrance.shown(nobody, [("proxy-authorization", "Bearer x")]) is None
    assert entrance.shown(off, [("proxy-authorization", "Bearer x")]) is None


def test_the_policy_in_force_says_who_is_known(written: Policy) -> None:
    entrance, peer = Entrance(), Peer("10.1.2.3")
    some = changed(written, ProxyAuthentication.OPTIONAL, "10.0.0.0/8")
    found = entrance.by_peer(some, peer, 0.0)
    assert isinstance(found, Standing)
    assert (found.caller.subject, found.by_token) == ("farm", False)
    assert entrance.by_peer(written, peer, 0.0) is None


def test_the_certificate_inside_a_tunnel_comes_first() -> None:
    entrance = Entrance()
    entrance.opened("one", Tunnel(None, b"outer"))
    assert entrance.certified("one", Peer("10.0.0.1")).certificate == b"outer"
    assert entrance.certified("one", Peer("10.0.0.1", b"inner")).certificate == b"inner"
    assert entrance.certified("two", Peer("10.0.0.1")).certificate is None


@pytest.mark.parametrize("certificates", [False, True])
def test_clients_are_asked_for_certificates_if_any_is_known(written: Policy, certificates: bool) -> None:
    machines = CertificateIdentity(
        "machines", "/ca.pem", CertificateName.CN, (), units=False, roots=(SIGNER.certificate,)
    )
    policy = dataclasses.replace(written, identities=(machines,)) if certificates else written
    gate = Gate(cast("Any", SimpleNamespace(policy=policy, entrance=Entrance())), ())
    assert gate.options().get("request_client_cert", False) is certificates


# ── the order of an exchange ─────────────────────────────────────────────────────────────────────────────────────────

MEMBER = Caller("local", "alice", frozenset({"local:dev"}))
NOT_HERE = Denial(Reason.TOKEN_EXPIRED, 401, "no")


def began(
    policy: Policy, standing: Standing | Denial | None, *fields: tuple[str, str], path: str = "/openai/v1/models"
) -> tuple[Crossing, steps.Step]:
    crossing = Crossing(policy, "ex_1")
    return crossing, crossing.receive(steps.HeadArrived(Head("GET", path, fields, None), None, standing))


@pytest.mark.parametrize(
    "fields", [(), (("authorization", "Bearer tidegate"),), (("x-api-key", "tidegate"), ("authorization", "Basic x:y"))]
)
@pytest.mark.parametrize("by_token", [False, True])
def test_a_connection_speaks_for_who_has_no_token(
    written: Policy, by_token: bool, fields: tuple[tuple[str, str], ...]
) -> None:
    crossing, step = began(written, Standing(MEMBER, by_token=by_token), *fields)
    if len(fields) == 2:  # two header fields that differ: nobody guesses which one is meant
        assert isinstance(step, steps.Refuse)
        assert step.denial.reason is Reason.CALLER_AMBIGUOUS
        return
    assert isinstance(step, steps.ReadBody)
    assert crossing.caller is MEMBER


@pytest.mark.parametrize("path", ["/openai/v1/models", "/nowhere"])
def test_a_connection_that_is_refused_learns_nothing(written: Policy, path: str) -> None:
    crossing, step = began(written, NOT_HERE, ("authorization", "Bearer tg_good"), path=path)
    assert step == steps.Refuse(NOT_HERE)
    assert crossing.route is None


@pytest.mark.parametrize(
    ("own", "by_token", "refused"),
    [
        (MEMBER, True, None),
        (Caller("local", "bob", frozenset({"local:dev"})), True, Reason.CALLER_AMBIGUOUS),
        (Caller("local", "bob", frozenset({"local:dev"})), False, None),
        (NOT_HERE, True, Reason.TOKEN_EXPIRED),
        (NOT_HERE, False, Reason.TOKEN_EXPIRED),
    ],
)
def test_a_token_of_its_own(written: Policy, own: Caller | Denial, by_token: bool, refused: Reason | None) -> None:
    crossing, step = began(written, Standing(MEMBER, by_token=by_token), ("authorization", "Bearer tg_x"))
    assert step == steps.Identify("tg_x")
    step = crossing.receive(steps.CallerKnown(own))
    assert (step.denial.reason if isinstance(step, steps.Refuse) else None) is refused
    if refused is None:
        assert crossing.caller is own


@pytest.mark.parametrize("placeholder", [(), (("authorization", "Bearer tidegate"),)])
def test_an_unknown_certificate_speaks_for_nobody(written: Policy, placeholder: tuple[tuple[str, str], ...]) -> None:
    head = Head("GET", "/openai/v1/models", placeholder, None)
    step = Crossing(written, "ex_1").receive(steps.HeadArrived(head, unknown_peer=NOT_HERE))
    assert step == steps.Refuse(NOT_HERE)


def test_a_token_counts_whatever_the_certificate_says(written: Policy) -> None:
    crossing = Crossing(written, "ex_1")
    head = Head("GET", "/openai/v1/models", (("authorization", "Bearer tg_x"),), None)
    assert crossing.receive(steps.HeadArrived(head, unknown_peer=NOT_HERE)) == steps.Identify("tg_x")
    assert isinstance(crossing.receive(steps.CallerKnown(MEMBER)), steps.ReadBody)


def test_without_a_connection_the_placeholder_is_a_bad_token(written: Policy) -> None:
    assert began(written, None, ("authorization", "Bearer tidegate"))[1] == steps.Identify("tidegate")
