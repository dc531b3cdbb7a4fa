"""A2A and MCP streams: artifacts in chunks, cut anywhere; whole tasks of the same chunks; what was recorded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import CARD, KEY, MAIL, PEM, RECORDED, always, dialect, engine, run
from tidegate.dialects.spec import refused
from tidegate.inspection.bodies import Inspected, inspect_answer, inspect_request
from tidegate.model import Action
from tidegate.streams.answers import AnswerHead, StreamedAnswer
from tidegate.streams.redactor import redact, short_name

VERSIONS = ["0.3", "1.0", "1.0 in snake_case"]
FRAGMENTS = [
    KEY,
    MAIL,
    CARD,
    PEM,
    "sk-",
    "AbCd1234",
    "jane.doe",
    "@",
    ".co",
    "x",
    " ",
    "4111",
    "\n",
    '"',
    "\\",
    "é",
    "😀",
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
chunks = st.lists(texts, min_size=1, max_size=6)


def masked(text: str) -> str:
    return redact(engine(), always(Action.REDACT), short_name, text)[0]


def gate(name: str = "a2a") -> StreamedAnswer:
    found = dialect(name)
    head = AnswerHead("text/event-stream", 200)
    return StreamedAnswer(found.endpoints["post"], found.error, engine(), always(Action.REDACT), "ex_1", head)


# ── both ends of the wire ────────────────────────────────────────────────────────────────────────────────────────────


def chunk(version: str, artifact: str, parts: Sequence[str], *, append: bool, last: bool) -> dict[str, Any]:
    words = [{"kind": "text", "text": each} if version == "0.3" else {"text": each} for each in parts]
    update: dict[str, Any] = {"taskId": "t", "contextId": "c", "artifact": {"artifactId": artifact, "parts": words}}
    update |= {"append": append, "lastChunk": last} if version == "0.3" else {}
    update |= {name: True for name, given in (("append", append), ("lastChunk", last)) if given}
    update |= {"kind": "artifact-update"} if version == "0.3" else {}
    event = {"jsonrpc": "2.0", "id": "q", "result": update if version == "0.3" else {"artifactUpdate": update}}
    return snake(event) if "snake" in version else event


def status(version: str, *, done: bool, text: str = "") -> dict[str, Any]:
    words = [{"kind": "text", "text": text} if version == "0.3" else {"text": text}]
    state = (
        ("completed" if done else "working") if version == "0.3" else f"TASK_STATE_{'COMPLETED' if done else 'WORKING'}"
    )
    update: dict[str, Any] = {"taskId": "t", "contextId": "c", "status": {"state": state, "message": {"parts": words}}}
    update |= {"kind": "status-update", "final": done} if version == "0.3" else {}
    event = {"jsonrpc": "2.0", "id": "q", "result": update if version == "0.3" else {"statusUpdate": update}}
    return snake(event) if "snake" in version else event


SNAKE = {
    "artifactUpdate": "artifact_update", "statusUpdate": "status_update", "taskId": "task_id",
    "contextId": "context_id", "artifactId": "artifact_id", "lastChunk": "last_chunk",
}  # fmt: skip


def snake(value: Any) -> Any:
    """Write the fields of an event as proto-JSON may have them too."""
    if isinstance(value, dict):
        return {SNAKE.get(name, name): snake(each) for name, each in value.items()}
    return [snake(each) for each in value] if isinstance(value, list) else value


def camel(value: Any) -> Any:
    names = {name: each for each, name in SNAKE.items()}
    if isinstance(value, dict):
        return {names.get(name, name): camel(each) for name, each in value.items()}
    return [camel(each) for each in value] if isinstance(value, list) else value


def sse(events: Sequence[object]) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in events)


def events(stream: bytes) -> list[dict[str, Any]]:
    blocks = stream.decode().replace("\r\n", "\n").split("\n\n")
    return [camel(json.loads(block.partition("data: ")[2])) for block in blocks if block.strip()]


def update(event: dict[str, Any], kind: str) -> dict[str, Any] | None:
    result = event["result"]
    if "kind" in result:
        return result if result["kind"] == kind else None
    name = "artifactUpdate" if kind == "artifact-update" else "statusUpdate"
    return result.get(name)


def artifacts(stream: bytes) -> dict[str, str]:
    """Read the artifacts as a client does, which stops at the end of the task."""
    found: dict[str, str] = {}
    for event in events(stream):
        said = update(event, "artifact-update")
        if said is not None:
            name = said["artifact"]["artifactId"]
            assert said["taskId"] == "t"
            words = "".join(part["text"] for part in said["artifact"]["parts"])
            found[name] = (found[name] if said.get("append") else "") + words
        over = update(event, "status-update")
        if over is not None and over["status"]["state"] in {"completed", "TASK_STATE_COMPLETED"}:
            break
    return found


def talk(version: str, said: dict[str, list[str]], order: Sequence[str], *, last: bool) -> list[dict[str, Any]]:
    """Stream artifacts in chunks, in this order of their names."""
    left = {name: list(parts) for name, parts in said.items()}
    out = [status(version, done=False, text="working")]
    for name in [*order, *(name for name, parts in said.items() for _ in parts)]:
        if left.get(name):
            begun = len(left[name]) < len(said[name])
            part = left[name].pop(0)
            half = len(part) // 2
            words = [part] if half % 2 else [part[:half], part[half:]]
            out.append(chunk(version, name, words, append=begun, last=last and not left[name]))
    return [*out, status(version, done=True, text="done")]


@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("version", VERSIONS)
@given(
    said=st.dictionaries(st.sampled_from(["a", "b"]), chunks, min_size=1),
    order=st.lists(st.sampled_from(["a", "b"]), max_size=12),
    last=st.booleans(),
    draw=st.data(),
)
def test_any_cut_of_artifacts_and_bytes_reads_like_the_whole(
    version: str, said: dict[str, list[str]], order: list[str], draw: st.DataObject, *, last: bool
) -> None:
    stream = sse(talk(version, said, order, last=last))
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    answer = gate()
    out = run(answer, stream, cuts)
    assert answer.denial is None
    assert artifacts(out) == {name: masked("".join(parts)) for name, parts in said.items()}
    assert answer.held == 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("text", [KEY, MAIL, CARD, PEM], ids=["key", "mail", "card", "pem"])
def test_every_cut_in_two_is_masked(version: str, text: str) -> None:
    for at in range(1, len(text)):
        out = run(gate(), sse(talk(version, {"a": [f"x {text[:at]}", f"{text[at:]} y"]}, (), last=True)))
        assert artifacts(out) == {"a": masked(f"x {text} y")}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_artifact_that_begins_anew_replaces_the_one_before(version: str) -> None:
    parts = [
        chunk(version, "a", ["first jane.doe"], append=False, last=False),
        chunk(version, "a", ["@example.co and more"], append=False, last=False),
        chunk(version, "a", [" of it"], append=True, last=True),
        status(version, done=True),
    ]
    answer = gate()
    out = run(answer, sse(parts))
    assert answer.denial is None
    assert artifacts(out) == {"a": "@example.co and more of it"}
    firsts = [update(each, "artifact-update") for each in events(out)]
    assert (
        "".join(part["text"] for each in firsts[:2] if each for part in each["artifact"]["parts"]) == "first jane.doe"
    )
    assert firsts[1] is not None
    assert firsts[1]["append"] is True, "held text must not replace what it ends"


@pytest.mark.parametrize("version", VERSIONS)
def test_held_text_leaves_before_the_task_ends(version: str) -> None:
    parts = [chunk(version, "a", ["mail jane.doe"], append=False, last=False), status(version, done=True)]
    assert artifacts(run(gate(), sse(parts))) == {"a": "mail jane.doe"}


@pytest.mark.parametrize("version", VERSIONS)
def test_clean_events_keep_their_bytes(version: str) -> None:
    parts = [
        status(version, done=False, text="working, é"),
        chunk(version, "a", ["All is well. "], append=False, last=True),
        status(version, done=True, text="done"),
    ]
    assert run(gate(), sse(parts)) == sse(parts)


# ── whole tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def task(version: str, parts: Sequence[str]) -> dict[str, Any]:
    words = [{"kind": "text", "text": each} if version == "0.3" else {"text": each} for each in parts]
    found = {"id": "t", "status": {"state": "completed"}, "artifacts": [{"artifactId": "a", "parts": words}]}
    return {"jsonrpc": "2.0", "id": "q", "result": found if version == "0.3" else {"task": found}}


def whole(body: object) -> tuple[Any, Inspected]:
    data = json.dumps(body).encode()
    found = inspect_answer(dialect("a2a").endpoints["post"], engine(), always(Action.REDACT), data, status=200)
    assert isinstance(found, Inspected)
    return json.loads(found.body), found


@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("version", VERSIONS)
@given(said=st.lists(texts, min_size=2, max_size=6))
def test_a_whole_task_loses_what_the_stream_of_its_chunks_loses(version: str, said: list[str]) -> None:
    body, _ = whole(task(version, said))
    result = body["result"] if version == "0.3" else body["result"]["task"]
    got = [part["text"] for part in result["artifacts"][0]["parts"]]
    streamed = artifacts(run(gate(), sse(talk(version, {"a": said}, (), last=True))))
    for value in (KEY, MAIL, CARD):
        if value not in masked("".join(said)):
            assert value not in "".join(got)
    assert masked("".join(got)) == "".join(got)
    if not any("[REDACTED" in each for each in (streamed["a"], *got)):
        assert got == said


def test_pieces_are_masked_where_the_finding_begins() -> None:
    body, found = whole(task("1.0", ["Write to ja", "ne.doe@ex", "ample.co", " and go"]))
    parts = [part["text"] for part in body["result"]["task"]["artifacts"][0]["parts"]]
    assert parts == ["Write to [REDACTED:mail]", "", "", " and go"]
    assert [each.where for each in found.findings] == ["$.result.task.artifacts[0].parts[0].text"]


def test_pieces_of_a_request_are_one_text() -> None:
    body = {"params": {"message": {"parts": [{"text": "use sk-AbCd"}, {"text": "1234EfGh5678 now"}]}}}
    endpoint = dialect("a2a").endpoints["send"]
    found = inspect_request(endpoint, engine(), always(Action.REDACT), body)
    assert isinstance(found, Inspected)
    assert json.loads(found.body)["params"]["message"]["parts"] == [{"text": "use [REDACTED:key]"}, {"text": " now"}]
    assert [each.rule for each in found.findings] == ["t.key"]


def test_pieces_that_are_blocked_end_the_answer() -> None:
    data = json.dumps(task("1.0", ["mail jane.doe", "@example.co"])).encode()
    found = inspect_answer(dialect("a2a").endpoints["post"], engine(), always(Action.BLOCK), data, status=200)
    assert not isinstance(found, Inspected)


def test_a_finding_that_only_is_flagged_in_pieces_is_noted_once() -> None:
    said = ["mail jane.doe", "@example.co and max@example.co"]
    data = json.dumps(task("1.0", said)).encode()
    found = inspect_answer(dialect("a2a").endpoints["post"], engine(), always(Action.FLAG), data, status=200)
    assert isinstance(found, Inspected)
    assert json.loads(found.body) == task("1.0", said)
    assert sorted(each.where for each in found.findings) == [
        "$.result.task.artifacts[0].parts[0].text",
        "$.result.task.artifacts[0].parts[1].text",
    ]


# ── what was recorded ────────────────────────────────────────────────────────────────────────────────────────────────


def recorded() -> Iterator[dict[str, Any]]:
    if RECORDED.exists():
        with gzip.open(RECORDED, "rt", encoding="utf-8") as rows:
            yield from (row for row in map(json.loads, rows) if row["api"] == "a2a")


def words(value: object) -> Iterator[tuple[dict[str, Any], str]]:
    """Find the text of every part, wherever it is."""
    for part in value.get("parts", ()) if isinstance(value, dict) else ():
        if isinstance(part.get("text"), str):
            yield part, "text"
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from words(child)


needs_corpus = pytest.mark.skipif(not RECORDED.exists(), reason="the recorded corpus is not here")


@needs_corpus
def test_recorded_requests_are_read_and_found() -> None:
    rows = list(recorded())
    assert len(rows) == 7
    door = dialect("a2a").endpoints["post"].calls
    assert door is not None
    for row in rows:
        body = json.loads(row["request"]["body"]) if isinstance(row["request"]["body"], str) else row["request"]["body"]
        endpoint = door.methods[body["method"]]
        assert refused(endpoint, body, redacting=True) is None
        found = inspect_request(endpoint, engine(), always(Action.REDACT), json.loads(json.dumps(body)))
        assert isinstance(found, Inspected)
        assert json.loads(found.body) == body
        said = list(words(body))
        assert said
        for holder, name in said:
            holder[name] += f" {KEY} "
        found = inspect_request(endpoint, engine(), always(Action.REDACT), body)
        assert isinstance(found, Inspected)
        assert [each.rule for each in found.findings] == ["t.key"] * len(said)
        assert KEY.encode() not in found.body


@needs_corpus
@pytest.mark.parametrize("size", [1, 3, 40, 100_000])
def test_recorded_answers_keep_their_bytes_and_lose_what_is_planted(size: int) -> None:
    for row in recorded():
        stream = row["response"]["body"].encode()
        cuts = list(range(size, len(stream), size))
        assert run(gate(), stream, cuts) == stream
        planted = events(stream)
        said = [each for event in planted for each in words(event)]
        assert said
        for holder, name in said:
            holder[name] += f" {KEY} and {MAIL}"
        out = run(gate(), sse(planted), cuts)
        assert [word[0][word[1]] for event in events(out) for word in words(event)] == [
            masked(holder[name]) for holder, name in said
        ]


# ── MCP ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(said=st.lists(texts, min_size=1, max_size=5), draw=st.data())
def test_the_cut_of_an_mcp_stream_changes_no_byte(said: list[str], draw: st.DataObject) -> None:
    parts = [{"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": each}} for each in said]
    parts.append({"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": said[0]}]}})
    stream = b": ping\n\nid: 1\ndata: \n\n" + sse(parts)
    cuts = draw.draw(st.lists(st.integers(0, len(stream)), max_size=10))
    answer = gate("mcp")
    out = run(answer, stream, cuts)
    assert answer.denial is None
    assert out == run(gate("mcp"), stream)
    endpoint = dialect("mcp").endpoints["post"]
    lines = [line for line in out.decode().replace("\r\n", "\n").split("\n") if line.startswith("data: {")]
    for line, before in zip(lines, parts, strict=True):
        same = inspect_answer(endpoint, engine(), always(Action.REDACT), json.dumps(before).encode(), status=200)
        assert isinstance(same, Inspected)
        assert json.loads(line[6:]) == json.loads(same.body)
