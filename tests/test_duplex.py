"""Two-way sockets as a pure machine: OpenAI Realtime, in both spellings, and Gemini Live."""

from __future__ import annotations

import base64
import itertools
import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.live import ALICE, ANY, LIVE, asks, heard, joined, live, opened, realtime, sent, tells
from tests.test_split_invariance import expected, said, texts
from tests.wire import CARD, KEY, MAIL, PEM, Said, engine, every
from tidegate import duplex, sockets
from tidegate.duplex import Duplex
from tidegate.model import Action, OnUnknown, Outcome, Reason, Scanned
from tidegate.sockets import GOING_AWAY, POLICY
from tidegate.steps import ClientSaid, Form, Relay, UpstreamSaid

SOUND = base64.b64encode(random.Random(1).randbytes(960)).decode()
FAMILIES = pytest.mark.parametrize("family", LIVE)
BOTH = pytest.mark.parametrize("family", ["realtime", "live"])


def update(**session: object) -> dict[str, object]:
    return {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["text"], **session}}


def item(text: str) -> dict[str, object]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}


def setup(model: str = "models/m", *, modality: str = "TEXT", **more: object) -> dict[str, object]:
    config = {"responseModalities": [modality], **more.pop("generation", {})}  # type: ignore[dict-item]
    return {"setup": {"model": model, "generationConfig": config, **more}}


def content(text: str, *, last: bool = True) -> dict[str, object]:
    turns = [{"role": "user", "parts": [{"text": text}]}]
    return {"client_content": {"turns": turns, "turn_complete": last}}


OPENING: dict[str, list[dict[str, object]]] = {"realtime": [update()], "live": [setup()]}
PROMPT = {"realtime": item, "live": content}


def begun(family: str, **more: Any) -> Duplex:
    socket = opened(family, **more)
    for message in OPENING[family]:
        assert sent(socket, message).up
    return socket


def reason_of(step: Relay) -> str:
    """Return the reason of a refusal, whichever way the family tells it."""
    if step.reason:
        assert step.down == ()
        return step.reason.partition(":")[0]
    (message,) = map(json.loads, step.down)
    assert (message["type"], "ex_1" in message["error"]["message"]) == ("error", True)
    return str(message["error"]["code"])


# ── every cut ────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole_of(family: str, answer: Said) -> dict[object, str]:
    """Return what a client reads of an answer in one piece, each channel redacted as a whole text."""
    final = expected(answer, engine())
    return joined(family, LIVE[family].events(final))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@FAMILIES
@given(answer=said, size=st.integers(1, 12))
def test_any_cut_reads_like_the_whole(family: str, answer: Said, size: int) -> None:
    socket = opened(family)
    out = heard(socket, LIVE[family].events(answer, every(size)))
    assert joined(family, out) == whole_of(family, answer)
    assert (socket.held, socket.busy) == (0, False)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@FAMILIES
@given(answer=said, size=st.integers(1, 12))
def test_nothing_leaves_that_is_masked_later(family: str, answer: Said, size: int) -> None:
    final = whole_of(family, answer)
    socket = opened(family)
    out: list[dict[str, Any]] = []
    for event in LIVE[family].events(answer, every(size)):
        out += heard(socket, [event])
        for key, text in joined(family, out).items():
            assert final[key].startswith(text)
        assert socket.held <= 3 * 6 * 64  # in three channels, the longest match of these rules in JSON source


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("family", ["realtime", "beta"])
@given(answers=st.lists(said, min_size=2, max_size=3), size=st.integers(1, 9), chance=st.randoms(use_true_random=False))
def test_answers_that_overlap_are_texts_of_their_own(
    family: str, answers: list[Said], size: int, chance: random.Random
) -> None:
    queues = [LIVE[family].events(answer, every(size), number) for number, answer in enumerate(answers)]
    mixed = []
    while any(queues):
        mixed.append(chance.choice([queue for queue in queues if queue]).pop(0))
    socket = opened(family)
    wanted: dict[object, str] = {}
    for number, answer in enumerate(answers):
        wanted |= joined(family, LIVE[family].events(expected(answer, engine()), number=number))
    assert joined(family, heard(socket, mixed)) == wanted
    assert (socket.held, socket.busy) == (0, False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@FAMILIES
@given(parts=st.lists(said, min_size=2, max_size=4), size=st.integers(1, 9))
def test_one_answer_after_the_other(family: str, parts: list[Said], size: int) -> None:
    """Nothing of an answer is remembered in the next one, though a turn of the Live API has no id."""
    socket = opened(family)
    for number, answer in enumerate(parts):
        out = heard(socket, LIVE[family].events(answer, every(size), number))
        assert joined(family, out) == joined(family, LIVE[family].events(expected(answer, engine()), number=number))
        assert not socket._events._ended
        assert not socket._events._channels


@settings(max_examples=100, deadline=None)
@given(text=texts, size=st.integers(1, 9))
def test_what_is_heard_of_a_person_is_one_text_too(text: str, size: int) -> None:
    at = {"item_id": "item_1", "content_index": 0}
    kind = "conversation.item.input_audio_transcription"
    events: list[dict[str, object]] = [{"type": f"{kind}.delta", **at, "delta": part} for part in every(size)(text)]
    events.append({"type": f"{kind}.completed", **at, "transcript": text})
    socket = opened("realtime")
    out = heard(socket, events)
    told = "".join(each["delta"] for each in out[:-1])
    assert told == out[-1]["transcript"] == expected(Said(text), engine()).text


ENDINGS = (f"{MAIL}{KEY}", "jane.doe@example.co\u00e9", f"{KEY}0123456789abcdefghijk")
EXHAUSTIVE = (f"to {MAIL}!", f"a {CARD} b", f"x {KEY}", PEM, *ENDINGS)


@FAMILIES
@pytest.mark.parametrize("text", EXHAUSTIVE, ids=range(len(EXHAUSTIVE)))
def test_every_cut_in_two(family: str, text: str) -> None:
    answer = Said(text, text, (json.dumps({"a": text}),))
    final = whole_of(family, answer)
    for at in range(len(text) + 9):
        out = heard(opened(family), LIVE[family].events(answer, lambda part, at=at: [part[:at], part[at:]]))
        assert joined(family, out) == final, at


def test_text_that_is_held_leaves_before_the_end_of_its_text() -> None:
    socket = opened("realtime")
    out = heard(socket, realtime(Said("say sk-AbCd"), every(4)))
    kinds = [each["type"] for each in out]
    last = max(index for index, kind in enumerate(kinds) if kind == "response.output_text.delta")
    assert kinds[last + 1] == "response.output_text.done"
    assert out[last]["delta"] == "sk-AbCd"
    assert out[last]["response_id"] == "resp_1"
    ids = [each["event_id"] for each in out]
    assert len(set(ids)) == len(ids)


def test_text_that_is_held_leaves_with_the_end_of_a_turn() -> None:
    socket = opened("live")
    out = heard(socket, live(Said("say sk-AbCd"), every(4)))
    assert joined("live", out) == {("text", False): "say sk-AbCd"}
    assert out[-1]["serverContent"] == {"turnComplete": True}


def test_a_long_session_remembers_nothing_of_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplex, "FINDINGS", 50)
    socket = opened("realtime")
    for number in range(700):  # each ends three channels with text held back
        answer = Said(f"{MAIL} sk-Ab", "sk-Ab", ('{"a": "sk-Ab"}',))
        heard(socket, realtime(answer, every(30), number))
    assert len(socket.answer_findings) <= 60
    assert not socket._events._masked
    assert socket.turns == 700


# ── echoes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ECHOES: dict[str, dict[str, Any]] = {
    "session.created": {"session": {"instructions": MAIL, "tools": [{"type": "function", "description": MAIL}]}},
    "session.updated": {"session": {"audio": {"input": {"transcription": {"prompt": MAIL}}}}},
    "conversation.item.added": {"item": {"content": [{"type": "input_text", "text": MAIL}]}},
    "conversation.item.created": {"item": {"content": [{"type": "input_audio", "transcript": MAIL}]}},
    "conversation.item.done": {"item": {"type": "function_call_output", "output": MAIL}},
    "conversation.item.retrieved": {"item": {"name": MAIL}},
    "response.created": {"response": {"id": "r", "metadata": {"a": MAIL}, "instructions": MAIL}},
    "response.output_item.done": {"item": {"arguments": json.dumps({"a": MAIL})}},
    "response.done": {"response": {"id": "r", "output": [{"content": [{"transcript": MAIL}]}]}},
    "error": {"error": {"message": MAIL}},
    "mcp_list_tools.completed": {"note": MAIL},
}


@pytest.mark.parametrize(("kind", "fields"), ECHOES.items(), ids=ECHOES.keys())
def test_echoes_are_masked(kind: str, fields: dict[str, Any]) -> None:
    (out,) = heard(opened("realtime"), [{"type": kind, **fields}])
    assert MAIL not in json.dumps(out)
    assert "[REDACTED:mail]" in json.dumps(out)


LIVE_ECHOES: dict[str, dict[str, Any]] = {
    "call": {"toolCall": {"functionCalls": [{"id": "1", "name": "f", "args": {"to": [MAIL]}}]}},
    "code": {"serverContent": {"modelTurn": {"parts": [{"executableCode": {"code": MAIL}}]}}},
    "output": {"serverContent": {"modelTurn": {"parts": [{"codeExecutionResult": {"output": MAIL}}]}}},
    "grounding": {"serverContent": {"groundingMetadata": {"groundingChunks": [{"web": {"title": MAIL}}]}}},
    "beside": {"usageMetadata": {"totalTokenCount": 1}, "goAway": {"timeLeft": MAIL}},
    "error": {"error": {"message": MAIL}},
}


@pytest.mark.parametrize("event", LIVE_ECHOES.values(), ids=LIVE_ECHOES.keys())
def test_what_comes_whole_in_a_live_session_is_masked(event: dict[str, Any]) -> None:
    (out,) = heard(opened("live"), [event])
    assert MAIL not in json.dumps(out)
    assert "[REDACTED:mail]" in json.dumps(out)


def test_a_transcript_that_is_not_whole_yet_is_left_out() -> None:
    event = {"serverContent": {"interimInputTranscription": {"text": CARD[:9]}}}
    (out,) = heard(opened("live"), [event])
    assert CARD[:9] not in json.dumps(out)


def test_words_beside_a_transcript_are_left_out() -> None:
    event = {"serverContent": {"outputTranscription": {"text": "a card", "words": [{"word": CARD[:8]}]}}}
    (out,) = heard(opened("live"), [event])
    assert out["serverContent"]["outputTranscription"]["words"] == []


# ── what a client asks ───────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_a_prompt_goes_up_at_once_and_masked(family: str) -> None:
    socket = begun(family)
    heard(socket, LIVE[family].events(Said("an answer under way"), every(5))[:3])
    for _ in range(3):
        step = sent(socket, PROMPT[family](f"write to {MAIL}"))
        assert (len(step.up), step.down, step.close) == (1, (), None)
        assert json.loads(step.up[0]) == PROMPT[family]("write to [REDACTED:mail]")


def test_a_prompt_with_a_key_is_answered_and_the_session_stays() -> None:
    socket = begun("realtime")
    step = sent(socket, item(f"use {KEY}"))
    assert (step.up, step.close, reason_of(step)) == ((), None, "finding")
    assert sent(socket, item("hello")).up


def test_a_prompt_with_a_key_ends_a_session_that_knows_no_errors() -> None:
    socket = begun("live")
    step = sent(socket, content(f"use {KEY}"))
    assert (step.up, step.down, step.close, reason_of(step)) == ((), (), POLICY, "finding")
    assert "Blocked by policy" in step.reason
    assert len(step.reason.encode()) <= 123
    assert KEY not in step.reason
    assert (socket.outcome, socket.busy) == (Outcome.DENIED, False)


@pytest.mark.parametrize("place", ["instructions", "prompt", "tools"])
def test_a_key_anywhere_in_the_settings_is_found(place: str) -> None:
    tools = [{"type": "function", "name": "f", "description": f"use {KEY}"}]
    fields = {"instructions": f"use {KEY}", "prompt": {"variables": {"a": f"use {KEY}"}}, "tools": tools}
    assert reason_of(sent(opened("realtime"), update(**{place: fields[place]}))) == "finding"


DENIED: dict[str, tuple[str, dict[str, object], str]] = {
    "another model": ("realtime", update(model="gpt-5"), "body_malformed"),
    "another model, live": ("live", setup("models/b"), "model_denied"),
    "a stored prompt": ("realtime", update(prompt={"id": "pmpt_1"}), "body_opaque"),
    "a remote server": ("realtime", update(tools=[{"type": "mcp", "server_url": "https://x.test"}]), "body_opaque"),
    "another conversation": (
        "realtime",
        {"type": "response.create", "response": {"conversation": "conv_9"}},
        "body_opaque",
    ),
    "tokens of what is heard": (
        "realtime",
        update(include=["item.input_audio_transcription.logprobs"]),
        "second_copy",
    ),
    "an earlier session": ("live", setup(sessionResumption={"handle": "h1"}), "body_opaque"),
    "an earlier session, in the other spelling": ("live", setup(session_resumption={"handle": "h1"}), "body_opaque"),
    "cached content": ("live", setup(cachedContent="c1"), "body_opaque"),
}


@pytest.mark.parametrize(("family", "message", "code"), DENIED.values(), ids=DENIED.keys())
def test_what_is_refused_in_a_message(family: str, message: dict[str, object], code: str) -> None:
    socket = opened(family, allow=replace(ANY, models=("gpt-realtime", "a")))
    step = sent(socket, message)
    assert (step.up, reason_of(step)) == ((), code)


NAMES = {
    "plain": "models/gemini-live",
    "of a publisher": "publishers/google/models/gemini-live",
    "of a project": "projects/p-1/locations/us-central1/publishers/google/models/gemini-live",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_model_is_named_by_the_setup(name: str) -> None:
    allowed = opened("live", allow=replace(ANY, models=("gemini-live",)))
    assert sent(allowed, setup(name)).up
    assert sent(allowed, content("hello")).up
    refused = opened("live", allow=replace(ANY, models=("other",)))
    assert reason_of(sent(refused, setup(name))) == "model_denied"


def test_a_name_with_something_else_before_it_is_another_model() -> None:
    for name in (
        "projects/p/x/locations/l/publishers/google/models/a",
        "projects//locations/l/publishers/google/models/a",
    ):
        assert reason_of(sent(opened("live", allow=replace(ANY, models=("a",))), setup(name))) == "model_denied"


def test_nothing_goes_up_before_a_model_is_known() -> None:
    socket = opened("live", allow=replace(ANY, models=("m",)))
    assert reason_of(sent(socket, content("hello"))) == "model_denied"


TOOLS = {
    "session": ("realtime", update(tools=[{"type": "function", "name": "bash"}])),
    "response": (
        "realtime",
        {"type": "response.create", "response": {"tools": [{"type": "function", "name": "bash"}]}},
    ),
    "built in": ("realtime", update(tools=[{"type": "web_search"}])),
    "setup": ("live", setup(tools=[{"functionDeclarations": [{"name": "bash"}]}])),
    "setup, in the other spelling": ("live", setup(tools=[{"function_declarations": [{"name": "bash"}]}])),
    "setup, built in": ("live", setup(tools=[{"google_search": {}}])),
}


@pytest.mark.parametrize(("family", "message"), TOOLS.values(), ids=TOOLS.keys())
def test_tools_need_a_grant_at_the_opening_and_later(family: str, message: dict[str, object]) -> None:
    socket = opened(family, allow=replace(ANY, tools=("search",)))
    assert reason_of(sent(socket, message)) == "tool_denied"
    again = begun(family, allow=replace(ANY, tools=("search",)))
    assert reason_of(sent(again, message)) == "tool_denied"


def confirmed(limit: object) -> dict[str, object]:
    return {"type": "session.updated", "session": {"max_output_tokens": limit}}


def test_a_limit_of_output_holds_once_the_upstream_has_confirmed_it() -> None:
    socket = opened("realtime", allow=replace(ANY, max_output_tokens=100))
    create: dict[str, object] = {"type": "response.create"}
    append = {"type": "input_audio_buffer.commit"}
    assert sent(socket, update()).up
    assert reason_of(sent(socket, create)) == "output_limit"
    assert reason_of(sent(socket, append)) == "output_limit"  # the provider may answer to it by itself
    assert sent(socket, {**create, "response": {"max_output_tokens": 50}}).up
    assert sent(socket, update(max_output_tokens=80)).up
    assert reason_of(sent(socket, create)) == "output_limit"
    heard(socket, [confirmed(80)])
    assert sent(socket, create).up
    assert sent(socket, append).up
    for much in (101, "inf"):
        assert reason_of(sent(socket, update(max_output_tokens=much))) == "output_limit"
        assert reason_of(sent(socket, {**create, "response": {"max_output_tokens": much}})) == "output_limit"
    heard(socket, [confirmed("inf")])
    assert reason_of(sent(socket, create)) == "output_limit"


def test_a_limit_of_output_in_a_setup() -> None:
    allow = replace(ANY, max_output_tokens=100)
    socket = opened("live", allow=allow)
    assert sent(socket, setup(generation={"maxOutputTokens": 100})).up
    assert heard(socket, [{"setupComplete": {}}]) == [{"setupComplete": {}}]
    assert sent(socket, content("hello")).up
    assert reason_of(sent(opened("live", allow=allow), setup(generation={"maxOutputTokens": 101}))) == "output_limit"
    without = opened("live", allow=allow)
    assert sent(without, setup()).up
    heard(without, [{"setupComplete": {}}])
    assert reason_of(sent(without, content("hello"))) == "output_limit"


# ── sound ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SPOKEN: dict[str, tuple[str, dict[str, object]]] = {
    "spoken answers": ("realtime", update(output_modalities=["audio"])),
    "spoken answers, in the beta": (
        "realtime",
        {"type": "session.update", "session": {"modalities": ["text", "audio"]}},
    ),
    "a spoken answer": ("realtime", {"type": "response.create", "response": {"output_modalities": ["audio"]}}),
    "speech": ("realtime", {"type": "input_audio_buffer.append", "audio": SOUND}),
    "speech that reads like a text": (
        "realtime",
        {"type": "input_audio_buffer.append", "audio": base64.b64encode(b"\x01\x00\x02\x00" * 400).decode()},
    ),
    "speech in an item": (
        "realtime",
        {"type": "conversation.item.create", "item": {"content": [{"type": "input_audio", "audio": SOUND}]}},
    ),
    "setup": ("live", setup(modality="AUDIO")),
    "realtime input": ("live", {"realtimeInput": {"audio": {"mimeType": "audio/pcm", "data": SOUND}}}),
    "chunks": ("live", {"realtime_input": {"media_chunks": [{"mime_type": "audio/pcm", "data": SOUND}]}}),
    "video": ("live", {"realtime_input": {"video": {"mimeType": "image/jpeg", "data": SOUND}}}),
    "a picture": ("live", {"clientContent": {"turns": [{"parts": [{"inlineData": {"data": SOUND}}]}]}}),
}


@pytest.mark.parametrize(("family", "message"), SPOKEN.values(), ids=SPOKEN.keys())
@pytest.mark.parametrize("rule", OnUnknown)
def test_sound_follows_the_connection(family: str, message: dict[str, object], rule: OnUnknown) -> None:
    socket = opened(family, on_unknown=rule, model="m")
    step = sent(socket, message)
    if rule is OnUnknown.BLOCK:
        assert (step.up, reason_of(step)) == ((), "body_opaque")
        assert "not scanned" in (step.reason or json.loads(step.down[0])["error"]["message"])
    else:
        assert [json.loads(each) for each in step.up] == [message]
        media = [each for each in socket.decisions if each.stage == "media"]
        assert [(each.result, "not scanned" in each.detail) for each in media] == [(rule, True)]
    assert socket.scanned is Scanned.PARTLY


ANSWERED: dict[str, tuple[str, dict[str, Any]]] = {
    "sound": ("realtime", {"type": "response.output_audio.delta", "response_id": "r", "delta": SOUND}),
    "sound, in the beta": ("realtime", {"type": "response.audio.delta", "response_id": "r", "delta": SOUND}),
    "a spoken item": ("realtime", {"type": "conversation.item.retrieved", "item": {"content": [{"audio": SOUND}]}}),
    "a spoken part": ("realtime", {"type": "response.content_part.done", "part": {"audio": SOUND}}),
    "inline data": ("live", {"serverContent": {"modelTurn": {"parts": [{"inlineData": {"data": SOUND}}]}}}),
}


@pytest.mark.parametrize(("family", "event"), ANSWERED.values(), ids=ANSWERED.keys())
@pytest.mark.parametrize("rule", OnUnknown)
def test_what_is_spoken_follows_the_connection(family: str, event: dict[str, Any], rule: OnUnknown) -> None:
    socket = opened(family, on_unknown=rule)
    data = json.dumps(event).encode()
    step = socket.upstream(tells(data))
    if rule is OnUnknown.BLOCK:
        assert (reason_of(step), step.close) == ("answer_opaque", POLICY)
        assert SOUND.encode() not in b"".join(step.down)
        return
    assert step == Relay((data,))
    assert socket.upstream(tells(data)) == Relay((data,))
    assert socket.scanned is Scanned.PARTLY
    media = [each for each in socket.decisions if each.stage == "media"]
    assert [(each.result, each.detail) for each in media] == [(rule, media[0].detail)]
    assert media[0].detail.startswith("answers: not scanned: speech")


def test_a_text_in_the_place_of_sound_is_a_text() -> None:
    socket = opened("realtime", on_unknown=OnUnknown.PASS)
    (out,) = heard(socket, [{"type": "response.output_audio.delta", "response_id": "r", "delta": f"to {MAIL}!"}])
    assert out["delta"] == "to [REDACTED:mail]!"


def test_an_empty_piece_of_sound_is_none() -> None:
    socket = opened("realtime")
    assert heard(socket, [{"type": "response.output_audio.delta", "response_id": "r", "delta": ""}])
    assert socket.scanned is Scanned.WHOLE


def test_the_same_decision_on_many_messages_is_one() -> None:
    socket = opened("realtime", on_unknown=OnUnknown.FLAG)
    for _ in range(500):
        sent(socket, {"type": "input_audio_buffer.append", "audio": SOUND})
    sent(socket, item("hello"))
    sent(socket, {"type": "input_audio_buffer.append", "audio": SOUND})
    why = ": not scanned: speech, which no text rule can read"
    assert [(each.stage, each.result, each.detail) for each in socket.decisions] == [
        ("media", "flag", f"messages 1-500{why}"),
        ("inspect", "allow", "messages 1-502"),
        ("media", "flag", f"message 502{why}"),
    ]


@pytest.mark.parametrize(("heard_", "decided"), [(duplex.MESSAGES, 0), (0, sockets.MESSAGES + 1)])
def test_the_number_of_messages_is_bounded(heard_: int, decided: int) -> None:
    socket = begun("realtime")
    socket._heard = max(heard_, 1)
    socket.decisions += socket.decisions[:1] * decided
    assert reason_of(sent(socket, item("hello"))) == "protocol"


# ── what is no message of the API ────────────────────────────────────────────────────────────────────────────────────

ENDS: dict[str, tuple[str, ClientSaid, str]] = {
    "binary": ("realtime", asks(item("hello"), binary=True), "protocol"),
    "not JSON": ("realtime", asks(b"hello"), "body_malformed"),
    "unknown type": ("realtime", asks({"type": "session.destroy"}), "protocol"),
    "no type": ("realtime", asks({"session": {}}), "protocol"),
    "odd ping": ("realtime", ClientSaid(Form.CONTROL, b"", 0.0), "protocol"),
    "not JSON, live": ("live", asks(b"\x00\x01", binary=True), "body_malformed"),
    "no field": ("live", asks({}), "protocol"),
    "two fields": ("live", asks({"setup": {}, "clientContent": {}}), "protocol"),
    "unknown field": ("live", asks({"batch": {}}), "protocol"),
}


@pytest.mark.parametrize("rule", [OnUnknown.BLOCK, OnUnknown.FLAG])
@pytest.mark.parametrize(("family", "message", "code"), ENDS.values(), ids=ENDS.keys())
def test_what_ends_a_session(family: str, message: ClientSaid, code: str, rule: OnUnknown) -> None:
    socket = opened(family, on_unknown=rule, model="m")
    step = socket.client(message)
    assert isinstance(step, Relay)
    if rule is OnUnknown.FLAG and (b"destroy" in message.data or b"batch" in message.data):
        assert [json.loads(each) for each in step.up] == [json.loads(message.data)]
        assert socket.scanned is Scanned.PARTLY
    else:
        assert (step.up, step.close, reason_of(step)) == ((), POLICY, code)


def test_a_message_of_an_unknown_type_is_inspected_all_the_same() -> None:
    socket = opened("realtime", on_unknown=OnUnknown.PASS)
    step = sent(socket, {"type": "session.note", "deep": [{"er": f"{KEY}"}]})
    assert (step.up, reason_of(step)) == ((), "finding")


ODD: dict[str, tuple[str, UpstreamSaid, str]] = {
    "binary": ("realtime", tells({"type": "response.done"}, binary=True), "upstream_protocol"),
    "not JSON": ("realtime", tells(b"hello"), "answer_malformed"),
    "unknown type": ("realtime", tells({"type": "session.moved"}), "upstream_protocol"),
    "unknown field": ("live", tells({"serverContent": {}, "batch": {}}), "upstream_protocol"),
    "not JSON, live": ("live", tells(b"\x00", binary=True), "answer_malformed"),
}


@pytest.mark.parametrize("rule", [OnUnknown.BLOCK, OnUnknown.FLAG])
@pytest.mark.parametrize(("family", "event", "code"), ODD.values(), ids=ODD.keys())
def test_what_an_upstream_may_not_say(family: str, event: UpstreamSaid, code: str, rule: OnUnknown) -> None:
    socket = opened(family, on_unknown=rule)
    step = socket.upstream(event)
    if rule is OnUnknown.FLAG and (b"moved" in event.data or b"batch" in event.data):
        assert step == Relay((event.data,))
        assert socket.scanned is Scanned.PARTLY
    else:
        assert (step.close, reason_of(step)) == (POLICY, code)


def test_messages_leave_in_the_form_they_came_in() -> None:
    socket = opened("live")
    assert sent(socket, setup()).binary is False
    assert sent(socket, content("hello"), binary=True).binary is True
    assert socket.upstream(tells({"setupComplete": {}}, binary=True)).binary is True
    assert socket.upstream(tells({"serverContent": {}})).binary is False


@BOTH
def test_an_answer_that_the_policy_blocks_ends_the_session(family: str) -> None:
    socket = begun(family, action=Action.BLOCK)
    step = Relay()
    for event in LIVE[family].events(Said(f"it is {CARD} ok"), every(4)):
        step = socket.upstream(tells(event))
        assert CARD.encode() not in b"".join(step.down)
        if step.close is not None:
            break
    assert (step.close, reason_of(step)) == (POLICY, "answer_finding")


@BOTH
def test_a_token_that_expires_ends_the_session(family: str) -> None:
    socket = begun(family, caller=replace(ALICE, expires=100.0))
    step = sent(socket, PROMPT[family]("hello"), now=100.0)
    assert (step.close, reason_of(step)) == (POLICY, "token_expired")


# ── what is under way ────────────────────────────────────────────────────────────────────────────────────────────────


def test_answers_are_counted_by_their_ids() -> None:
    socket = begun("realtime")
    create: dict[str, object] = {"type": "response.create"}
    sent(socket, create)
    assert (socket.busy, socket.turns) == (True, 1)
    one, two = (realtime(Said("x"), number=number) for number in (1, 2))
    heard(socket, one[:3])
    assert (socket.busy, socket.turns) == (True, 1)
    heard(socket, two[:3])  # nobody asked for it: the provider heard a pause
    assert (socket.busy, socket.turns) == (True, 2)
    heard(socket, one[3:])
    assert socket.busy
    heard(socket, two[3:])
    assert not socket.busy


def test_a_question_that_the_provider_refuses_is_over() -> None:
    socket = begun("realtime")
    sent(socket, {"type": "response.create"})
    heard(socket, [{"type": "error", "error": {"message": "no"}}])
    assert not socket.busy


def test_a_turn_is_over_while_a_tool_runs() -> None:
    socket = begun("live")
    assert not socket.busy
    sent(socket, content("half", last=False))
    assert not socket.busy
    sent(socket, content("whole"))
    assert (socket.busy, socket.turns) == (True, 1)
    heard(socket, [{"toolCall": {"functionCalls": [{"id": "1", "name": "f", "args": {}}]}}])
    assert not socket.busy
    sent(socket, {"tool_response": {"functionResponses": [{"id": "1", "name": "f", "response": {"output": "x"}}]}})
    heard(socket, live(Said("done"))[:1])
    assert (socket.busy, socket.turns) == (True, 2)
    heard(socket, live(Said("done"))[1:])
    assert not socket.busy


PARTINGS = {
    "client, idle": (False, False, Outcome.ANSWERED, None, 1000),
    "upstream, idle": (True, False, Outcome.ANSWERED, None, 1000),
    "client, in an answer": (False, True, Outcome.ABORTED, Reason.CLIENT_GONE, 1000),
    "upstream, in an answer": (True, True, Outcome.FAILED, Reason.UPSTREAM_FAILED, POLICY),
}


@BOTH
@pytest.mark.parametrize(("upstream", "busy", "outcome", "reason", "code"), PARTINGS.values(), ids=PARTINGS.keys())
def test_who_leaves_and_when(
    family: str, upstream: bool, busy: bool, outcome: Outcome, reason: Reason | None, code: int
) -> None:
    socket = begun(family)
    if busy:
        heard(socket, itertools.islice(LIVE[family].events(Said(f"card {CARD[:8]}"), every(4)), 4))
    step = socket.upstream(UpstreamSaid(Form.END, b"")) if upstream else socket.client(ClientSaid(Form.END, b"", 0.0))
    assert isinstance(step, Relay)
    assert (step.close, socket.outcome) == (code, outcome)
    assert (socket.denial.reason if socket.denial else None) == reason
    assert CARD[:8].encode() not in b"".join(step.down)
    assert socket.rest().close == GOING_AWAY
