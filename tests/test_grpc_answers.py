"""Answers of gRPC calls: for every way to cut them a client reads what masking the whole text gives."""

from __future__ import annotations

import gzip
import itertools
import struct
from base64 import b64encode
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protos import SERVICE, descriptors, dialect
from tests.test_split_invariance import texts
from tests.wire import CARD, KEY, MAIL, always, engine
from tidegate.dialects.protobuf import pack, unpack
from tidegate.inspection.bodies import Inspected
from tidegate.model import Action, Denial, OnUnknown, Reason
from tidegate.streams.grpc import Deframer, frame
from tidegate.streams.grpc_answers import Answering, GrpcAnswer, masked_trailers, whole_answer
from tidegate.streams.redactor import redact, short_name

STOPPED = Denial(Reason.ANSWER_IDLE, 502, "The model provider paused.")


def about(
    action: Action = Action.REDACT,
    *,
    method: str = "ModelStreamInfer",
    on_unknown: OnUnknown = OnUnknown.BLOCK,
    limit: int = 1 << 20,
    encoding: str = "",
) -> Answering:
    found = descriptors().method(f"{SERVICE}/{method}")
    assert found is not None
    endpoint = dialect().endpoints["infer_stream" if method == "ModelStreamInfer" else "infer"]
    return Answering(found.answer, endpoint, engine(), always(action), on_unknown, limit, encoding)


def piece(texts: dict[str, list[str]], *, name: str = "", raw: bool = True, final: bool | None = None) -> Any:
    """Make a message: the elements of each output."""
    message: Any = about().kind()
    inner = message.infer_response
    inner.id, inner.model_name = name, "m"
    if final is not None:
        inner.parameters["triton_final_response"].bool_param = final
    for output, elements in texts.items():
        tensor = inner.outputs.add(name=output, datatype="BYTES", shape=[len(elements)])
        data = [each.encode() for each in elements]
        if raw:
            inner.raw_output_contents.append(pack(data))
        else:
            tensor.contents.bytes_contents.extend(data)
    return message


def stream(*messages: Any) -> bytes:
    return b"".join(frame(each.SerializeToString()) for each in messages)


def messages_of(data: bytes) -> list[Any]:
    deframer = Deframer("", 1 << 24)
    found = [about().kind.FromString(each) for each in deframer.feed(data)]
    deframer.end()
    assert deframer.fault is None
    return found


def read(data: bytes) -> dict[tuple[str, str, int], str]:
    """Join what each channel says: by id, output and element."""
    said: dict[tuple[str, str, int], str] = {}
    for message in messages_of(data):
        inner = message.infer_response
        raws = list(inner.raw_output_contents) or [b""] * len(inner.outputs)
        for tensor, raw in zip(inner.outputs, raws, strict=True):
            for index, element in enumerate([*(unpack(raw) or []), *tensor.contents.bytes_contents]):
                at = (inner.id, tensor.name, index)
                said[at] = said.get(at, "") + element.decode()
    return said


def run(gate: GrpcAnswer, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(min(at, len(data)) for at in cuts), len(data)]
    fed = [gate.feed(data[a:b]) for a, b in itertools.pairwise(edges)]
    return b"".join(fed) + gate.end()


def masked(text: str) -> str:
    return redact(engine(), always(Action.REDACT), short_name, text)[0]


said_by = st.fixed_dictionaries({("a", "out", 0): texts, ("a", "out", 1): texts, ("b", "out", 0): texts})


@settings(max_examples=150, deadline=None)
@given(said_by, st.integers(1, 12), st.booleans(), st.lists(st.integers(0, 4000), max_size=8))
def test_any_cut_of_texts_and_bytes_reads_like_the_whole(
    said: dict[tuple[str, str, int], str], size: int, raw: bool, cuts: list[int]
) -> None:
    length = max(map(len, said.values()))
    parts = []
    for at in range(0, length + 1, size):
        now = {key: text[at : at + size] for key, text in said.items()}
        parts.append(piece({"out": [now["a", "out", 0], now["a", "out", 1]]}, name="a", raw=raw))
        parts.append(piece({"out": [now["b", "out", 0]]}, name="b", raw=raw))
    gate = GrpcAnswer(about())
    out = run(gate, stream(*parts), cuts)
    assert gate.denial is None
    assert gate.held == 0
    assert read(out) == {key: masked(text) for key, text in said.items()}


@settings(max_examples=50, deadline=None)
@given(texts, st.integers(1, 12))
def test_nothing_leaves_that_is_masked_later(text: str, size: int) -> None:
    gate = GrpcAnswer(about())
    final, out = masked(text), b""
    for at in range(0, len(text), size):
        out += gate.feed(stream(piece({"out": [text[at : at + size]]})))
        assert final.startswith(read(out).get(("", "out", 0), ""))


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_held_text_leaves_before_the_final_answer_and_its_like_can_follow(raw: bool) -> None:
    gate = GrpcAnswer(about())
    half = len(KEY) // 2
    first = gate.feed(stream(piece({"out": ["key " + KEY[:half]]}, raw=raw)))
    assert read(first) == {("", "out", 0): "key "}
    rest = gate.feed(stream(piece({"out": [KEY[half:]]}, raw=raw, final=False), piece({}, final=True)))
    messages = messages_of(rest)
    assert [each.infer_response.parameters["triton_final_response"].bool_param for each in messages][-1] is True
    assert read(first + rest) == {("", "out", 0): masked(f"key {KEY}")}
    again = gate.feed(stream(piece({"out": ["key " + KEY[:half]]}, raw=raw), piece({}, final=True)))
    assert gate.denial is None
    assert read(again) == {("", "out", 0): "key " + KEY[:half]}
    late = [each for each in messages_of(again) if each.infer_response.outputs]
    assert [each.infer_response.outputs[0].shape[0] for each in late] == [1, 1]
    assert len(gate.findings) == 1


def test_a_text_that_goes_on_without_a_final_answer_is_one_text() -> None:
    gate = GrpcAnswer(about())
    out = b"".join(gate.feed(stream(piece({"out": [each]}))) for each in MAIL) + gate.end()
    assert read(out) == {("", "out", 0): masked(MAIL)}


def test_messages_that_do_not_change_keep_every_field() -> None:
    message = piece({"out": ["hello "]}, name="7")
    message.infer_response.parameters["x"].int64_param = 7
    gate = GrpcAnswer(about())
    assert messages_of(gate.feed(stream(message)) + gate.end())[0] == message


def test_what_stands_in_any_other_field_is_masked_too() -> None:
    message = piece({})
    message.error_message = f"cannot read {CARD}"
    message.infer_response.parameters[MAIL].string_param = "x"
    out = messages_of(GrpcAnswer(about()).feed(stream(message)))[0]
    assert out.error_message == masked(f"cannot read {CARD}")
    assert list(out.infer_response.parameters) == [masked(MAIL)]


def test_compressed_messages_leave_plain() -> None:
    data = gzip.compress(piece({"out": [MAIL + " "]}).SerializeToString())
    gate = GrpcAnswer(about(encoding="gzip"))
    out = gate.feed(b"\1" + struct.pack(">I", len(data)) + data) + gate.end()
    assert read(out) == {("", "out", 0): masked(MAIL + " ")}


BROKEN = {
    "no message": (frame(b"\xff\xff"), Reason.ANSWER_MALFORMED),
    "cut": (frame(b"hello")[:-1], Reason.ANSWER_MALFORMED),
    "flag": (b"\7\0\0\0\0", Reason.ANSWER_MALFORMED),
    "coding": (b"\1\0\0\0\1x", Reason.ANSWER_MALFORMED),
    "too large": (b"\0\xff\xff\xff\xff", Reason.ANSWER_TOO_LARGE),
    "an unknown field": (frame(b"\xf2\x3f\x05hello"), Reason.ANSWER_OPAQUE),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_read_ends_the_answer(data: bytes, reason: Reason) -> None:
    gate = GrpcAnswer(about())
    before = gate.feed(stream(piece({"out": ["hello "]})))
    assert read(before + gate.feed(data) + gate.end()) == {("", "out", 0): "hello "}
    assert gate.denial is not None
    assert gate.denial.reason is reason
    assert gate.feed(stream(piece({"out": ["more"]}))) == b""


def test_a_blocked_class_ends_the_answer() -> None:
    gate = GrpcAnswer(about(Action.BLOCK))
    out = gate.feed(stream(piece({"out": ["one "]}), piece({"out": [KEY + " two"]})))
    assert read(out) == {("", "out", 0): "one "}
    assert gate.denial is not None
    assert gate.denial.reason is Reason.ANSWER_FINDING


def test_an_answer_that_is_stopped_keeps_what_was_held() -> None:
    gate = GrpcAnswer(about())
    gate.feed(stream(piece({"out": [KEY[:-4]]})))
    assert gate.stop(STOPPED) == gate.end() == b""
    assert gate.denial is STOPPED


def test_unknown_fields_of_an_answer_are_kept_or_left_out() -> None:
    clean, found = b"\xf2\x3f\x05hello", b"\xf2\x3f" + bytes([len(MAIL)]) + MAIL.encode()
    gate = GrpcAnswer(about(on_unknown=OnUnknown.FLAG))
    assert gate.feed(frame(clean)) == frame(clean)
    assert gate.feed(frame(found)) == frame(b"")
    assert [each.where for each in gate.findings] == ["stream:$, unknown field 1022"]


# ── one message ──────────────────────────────────────────────────────────────────────────────────────────────────────


def one(text: str) -> Any:
    message: Any = about(method="ModelInfer").kind(id="1")
    message.outputs.add(name="out", datatype="BYTES", shape=[1])
    message.raw_output_contents.append(pack([text.encode()]))
    return message


def test_a_whole_answer_is_masked_and_fits_its_length() -> None:
    spec = about(method="ModelInfer")
    found = whole_answer(spec, stream(one(f"mail {MAIL} now")))
    assert isinstance(found, Inspected)
    (data,) = Deframer("", 1 << 20).feed(found.body)
    out: Any = spec.kind.FromString(data)
    assert unpack(out.raw_output_contents[0]) == [masked(f"mail {MAIL} now").encode()]
    assert [each.where for each in found.findings] == ["$.outputs[0].raw_output_contents[0].text"]


def test_a_whole_answer_may_be_empty_and_nothing_else() -> None:
    spec = about(method="ModelInfer")
    assert whole_answer(spec, b"") == Inspected(b"", ())
    for data in (stream(one("a"), one("b")), frame(b"\xff"), b"\0\0", stream(one("a"))[:-1]):
        found = whole_answer(spec, data)
        assert isinstance(found, Denial)
        assert found.reason is Reason.ANSWER_MALFORMED
    blocked = whole_answer(about(Action.BLOCK, method="ModelInfer"), stream(one(KEY)))
    assert isinstance(blocked, Denial)
    assert blocked.reason is Reason.ANSWER_FINDING


# ── trailers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def status(*fields: tuple[str, str]) -> dict[str, str]:
    kept, _ = masked_trailers(fields, engine(), always(Action.REDACT))
    return dict(kept)


def test_the_message_of_a_status_is_masked_in_its_escapes() -> None:
    hidden = "".join(f"%{each:02X}" for each in MAIL.encode())
    found = status(("grpc-status", "3"), ("grpc-message", f"caf%C3%A9 {hidden}"))
    assert unquote(found["grpc-message"]) == masked(f"café {MAIL}")
    assert found["grpc-message"].isascii()


DETAILS = b"\n" + bytes([len(KEY)]) + KEY.encode()
FIELDS = {
    "details": ("grpc-status-details-bin", b64encode(DETAILS).decode(), False),
    "details without padding": ("grpc-status-details-bin", b64encode(DETAILS).decode().rstrip("="), False),
    "details inside details": ("x-bin", b64encode(b"\x12" + bytes([len(DETAILS)]) + DETAILS).decode(), False),
    "clean details": ("grpc-status-details-bin", b64encode(b"\n\5hello").decode(), True),
    "no base64": ("x-bin", "%%%", False),
    "the second of two": ("x-bin", f"{b64encode(b'x').decode()},{b64encode(MAIL.encode()).decode()}", False),
    "a value": ("x-own", MAIL, False),
    "a name": (MAIL, "x", False),
    "a clean value": ("x-own", "hello", True),
}


@pytest.mark.parametrize(("name", "value", "stays"), FIELDS.values(), ids=FIELDS)
def test_other_trailers_stay_or_go(name: str, value: str, stays: bool) -> None:
    found = status(("grpc-status", "0"), (name, value))
    assert found.get(name) == (value if stays else None)


@pytest.mark.parametrize("fields", [(), (("grpc-status", "x"),), (("grpc-status", "1234"),)], ids=str)
def test_an_answer_without_a_status_has_one_of_ours(fields: tuple[tuple[str, str], ...]) -> None:
    assert status(*fields)["grpc-status"] == "13"
