"""``on_unknown``: what nobody can inspect is refused, or crosses and is recorded as such, in both directions."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.documents import PNG, docx, run
from tests.test_composing import CARD, KEY, crossed, file, form, parts_of, policy, refusal, sent, text, with_rule
from tests.wire import always, dialect, engine
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.dialects.kinds import BodyKind, Composition
from tidegate.model import Action, Denial, Head, OnUnknown, Outcome, Owners, Reason, Scanned, Stored
from tidegate.policy.policy import Policy
from tidegate.steps import Stage
from tidegate.streams.answers import AnswerHead, StreamedAnswer

__all__ = ["policy"]

LABEL = "multipart/form-data; boundary=mark-1"
MP3 = b"ID3\x04\0\0\0\0\0\x23TSSE\0\0\0\x0f" + bytes(range(256))
WAV = b"RIFF\x24\x08\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0" + bytes(64)

RULES = pytest.mark.parametrize("rule", OnUnknown)


def ask(path: str, body: object) -> tuple[str, bytes, str]:
    return (
        path,
        json.dumps({"model": "good-one", **body}).encode() if isinstance(body, dict) else b"",
        "application/json",
    )


def asked_form(path: str, *parts: tuple[str, bytes]) -> tuple[str, bytes, str]:
    return path, form(text("model", "good-one"), *parts), LABEL


V1 = "/openai/v1"
REQUESTS: dict[str, tuple[tuple[str, bytes, str], str]] = {
    "token ids": (ask(f"{V1}/completions", {"prompt": [1, 2]}), "$.prompt[0] was not scanned: it is or holds token ids, which text rules cannot read."),
    "lists of token ids": (ask(f"{V1}/embeddings", {"input": [[1, 2]]}), "$.input[0] was not scanned: it is or holds token ids or media, which text rules cannot read."),
    "embeddings": (ask(f"{V1}/completions", {"prompt": "", "prompt_embeds": "gASV"}), "$.prompt_embeds was not scanned: it is or holds embeddings as input, "),
    "speech": (asked_form(f"{V1}/audio/transcriptions", file(WAV, "a.wav", label="audio/wav")), "$.file was not scanned: it is or holds sound or video."),
    "a picture": (asked_form(f"{V1}/images/variations", file(PNG, "a.png", "image")), "$.image[0] was not scanned: it is or holds a picture."),
    "a spoken answer": (ask(f"{V1}/audio/speech", {"input": "hello"}), "The answer could not be scanned: it would be speech, in which no rule hears a text."),
    "a spoken answer of a chat": (ask(f"{V1}/chat/completions", {"messages": [], "modalities": ["text", "audio"]}), "$.modalities[1] was not scanned: it is or holds speech in the answer, "),
    "a drawn answer": (ask(f"{V1}/images/generations", {"prompt": "hello"}), "The answer could not be scanned: it would be pictures, in which no rule reads a text."),
    "a call": ((f"{V1}/realtime/calls", b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\n", "application/sdp"), "The answer could not be scanned: it would be speech over WebRTC, "),
}  # fmt: skip


def anyone(policy: Policy) -> Policy:
    """Return the policy for callers who may use any model: the offer of a call names none."""
    places = {
        at: {
            role: replace(each, allows=tuple(replace(rule, models=None) for rule in each.allows))
            for role, each in roles.items()
        }
        for at, roles in policy.permissions.places.items()
    }
    return replace(policy, permissions=replace(policy.permissions, places=places))


@RULES
@pytest.mark.parametrize(("request_", "message"), REQUESTS.values(), ids=REQUESTS.keys())
def test_requests(policy: Policy, request_: tuple[str, bytes, str], message: str, rule: OnUnknown) -> None:
    path, body, label = request_
    exchange, step = crossed(with_rule(anyone(policy), rule), body, path, label)
    assert exchange.scanned is Scanned.PARTLY
    told = [each for each in exchange.decisions if each.stage == "media"]
    if rule is OnUnknown.BLOCK:
        assert refusal(step)[0] == "body_opaque"
        assert refusal(step)[1].startswith(message), refusal(step)[1]
        assert [each.result for each in told] == ["deny"]
    else:
        assert isinstance(step, steps.KeepIntent)
        assert [each.result for each in told] == [rule]
        assert told[0].detail.startswith("not scanned: ")


def test_what_others_may_have_stored_is_refused_whatever_it_says(policy: Policy) -> None:
    path, body, label = ask(f"{V1}/responses", {"previous_response_id": "resp_1"})
    gate, step = crossed(with_rule(policy, OnUnknown.PASS), body, path, label)
    assert step == steps.LookUp((Stored("response", "resp_1"),))
    assert refusal(gate.receive(steps.BodyArrived(body, owners=Owners({}))))[0] == "not_owner"


SECRETS = {
    "speech to text": asked_form(f"{V1}/audio/transcriptions", text("prompt", f"is {KEY}"), file(WAV, "a.wav")),
    "text to speech": ask(f"{V1}/audio/speech", {"input": f"say {KEY}"}),
    "text to picture": ask(f"{V1}/images/generations", {"prompt": f"draw {KEY}"}),
    "picture to picture": asked_form(
        f"{V1}/images/edits", text("prompt", KEY), file(PNG, "a.png", "image[]"), file(PNG, "b.png", "image[]")
    ),
    "a document that is no picture": asked_form(
        f"{V1}/images/edits", text("prompt", ""), file(docx(run(KEY)), "a.png", "image")
    ),
    "a call": (f"{V1}/realtime/calls", f"v=0\r\ns={KEY}\r\n".encode(), "application/sdp"),
}


@pytest.mark.parametrize("request_", SECRETS.values(), ids=SECRETS.keys())
def test_the_texts_beside_are_inspected_all_the_same(policy: Policy, request_: tuple[str, bytes, str]) -> None:
    path, body, label = request_
    assert refusal(crossed(with_rule(anyone(policy), OnUnknown.PASS), body, path, label)[1])[0] == "finding"


def test_a_text_part_is_masked_in_place(policy: Policy) -> None:
    parts = (
        text("prompt", f"card {CARD}"),
        text("stream", "true"),
        text("include[]", "x"),
        file(WAV, "a.wav", label="audio/wav"),
    )
    exchange, step = crossed(
        with_rule(policy, OnUnknown.FLAG), *(asked_form(f"{V1}/audio/transcriptions", *parts)[i] for i in (1, 0, 2))
    )
    assert isinstance(step, steps.KeepIntent)
    assert exchange.asked is not None
    assert (exchange.asked.model, exchange.asked.stream) == ("good-one", True)
    found = parts_of(sent(exchange))
    assert found == {
        "model": b"good-one",
        "prompt": b"card [REDACTED:card-visa]",
        "stream": b"true",
        "include[]": b"x",
        "file": WAV,
    }
    assert [each.where for each in exchange.prompt_findings] == ["$.prompt"]


@pytest.mark.parametrize("value", ["yes", "", "TRUE"])
def test_a_flag_that_is_none_is_refused(policy: Policy, value: str) -> None:
    body = asked_form(f"{V1}/audio/transcriptions", text("stream", value), file(WAV))
    assert refusal(crossed(policy, body[1], body[0], LABEL)[1])[0] == "body_malformed"


def taking_data(policy: Policy) -> Policy:
    """Return the policy with a dialect whose embeddings are made of any bytes, as servers of one's own models take."""
    openai = policy.dialects["openai"]
    at = replace(openai.endpoints["embeddings"], made_of=Composition((BodyKind.JSON, BodyKind.TEXT, BodyKind.DATA)))
    changed = replace(openai, endpoints={**openai.endpoints, "embeddings": at})
    return anyone(replace(policy, dialects={**policy.dialects, "openai": changed}))


@RULES
def test_bodies_that_are_any_bytes(policy: Policy, rule: OnUnknown) -> None:
    data = with_rule(taking_data(policy), rule)
    exchange, step = crossed(data, PNG, f"{V1}/embeddings", "application/octet-stream")
    assert exchange.scanned is Scanned.PARTLY
    if rule is OnUnknown.BLOCK:
        assert refusal(step)[1].startswith("$ was not scanned: it is or holds a picture.")
    else:
        assert sent(exchange).clearance.verdict.body == PNG
    exchange, step = crossed(data, docx(run("hello")), f"{V1}/embeddings", "application/octet-stream")
    assert exchange.scanned is Scanned.WHOLE
    assert sent(exchange).clearance.verdict.body == docx(run("hello"))
    exchange, step = crossed(data, docx(run(KEY)), f"{V1}/embeddings", "application/octet-stream")
    assert refusal(step)[0] == "finding"
    assert [each.where for each in exchange.prompt_findings] == ["$ (docx: word/document.xml)"]
    exchange, step = crossed(data, f"card {CARD} é".encode(), f"{V1}/embeddings", "text/plain")
    assert sent(exchange).clearance.verdict.body == "card [REDACTED:card-visa] é".encode()
    assert exchange.scanned is Scanned.WHOLE


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def answered(
    policy: Policy, body: bytes, label: str, request_: tuple[str, bytes, str] | None = None
) -> tuple[Crossing, steps.Step]:
    path, asked, kind = request_ or ask(f"{V1}/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    exchange, _ = crossed(policy, asked, path, kind)
    sent(exchange)
    step = exchange.receive(steps.AnswerBegan(200, (("content-type", label),)))
    assert isinstance(step, steps.Buffer)
    return exchange, exchange.receive(steps.AnswerWhole(body))


OPAQUE = {
    "sound": (MP3, "sound or video"),
    "a picture": (PNG, "a picture"),
    "a document": (docx(run("x")), "a document, which is not opened in an answer"),
    "anything": (b"\x80\x00\x01\x02\xff" * 20, "data of an unknown type"),
}


@RULES
@pytest.mark.parametrize(("data", "what"), OPAQUE.values(), ids=OPAQUE.keys())
def test_answers_that_are_no_text(policy: Policy, data: bytes, what: str, rule: OnUnknown) -> None:
    exchange, step = answered(with_rule(policy, rule), data, "application/octet-stream")
    if rule is OnUnknown.BLOCK:
        assert refusal(step) == (
            "answer_opaque",
            f"The upstream's answer was not scanned: it is or holds {what}, so it was withheld.",
        )
        assert exchange.outcome is Outcome.DENIED
    else:
        assert step == steps.Emit(data, last=True)
        assert exchange.scanned is Scanned.PARTLY
        assert [(each.result, each.detail) for each in exchange.decisions if each.stage == "media"] == [
            (rule, f"answer not scanned: {what}")
        ]


READABLE = {
    "UTF-16": ('{"a": "' + KEY + '"}').encode("utf-16"),
    "UTF-16 without a mark": ('{"a": "' + KEY + '"}').encode("utf-16-le"),
    "Latin-1": f'{{"a": "{KEY} é"}}'.encode("latin-1"),
    "a picture that is a text": f"GIF89a {KEY}".encode(),
    "JSON that is broken": f'{{"a": "{KEY}'.encode(),
    "a text where JSON is due": f"hello {KEY}".encode(),
}


@pytest.mark.parametrize("data", READABLE.values(), ids=READABLE.keys())
def test_a_text_that_somebody_could_read_is_never_let_pass(policy: Policy, data: bytes) -> None:
    exchange, step = answered(with_rule(policy, OnUnknown.PASS), data, "audio/mpeg")
    assert refusal(step)[0] == "answer_malformed"
    assert exchange.stage is Stage.OVER


def spoken(policy: Policy, pieces: Sequence[bytes], label: str = "audio/mpeg") -> tuple[Crossing, list[bytes]]:
    """Let a spoken answer cross in pieces; return what leaves after each, and at the end."""
    path, asked, kind = REQUESTS["a spoken answer"][0]
    exchange, _ = crossed(with_rule(policy, OnUnknown.FLAG), asked, path, kind)
    sent(exchange)
    assert isinstance(exchange.receive(steps.AnswerBegan(200, (("content-type", label),))), steps.Stream)
    out = [exchange.receive(steps.AnswerChunk(piece)) for piece in pieces]
    out += [exchange.receive(steps.AnswerEnded())] if exchange.stage is Stage.STREAM else []
    assert all(isinstance(each, steps.Emit) for each in out)
    return exchange, [each.data for each in out if isinstance(each, steps.Emit)]


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 100, 1024, 5000])
def test_speech_that_was_let_ask_for_is_live(policy: Policy, size: int) -> None:
    data = MP3 * 20
    exchange, out = spoken(policy, pieces_of(data, size))
    assert b"".join(out) == data
    assert len([each for each in out if each]) >= len(data) // max(size, 1025)
    assert exchange.scanned is Scanned.PARTLY
    assert [each.detail for each in exchange.decisions if each.stage == "media"] == [
        "not scanned: speech, in which no rule hears a text",
        "answer not scanned: sound or video",
    ]
    assert (exchange.outcome, exchange.streamed) == (Outcome.ANSWERED, True)


@pytest.mark.parametrize("size", [1, 700, 5000])
def test_a_short_answer_is_told_at_its_end(policy: Policy, size: int) -> None:
    exchange, out = spoken(policy, pieces_of(MP3, size))
    assert out == [*([b""] * len(pieces_of(MP3, size))), MP3]
    assert exchange.scanned is Scanned.PARTLY


@pytest.mark.parametrize("size", [1, 700, 5000])
@pytest.mark.parametrize("length", [10, 3000])
def test_a_text_in_the_place_of_speech_is_inspected(policy: Policy, size: int, length: int) -> None:
    body = json.dumps({"audio": "", "text": "hello " * length, "card": CARD}).encode()
    exchange, out = spoken(policy, pieces_of(body, size), "application/octet-stream")
    assert json.loads(b"".join(out))["card"] == "[REDACTED:card-visa]"
    assert not any(out[:-1])
    assert exchange.answer_findings
    exchange, out = spoken(policy, pieces_of(f"{'hello ' * length} {KEY}".encode(), size))
    assert json.loads(b"".join(out))["error"]["code"] == "answer_malformed", "no text is due here"
    assert exchange.outcome is Outcome.DENIED


def test_speech_that_is_stopped_says_nothing_more(policy: Policy) -> None:
    path, asked, kind = REQUESTS["a spoken answer"][0]
    for first, words in ((MP3 * 9, b""), (MP3, b'{"error":')):
        exchange, _ = crossed(with_rule(policy, OnUnknown.FLAG), asked, path, kind)
        sent(exchange)
        exchange.receive(steps.AnswerBegan(200, (("content-type", "audio/mpeg"),)))
        exchange.receive(steps.AnswerChunk(first))
        step = exchange.receive(steps.Stopped(Denial(Reason.ANSWER_IDLE, 502, "It is late.")))
        assert isinstance(step, steps.Emit)
        assert step.data.startswith(words)
        assert bool(step.data) == bool(words)


TRANSCRIBE = asked_form(f"{V1}/audio/transcriptions", file(WAV, "a.wav", label="audio/wav"))
SRT = f"1\n00:00:00,000 --> 00:00:04,000\nThe card is {CARD}.\n"
TEXTS = {
    "text": (f"The card is {CARD}.", "The card is [REDACTED:card-visa]."),
    "text in brackets": (f"[music] {CARD}", "[music] [REDACTED:card-visa]"),
    "srt": (SRT, SRT.replace(CARD, "[REDACTED:card-visa]")),
    "vtt": (f"WEBVTT\n\n{SRT}", f"WEBVTT\n\n{SRT}".replace(CARD, "[REDACTED:card-visa]")),
    "json": (json.dumps({"text": CARD}), '{"text":"[REDACTED:card-visa]"}'),
    "clean": ("1\n00:00:00,000 --> 00:00:04,000\nhello\n", "1\n00:00:00,000 --> 00:00:04,000\nhello\n"),
}


@pytest.mark.parametrize(("said", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_transcripts_are_masked(policy: Policy, said: str, expected: str) -> None:
    exchange, step = answered(with_rule(policy, OnUnknown.PASS), said.encode(), "text/plain; charset=utf-8", TRANSCRIBE)
    assert step == steps.Emit(expected.encode(), last=True)
    assert {each.where for each in exchange.answer_findings} <= {"$", "$.text"}


def test_pieces_of_a_transcript_that_was_masked_are_dropped(policy: Policy) -> None:
    pieces = [{"text": each} for each in CARD.split(" ")]
    body = json.dumps({"text": CARD, "segments": pieces, "words": pieces}).encode()
    _, step = answered(with_rule(policy, OnUnknown.PASS), body, "application/json", TRANSCRIBE)
    assert isinstance(step, steps.Emit)
    assert json.loads(step.data) == {"text": "[REDACTED:card-visa]", "segments": [], "words": []}


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def streamed(
    endpoint: str, events: list[dict[str, Any]], rule: OnUnknown = OnUnknown.BLOCK, size: int = 7
) -> tuple[list[dict[str, Any]], StreamedAnswer]:
    openai = dialect("openai")
    head = AnswerHead("text/event-stream", 200, rule)
    gate = StreamedAnswer(openai.endpoints[endpoint], openai.error, engine(), always(Action.REDACT), "ex-1", head)
    data = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)
    marks = [*range(0, len(data), size), len(data)]
    out = b"".join(gate.feed(data[a:b]) for a, b in pairwise(marks)) + gate.end()
    return [json.loads(line[6:]) for line in out.decode().split("\n\n") if line], gate


MINE = "sk-AbCd1234EfGh5678"


@pytest.mark.parametrize("size", [1, 3, 50, 1000])
def test_a_streamed_transcript_is_one_channel(size: int) -> None:
    said = f"the key {MINE} is his"
    events: list[dict[str, Any]] = [
        {"type": "transcript.text.delta", "delta": said[i : i + 3], "logprobs": [{"token": "x"}]}
        for i in range(0, len(said), 3)
    ]
    events.append({"type": "transcript.text.done", "text": said, "usage": {"type": "tokens"}})
    out, gate = streamed("transcriptions", events, size=size)
    assert gate.denial is None
    assert "".join(each.get("delta", "") for each in out) == out[-1]["text"] == "the key [REDACTED:key] is his"
    assert not any(each.get("logprobs") for each in out)


def test_segments_of_a_transcript_are_one_channel() -> None:
    half = {"type": "transcript.text.segment", "id": "s", "start": 0.1, "end": 1, "speaker": "A"}
    out, _ = streamed(
        "transcriptions",
        [{**half, "text": MINE[:9]}, {**half, "text": MINE[9:]}, {"type": "transcript.text.done", "text": MINE}],
    )
    assert "".join(each.get("text", "") for each in out[:-1]) == out[-1]["text"] == "[REDACTED:key]"


STREAMS = {
    "speech": ("speech", {"type": "speech.audio.delta", "audio": "QUFB" * 20}),
    "pictures": (
        "image_generations",
        {"type": "image_generation.partial_image", "b64_json": "iVBORw0KGgo" * 9, "partial_image_index": 0},
    ),
    "edited pictures": ("image_edits", {"type": "image_edit.completed", "b64_json": "iVBORw0KGgo" * 9, "usage": {}}),
}


@pytest.mark.parametrize(("endpoint", "event"), STREAMS.values(), ids=STREAMS.keys())
def test_media_in_streams_pass_with_their_bytes(endpoint: str, event: dict[str, Any]) -> None:
    out, gate = streamed(endpoint, [event, event])
    assert (out, gate.denial, gate.unread) == ([event, event], None, ())


def test_an_event_of_an_unknown_type_follows_on_unknown() -> None:
    events = [
        {"type": "transcript.text.delta", "delta": "hello "},
        {"type": "transcript.speaker", "name": f"is {MINE}"},
    ]
    out, gate = streamed("transcriptions", events)
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_OPAQUE
    assert [each.get("delta") for each in out[:-1]] == ["hello "]
    assert out[-1]["code"] == "answer_opaque"
    out, gate = streamed("transcriptions", events, OnUnknown.FLAG)
    assert (gate.denial, gate.unread) == (None, (("the answer", "an event of an unknown type"),))
    assert out[1]["name"] == "is [REDACTED:key]", "its texts are looked at all the same"


def test_an_unknown_event_is_recorded(policy: Policy) -> None:
    asked = asked_form(f"{V1}/audio/transcriptions", text("stream", "true"), file(WAV, "a.wav", label="audio/wav"))
    exchange, _ = crossed(with_rule(policy, OnUnknown.FLAG), asked[1], asked[0], LABEL)
    sent(exchange)
    step = exchange.receive(steps.AnswerBegan(200, (("content-type", "text/event-stream"),)))
    assert isinstance(step, steps.Stream)
    exchange.receive(steps.AnswerChunk(b'data: {"type": "odd", "x": 1}\n\n'))
    exchange.receive(steps.AnswerEnded())
    assert exchange.scanned is Scanned.PARTLY
    assert exchange.decisions[-1].detail == "answer not scanned: an event of an unknown type"


# ── Azure ────────────────────────────────────────────────────────────────────────────────────────────────────────────

AZURE = "/openai/openai/deployments/good-one"
DEPLOYED = {
    "chat": (f"{AZURE}/chat/completions?api-version=2024-10-21", {"messages": []}),
    "completions": (f"{AZURE}/completions?api-version=2024-10-21", {"prompt": "x"}),
    "embeddings": (f"{AZURE}/embeddings?api-version=2024-10-21", {"input": "x"}),
    "chat, v1": ("/openai/openai/v1/chat/completions?api-version=preview", {"messages": [], "model": "good-one"}),
    "responses, v1": ("/openai/openai/v1/responses", {"input": "x", "model": "good-one"}),
}


@pytest.mark.parametrize(("path", "body"), DEPLOYED.values(), ids=DEPLOYED.keys())
def test_a_deployment_is_the_model(policy: Policy, path: str, body: dict[str, object]) -> None:
    exchange, step = crossed(policy, json.dumps(body).encode(), path)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.asked is not None
    assert exchange.asked.model == "good-one"
    assert sent(exchange).clearance.verdict.grant.route.path == path.removeprefix("/openai")


def test_the_deployment_is_what_counts(policy: Policy) -> None:
    body = json.dumps({"messages": [], "model": "good-two"}).encode()
    exchange, _ = crossed(policy, body, f"{AZURE}/chat/completions")
    assert exchange.asked is not None
    assert exchange.asked.model == "good-one"
    _, step = crossed(policy, body, f"{AZURE}/chat/completions".replace("good-one", "bad"))
    assert refusal(step)[0] == "model_denied"


def test_a_key_of_azure_is_a_token(policy: Policy) -> None:
    exchange = Crossing(policy, "ex_1")
    step = exchange.receive(steps.HeadArrived(Head("POST", f"{AZURE}/chat/completions", (("api-key", "Token"),), None)))
    assert step == steps.Identify("Token")
