"""Media in requests: where they are, what is read of them, and what the connection's on_unknown makes of the rest."""

from __future__ import annotations

import base64
import collections
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.documents import PNG, archive, docx, pdf, run
from tests.test_dialects import FAMILIES, bodies
from tidegate import steps
from tidegate.crossing import Crossing
from tidegate.dialects.load import parse_dialect
from tidegate.inspection import media
from tidegate.inspection.attachments import Extraction, Text, extract, found
from tidegate.inspection.cache import DiskCache
from tidegate.model import Action, Caller, Head, OnUnknown, Reason, Scanned
from tidegate.policy.loading import load
from tidegate.policy.policy import Policy

RULES = Path(__file__).resolve().parents[1] / "rules"
KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
MAIL = "jane.doe@example-mail.com"
ALICE = Caller("local", "alice", frozenset({"local:dev"}))
PLACE = "$.messages[0].content[1].file.file_data"


def dialect(name: str) -> Any:
    made, faults = parse_dialect((RULES / "dialects" / f"{name}.yaml").read_text(), name)
    assert made is not None, faults
    return made


CHAT, RESPONSES = (dialect("openai").endpoints[name] for name in ("chat", "responses"))
MESSAGES = dialect("anthropic").endpoints["messages"]
GEMINI, CONVERSE = dialect("gemini").endpoints["stream"], dialect("bedrock").endpoints["converse_stream"]
OLLAMA, COHERE = dialect("ollama").endpoints, dialect("cohere").endpoints["chat"]
INLINE = {"mimeType": "image/png", "data": base64.urlsafe_b64encode(PNG).decode().rstrip("=")}
STORED_FILE = {"file_data": {"file_uri": "https://x.test/a"}}
BYTES, BUCKET = {"source": {"bytes": base64.b64encode(PNG).decode()}}, {"source": {"s3Location": {"uri": "s3://b/k"}}}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{b64(data)}"


def content(*parts: dict[str, object]) -> dict[str, object]:
    return {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": list(parts)}]}


def given(*parts: dict[str, object]) -> dict[str, object]:
    return {"model": "m", "input": [{"role": "user", "content": list(parts)}]}


def source(kind: str, **more: object) -> dict[str, object]:
    return {"type": "document", "source": {"type": kind, **more}}


WHERE: dict[str, tuple[Any, object, list[tuple[str, str]]]] = {
    "chat picture": (CHAT, content({"image_url": {"url": url(PNG)}}), [("$.messages[0].content[0].image_url.url", "")]),
    "chat picture, bare": (CHAT, content({"image_url": url(PNG)}), [("$.messages[0].content[0].image_url", "")]),
    "chat picture, address": (
        CHAT,
        content({"image_url": {"url": "https://x.test/a.png"}}),
        [("$.messages[0].content[0].image_url.url", found.ADDRESS)],
    ),
    "chat picture, no base64": (
        CHAT,
        content({"image_url": {"url": "data:image/png;base64,!"}}),
        [("$.messages[0].content[0].image_url.url", found.NOT_BASE64)],
    ),
    "chat picture, another form": (
        CHAT,
        content({"image_url": {"uri": "gs://b/a.png"}}),
        [("$.messages[0].content[0].image_url", found.ADDRESS)],
    ),
    "chat picture, a list": (
        CHAT,
        content({"image_url": {"url": [url(PNG)]}}),
        [("$.messages[0].content[0].image_url", found.STORED)],
    ),
    "chat file": (CHAT, content({"file": {"file_data": url(PNG)}}), [("$.messages[0].content[0].file.file_data", "")]),
    "chat file, stored, which is the caller's own": (CHAT, content({"file": {"file_id": "f"}}), []),
    "chat file, data and stored": (
        CHAT,
        content({"file": {"file_data": b64(PNG), "file_id": "f"}}),
        [("$.messages[0].content[0].file.file_data", "")],
    ),
    "chat audio": (
        CHAT,
        content({"input_audio": {"data": b64(PNG), "format": "wav"}}),
        [("$.messages[0].content[0].input_audio.data", "")],
    ),
    "chat audio, an earlier one, which is refused": (CHAT, {"messages": [{"audio": {"id": "a"}}]}, []),
    "ollama pictures": (CHAT, {"messages": [{"images": [b64(PNG)]}]}, [("$.messages[0].images[0]", "")]),
    "ollama pictures, no list": (CHAT, {"messages": [{"images": b64(PNG)}]}, [("$.messages[0].images", "")]),
    "responses picture": (RESPONSES, given({"image_url": url(PNG)}), [("$.input[0].content[0].image_url", "")]),
    "responses file": (RESPONSES, given({"file_data": url(PNG)}), [("$.input[0].content[0].file_data", "")]),
    "responses address": (
        RESPONSES,
        given({"file_url": "//x.test/aaaa"}),
        [("$.input[0].content[0].file_url", found.STORED)],
    ),
    "responses stored, which is the caller's own": (RESPONSES, given({"file_id": "f"}), []),
    "responses tool result": (
        RESPONSES,
        {"input": [{"type": "function_call_output", "output": [{"image_url": url(PNG)}]}]},
        [("$.input[0].output[0].image_url", "")],
    ),
    "responses screenshot": (
        RESPONSES,
        {"input": [{"type": "computer_call_output", "output": {"image_url": url(PNG)}}]},
        [("$.input[0].output.image_url", "")],
    ),
    "responses made picture": (RESPONSES, {"input": [{"result": b64(PNG)}]}, [("$.input[0].result", "")]),
    "anthropic picture": (
        MESSAGES,
        content({"type": "image", "source": {"type": "base64", "data": b64(PNG)}}),
        [("$.messages[0].content[0].source.data", "")],
    ),
    "anthropic picture, address": (
        MESSAGES,
        content({"type": "image", "source": {"type": "url", "url": "https://x.test/"}}),
        [
            ("$.messages[0].content[0]", found.ADDRESS),
            ("$.messages[0].content[0].source", found.ADDRESS),
            ("$.messages[0].content[0].source.url", found.ADDRESS),
        ],
    ),
    "anthropic picture without a source": (
        MESSAGES,
        content({"type": "image", "x": 1}),
        [("$.messages[0].content[0]", found.STORED)],
    ),
    "anthropic document": (
        MESSAGES,
        content(source("base64", data=b64(PNG))),
        [("$.messages[0].content[0].source.data", "")],
    ),
    "anthropic document, text": (MESSAGES, content(source("text", data="hello")), []),
    "anthropic document, stored": (
        MESSAGES,
        content(source("file", file_id="f")),
        [("$.messages[0].content[0].source", found.STORED)],
    ),
    "anthropic document of tomorrow": (
        MESSAGES,
        content(source("gcs", bucket="b")),
        [("$.messages[0].content[0].source", found.STORED)],
    ),
    "anthropic picture in a document": (
        MESSAGES,
        content(source("content", content=[{"type": "image", "source": {"type": "base64", "data": b64(PNG)}}])),
        [("$.messages[0].content[0].source.content[0].source.data", "")],
    ),
    "anthropic picture in a tool result": (
        MESSAGES,
        content(
            {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": b64(PNG)}}]}
        ),
        [("$.messages[0].content[0].content[0].source.data", "")],
    ),
    "anthropic search result": (MESSAGES, content({"type": "search_result", "source": "https://x.test"}), []),
    "gemini": (
        GEMINI,
        {"contents": [{"parts": [{"text": "x"}, {"inlineData": INLINE}]}]},
        [("$.contents[0].parts[1].inlineData.data", "")],
    ),
    "gemini, both spellings": (
        GEMINI,
        {"contents": {"parts": {"inline_data": INLINE, "inlineData": INLINE}}},
        [("$.contents.parts.inline_data.data", ""), ("$.contents.parts.inlineData.data", "")],
    ),
    "gemini, no text": (
        GEMINI,
        {"contents": [{"parts": [{"inlineData": {"data": [1]}}]}]},
        [("$.contents[0].parts[0].inlineData", found.STORED)],
    ),
    "gemini stored file": (
        GEMINI,
        {"contents": {"parts": STORED_FILE}},
        [("$.contents.parts.file_data", found.ADDRESS)],
    ),
    "gemini tool result": (
        GEMINI,
        {"contents": [{"parts": [{"functionResponse": {"parts": [{"inline_data": INLINE}]}}]}]},
        [("$.contents[0].parts[0].functionResponse.parts[0].inline_data.data", "")],
    ),
    "gemini instruction": (
        GEMINI,
        {"system_instruction": {"parts": [{"inlineData": INLINE}, STORED_FILE]}},
        [
            ("$.system_instruction.parts[0].inlineData.data", ""),
            ("$.system_instruction.parts[1].file_data", found.ADDRESS),
        ],
    ),
    "ollama chat": (OLLAMA["chat"], {"messages": [{"images": [b64(PNG)]}]}, [("$.messages[0].images[0]", "")]),
    "ollama chat, no list": (OLLAMA["chat"], {"messages": [{"images": b64(PNG)}]}, [("$.messages[0].images", "")]),
    "ollama generate": (OLLAMA["generate"], {"prompt": "x", "images": [b64(PNG)]}, [("$.images[0]", "")]),
    "cohere": (
        COHERE,
        content({"type": "image_url", "image_url": {"url": url(PNG)}}),
        [("$.messages[0].content[0].image_url.url", "")],
    ),
    "converse": (
        CONVERSE,
        content({"image": BYTES}, {"document": BYTES}, {"document": {"source": {"text": "x"}}}),
        [("$.messages[0].content[0].image.source.bytes", ""), ("$.messages[0].content[1].document.source.bytes", "")],
    ),
    "converse, stored": (
        CONVERSE,
        content({"video": BUCKET}, {"document": BUCKET}),
        [
            ("$.messages[0].content[0].video", found.ADDRESS),
            ("$.messages[0].content[0].video.source.*", found.ADDRESS),
            ("$.messages[0].content[1].document.source.*", found.ADDRESS),
        ],
    ),
    "converse tool result": (
        CONVERSE,
        content({"toolResult": {"content": [{"video": {}}, {"document": BYTES}]}}),
        [
            ("$.messages[0].content[0].toolResult.content[0].video", found.STORED),
            ("$.messages[0].content[0].toolResult.content[1].document.source.bytes", ""),
        ],
    ),
    "converse guard": (
        CONVERSE,
        {"system": [{"guardContent": {"image": BYTES}}], "messages": [{"content": [{"guardContent": {"image": 1}}]}]},
        [
            ("$.system[0].guardContent.image.source.bytes", ""),
            ("$.messages[0].content[0].guardContent.image", found.STORED),
        ],
    ),
    "text": (CHAT, content({"type": "text", "text": "data:;base64,aGVsbG8="}), []),
    "nothing": (CHAT, content({"image_url": None}), []),
}


@pytest.mark.parametrize(("endpoint", "body", "expected"), WHERE.values(), ids=WHERE.keys())
def test_media_are_found(endpoint: Any, body: object, expected: list[tuple[str, str]]) -> None:
    parts = media.parts(endpoint, body)
    assert [(part.place, part.why) for part in parts] == expected
    assert all(part.data == PNG for part in parts if not part.why)


def test_media_of_recorded_requests() -> None:
    """Of 2,504 recorded requests, those with media: how many parts there are, and why some were not scanned."""
    requests, parts, why = 0, 0, collections.Counter[str]()
    for api, value in bodies("request"):
        here = media.parts(FAMILIES[api][1], value) if isinstance(value, dict) else ()
        requests += bool(here)
        parts += len(here)
        for part in here:
            why.update([part.why] if part.data is None else extract(part.data).unread)
    assert (requests, parts) == (83, 94)
    assert why == {found.ADDRESS: 33, found.PICTURE: 30, found.STORED: 3, found.SOUND: 1}, "23 PDF, 3 office: all read"


# ── the order of an exchange ─────────────────────────────────────────────────


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(RULES / "policy.yaml", engine_cache=DiskCache())


def with_rule(policy: Policy, rule: OnUnknown) -> Policy:
    prefixes = tuple((path, replace(each, on_unknown=rule)) for path, each in policy.routes.prefixes)
    return replace(policy, routes=replace(policy.routes, prefixes=prefixes))


def crossed(policy: Policy, body: object, path: str = "/openai/v1/chat/completions") -> tuple[Crossing, steps.Step]:
    """Bring a request to its judgement, reading its attachments in this process."""
    exchange = Crossing(policy, "ex_1")
    exchange.receive(steps.HeadArrived(Head("POST", path, (("authorization", "Bearer x"),), None)))
    exchange.receive(steps.CallerKnown(ALICE))
    event = steps.BodyArrived(json.dumps(body).encode())
    step = exchange.receive(event)
    if isinstance(step, steps.Extract):
        assert exchange.decisions[-1].stage == "grant", "nothing has changed while the attachments are read"
        step = exchange.receive(replace(event, extracted=tuple(map(extract, step.attachments))))
    return exchange, step


def file(data: bytes) -> dict[str, object]:
    return content({"type": "text", "text": "see"}, {"type": "file", "file": {"file_data": url(data), "filename": "a"}})


def test_letters_that_encode_a_picture_are_no_text(policy: Policy) -> None:
    """By chance they may spell what a rule looks for; to mask it would break the picture."""
    data = PNG + bytes(-len(PNG) % 3) + base64.b64decode(f"///+{KEY}+///")
    assert f"+{KEY}+" in b64(data)
    body = content({"image_url": {"url": url(data)}}, {"type": "text", "text": "what is it"})
    exchange, step = crossed(with_rule(policy, OnUnknown.PASS), body)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.prompt_findings == ()
    assert exchange.verdict is not None
    assert json.loads(exchange.verdict.body) == body


def test_a_document_without_findings_is_sent_as_it_is(policy: Policy) -> None:
    body = file(docx(run("hello")))
    exchange, step = crossed(policy, body)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.verdict is not None
    assert json.loads(exchange.verdict.body) == body
    assert exchange.scanned is Scanned.WHOLE


def test_a_finding_in_a_document_names_its_place(policy: Policy) -> None:
    exchange, step = crossed(policy, file(docx(run(KEY[:9]) + run(KEY[9:]))))
    assert isinstance(step, steps.Refuse)
    place = f"{PLACE} (docx: word/document.xml)"
    assert step.denial.message == (
        f"Blocked by policy: {place} contains something of the class secrets (rule secrets.aws-access-key). Nothing "
        "was sent to the model; remove it and try again."
    )
    assert place in {each.where for each in exchange.prompt_findings}
    assert exchange.scanned is Scanned.WHOLE


def test_what_would_be_masked_in_a_document_is_refused(policy: Policy) -> None:
    exchange, step = crossed(policy, file(pdf(f"write to {MAIL}")))
    assert isinstance(step, steps.Refuse)
    assert (step.denial.reason, step.denial.status) == (Reason.FINDING, 403)
    assert step.denial.message == (
        f"Blocked: {PLACE} (pdf: page 1) contains something of the class pii (rule pii.email), which the policy masks, "
        "and nothing can be masked inside a file. Nothing was sent to the model; take it out of the file, or send the "
        "file's text in its place."
    )
    assert {each.action for each in exchange.prompt_findings} == {Action.REDACT}
    assert exchange.verdict is None


def test_what_is_flagged_in_a_document_is_sent(policy: Policy) -> None:
    flagging = {way: dict.fromkeys(table, Action.FLAG) for way, table in policy.decisions.items()}
    exchange, step = crossed(replace(policy, decisions=flagging), file(archive({"a.txt": KEY})))
    assert isinstance(step, steps.KeepIntent)
    assert f"{PLACE} (zip: a.txt)" in {each.where for each in exchange.prompt_findings}


def test_a_text_beside_a_document_is_masked_and_the_document_kept(policy: Policy) -> None:
    body = file(docx(run("hello")))
    body["messages"][0]["content"][0]["text"] = f"write to {MAIL}"  # type: ignore[index]
    exchange, step = crossed(policy, body)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.verdict is not None
    sent = json.loads(exchange.verdict.body)["messages"][0]["content"]
    assert sent[0]["text"] == "write to [REDACTED:email]"
    assert sent[1] == body["messages"][0]["content"][1]  # type: ignore[index]


NOT_SCANNED = {
    "picture": (
        content({"image_url": {"url": url(PNG, "image/png")}}),
        "$.messages[0].content[0].image_url.url",
        "a picture",
    ),
    "address": (
        content({"image_url": {"url": "https://x.test/a.png"}}),
        "$.messages[0].content[0].image_url.url",
        "an address, which the provider reads past this gate",
    ),
    "elsewhere": (
        content({"file": {"file_url": "f"}}),
        "$.messages[0].content[0].file.file_url",
        "something stored at the provider",
    ),
    "picture in a document": (file(docx("x", word_a__png=PNG)), PLACE, "a picture"),
    "damaged": (file(archive({"a": "x" * 99})[:-30]), PLACE, "data that is damaged"),
    "unknown": (file(bytes([1, 2, 3]) * 50), PLACE, "data of an unknown type"),
}


@pytest.mark.parametrize(("body", "place", "why"), NOT_SCANNED.values(), ids=NOT_SCANNED.keys())
def test_what_was_not_scanned_is_blocked(policy: Policy, body: object, place: str, why: str) -> None:
    exchange, step = crossed(policy, body)
    assert isinstance(step, steps.Refuse)
    assert (step.denial.reason, step.denial.status) == (Reason.BODY_OPAQUE, 400)
    assert step.denial.message == (
        f"{place} was not scanned: it is or holds {why}. Nothing was sent to the model; send text, or a document that "
        "can be read."
    )
    assert exchange.decisions[-1].stage == "media"
    assert exchange.scanned is Scanned.PARTLY
    assert exchange.verdict is None


@pytest.mark.parametrize("rule", [OnUnknown.FLAG, OnUnknown.PASS])
@pytest.mark.parametrize(("body", "place", "why"), NOT_SCANNED.values(), ids=NOT_SCANNED.keys())
def test_what_was_not_scanned_may_pass(policy: Policy, body: object, place: str, why: str, rule: OnUnknown) -> None:
    exchange, step = crossed(with_rule(policy, rule), body)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.verdict is not None
    assert json.loads(exchange.verdict.body) == body
    assert exchange.scanned is Scanned.PARTLY
    told = [each for each in exchange.decisions if each.stage == "media"]
    assert [(each.result, each.detail) for each in told] == [(rule, f"not scanned: {why}")]


@pytest.mark.parametrize(
    "body",
    [
        file(archive({"a.txt": KEY, "b.png": PNG})),
        content({"image_url": {"url": f"data:image/png;name={KEY};base64,{b64(PNG)}"}}),
        content({"image_url": {"url": f"https://x.test/?key={KEY}"}}),
        content({"image_url": {"url": KEY}}),
        content({"image_url": {"url": f"data:text/plain,{KEY}"}}),
        content({"image_url": {"url": f"data:image/png;base64,{b64(KEY.encode())}"}}),
        content({"image_url": {"url": url(b"\x01\x02" + KEY.encode() + b"\x03")}}),
        content({"file": {"filename": KEY, "file_data": url(PNG)}}),
        content({"file": {"file_url": KEY}}),
    ],
    ids=["in part", "label", "address", "letters of base64", "plain data:", "wrong label", "unknown", "name", "id"],
)
def test_a_connection_that_passes_media_blocks_what_is_found_in_them(policy: Policy, body: object) -> None:
    exchange, step = crossed(with_rule(policy, OnUnknown.PASS), body)
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is Reason.FINDING
    assert KEY not in step.denial.message + repr(exchange.prompt_findings)


@pytest.mark.parametrize("name", [f"{KEY}.txt", f"{MAIL}.txt", "no plain näme.txt", "x" * 80, "a/12345678.txt", "a\nb"])
def test_a_name_inside_a_document_never_travels(policy: Policy, name: str) -> None:
    exchange, step = crossed(policy, file(archive({name: KEY})))
    assert isinstance(step, steps.Refuse)
    places = {each.where for each in exchange.prompt_findings}
    assert f"{PLACE} (zip: entry 2)" in places
    assert not any(name in each for each in (*places, step.denial.message))


@pytest.mark.parametrize(
    "text",
    ["see ![x]({}) größe", "{}", f"{url(PNG)} and {{}}", "data:x {}"],
    ids=["markdown", "bare", "after a picture", "after a colon"],
)
def test_a_document_in_a_text_is_read_too(policy: Policy, text: str) -> None:
    said = text.format(url(archive({"a.txt": KEY})))
    exchange, step = crossed(policy, {"model": "m", "messages": [{"role": "user", "content": said}]})
    assert isinstance(step, steps.Refuse)
    number = 2 if said.startswith(url(PNG)) else 1
    place = f"$.messages[0].content, data: URL {number} (zip: a.txt)"
    assert place in {each.where for each in exchange.prompt_findings}
    assert step.denial.reason is Reason.FINDING


def test_a_picture_in_a_text_is_a_text(policy: Policy) -> None:
    said = {
        "model": "m",
        "messages": [{"role": "user", "content": f"<img src='{url(PNG)}'> {url(archive({'b': PNG}))}"}],
    }
    exchange, step = crossed(policy, said)
    assert isinstance(step, steps.KeepIntent)
    assert exchange.verdict is not None
    assert json.loads(exchange.verdict.body) == said
    assert exchange.scanned is Scanned.WHOLE


def test_requests_without_media_are_scanned(policy: Policy) -> None:
    exchange, _ = crossed(policy, content({"type": "text", "text": "hello"}))
    assert exchange.scanned is Scanned.WHOLE
    exchange, _ = crossed(policy, {"model": "m", "messages": [], "previous_response_id": 1, "logprobs": True})
    assert exchange.scanned is None, "refused before anything was inspected"


def test_what_a_reader_did_not_answer_is_a_bug_and_no_pass(policy: Policy) -> None:
    exchange = Crossing(with_rule(policy, OnUnknown.PASS), "ex_1")
    head = Head("POST", "/openai/v1/chat/completions", (("authorization", "Bearer x"),), None)
    exchange.receive(steps.HeadArrived(head))
    exchange.receive(steps.CallerKnown(ALICE))
    with pytest.raises(ValueError, match="an attachment was not read"):
        exchange.receive(steps.BodyArrived(json.dumps(file(docx("x"))).encode(), (), ()))


def test_texts_of_one_place_are_all_inspected(policy: Policy) -> None:
    part = media.Part(("a",), "$.a", "", docx("x"))
    read = Extraction("zip", (Text("a.txt", "one"), Text("a.txt", "two"), Text("a.txt", "three")))
    opened = media.opened((part, part), (read, read), policy.engine)
    assert sorted(opened.texts.values()) == ["one", "one", "three", "three", "two", "two"]
    assert "$.a (zip: a.txt) 2" in opened.texts


def test_keys_that_are_shown_alike_hide_nothing(policy: Policy) -> None:
    clean, other = url(archive({"a.txt": "x"})), url(archive({"a.txt": KEY}))
    _, step = crossed(policy, {"messages": [{"images": {"a-1": clean, "a-2": other, "a-3": clean}}]})
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is Reason.FINDING
    _, step = crossed(policy, {"messages": [{"images": {"a-1": clean, "a-2": url(PNG)}}]})
    assert isinstance(step, steps.Refuse)
    assert step.denial.reason is Reason.BODY_OPAQUE
