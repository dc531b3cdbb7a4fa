"""Messages as rules see them, what is put back into them, and descriptor sets with faults."""

from __future__ import annotations

# ruff: noqa: E501 - a message is one line
import copy
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protos import SERVICE, described, descriptors, dialect
from tidegate.dialects import protobuf
from tidegate.dialects.load import parse_dialect
from tidegate.dialects.methods import misfits
from tidegate.dialects.protobuf import BINARY, NUMBERS, PACKED, UNKNOWN, Descriptors, pack, show, unpack, write
from tidegate.dialects.spec import GrpcSpec

WIDE = """
syntax = "proto3";
package wide;
import "google/protobuf/any.proto";
service Wide { rpc Do(All) returns (All); }
message Inner { string text = 1; repeated Inner inner = 2; }
enum Kind { NONE = 0; SOME = 1; }
message All {
  string text = 1;
  bytes data = 2;
  repeated string texts = 3;
  map<string, string> notes = 4;
  map<int32, Inner> by_number = 5;
  map<string, Inner> by_name = 6;
  int64 number = 7;
  repeated uint64 numbers = 8;
  double real = 9;
  Kind kind = 10;
  oneof choice { string left = 11; Inner right = 12; }
  google.protobuf.Any any = 13;
  repeated bytes datas = 14;
}
"""
OLD = WIDE.replace("string text = 1;\n  bytes data = 2;", "bytes data = 2;").replace(
    "map<string, string> notes = 4;", ""
)
SPEC = GrpcSpec()


def wide(source: str = WIDE, **fields: Any) -> Any:
    method = descriptors(source).method("/wide.Wide/Do")
    assert method is not None
    return method.request(**fields)


def infer(**fields: Any) -> Any:
    method = descriptors().method(f"{SERVICE}/ModelInfer")
    assert method is not None
    return method.request(**fields)


KSERVE = dialect().endpoints["infer"].grpc
assert KSERVE is not None
TENSORS: GrpcSpec = KSERVE


def test_every_text_is_shown_and_can_be_changed() -> None:
    message = wide(
        text="a",
        data="é".encode(),
        texts=["b", "c"],
        notes={"k": "d"},
        number=123456789,
        left="e",
        kind=1,
        datas=[b"f"],
    )
    message.by_number[7].text = "g"
    message.by_name["n"].inner.add(text="h")
    shown = show(message, SPEC)
    assert shown.unread == []
    assert shown.value == {
        "text": "a", "data": "é", "texts": ["b", "c"], "notes": {"k": "d"}, "by_number": {"7": {"text": "g"}},
        "by_name": {"n": {"inner": [{"text": "h"}]}}, "number": 123456789, "kind": 1, "left": "e", "datas": ["f"],
    }  # fmt: skip
    after: Any = copy.deepcopy(shown.value)
    after |= {"text": "A", "data": "É", "notes": {"[K]": "D"}, "number": "[N]", "left": "", "datas": ["F"]}
    after["texts"][1] = "C"
    after["by_number"]["7"]["text"] = "G"
    after["by_name"] = {"[N]": {"inner": [{"text": "H"}]}}
    after = {key: after[key] for key in shown.value}
    write(message, SPEC, after)
    assert (message.text, message.data, list(message.texts)) == ("A", "É".encode(), ["b", "C"])
    assert (dict(message.notes), message.number, message.left, list(message.datas)) == ({"[K]": "D"}, 0, "", [b"F"])
    assert (message.by_number[7].text, message.by_name["[N]"].inner[0].text) == ("G", "H")
    assert message.kind == 1


def test_what_is_emptied_is_cleared() -> None:
    message = wide(texts=["b"], text="a", left="c")
    write(message, SPEC, {"text": None, "texts": [], "left": "c"})
    assert message == wide(left="c")


MISSING = {
    "bytes that are no text": (wide(data=b"\xff"), [("$.data", BINARY)]),
    "one of many bytes": (wide(datas=[b"a", b"\xff"]), [("$.datas[1]", BINARY)]),
    "a field of later days": (wide(OLD), []),
}


@pytest.mark.parametrize(("message", "unread"), MISSING.values(), ids=MISSING)
def test_what_is_not_shown_is_named(message: Any, unread: list[tuple[str, str]]) -> None:
    assert show(message, SPEC).unread == unread


def test_any_is_named() -> None:
    message = wide()
    message.any.Pack(wide(text="hidden"))
    assert ("$.any", BINARY) in show(message, SPEC).unread


def test_unknown_fields_are_named_read_and_kept() -> None:
    newer = wide(text="in a new field", notes={"key": "deep inside"})
    older = protobuf.parse(type(wide(OLD)), newer.SerializeToString())
    shown = show(older, SPEC)
    assert shown.value == {}
    assert [why for _, why in shown.unread] == [UNKNOWN, UNKNOWN]
    assert "in a new field" in shown.texts["$, unknown field 1"].split("\n")
    assert "deep inside" in shown.texts["$, unknown field 4"].split("\n")
    older.data = b"x"
    write(older, SPEC, {"data": "y"})
    back = protobuf.parse(type(newer), protobuf.dump(older))
    assert back == wide(text="in a new field", notes={"key": "deep inside"}, data=b"y")


def test_tensors_are_unpacked_and_packed_again() -> None:
    message = infer(model_name="m")
    for name, kind in (("text", "BYTES"), ("max", "INT32"), ("more", "BYTES")):
        message.inputs.add(name=name, datatype=kind, shape=[1])
    message.raw_input_contents.extend([pack([b"one", b"two"]), struct.pack("<i", 4711), pack([b""])])
    shown = show(message, TENSORS)
    assert shown.unread == []
    inputs: Any = shown.value["inputs"]
    assert inputs[0]["raw_input_contents"] == [{"index": 0, "text": "one"}, {"index": 1, "text": "two"}]
    assert inputs[1]["raw_input_contents"] == 4711
    after: Any = copy.deepcopy(shown.value)
    after["inputs"][0]["raw_input_contents"][1]["text"] = "[REDACTED:x]"
    after["inputs"][1]["raw_input_contents"] = "[N]"
    write(message, TENSORS, after)
    assert list(message.raw_input_contents) == [pack([b"one", b"[REDACTED:x]"]), bytes(4), pack([b""])]


ODD = {
    "token ids": ("INT32", struct.pack("<3i", 1, 2, 3), NUMBERS),
    "a vector": ("FP32", struct.pack("<2f", 1, 2), NUMBERS),
    "a type that nobody knows": ("STRANGE", b"hello", NUMBERS),
    "a length beyond the end": ("BYTES", b"\x09\0\0\0short", PACKED),
    "a length that is cut": ("BYTES", pack([b"x"]) + b"\1", PACKED),
    "an element that is no text": ("BYTES", pack([b"\xff"]), BINARY),
}


@pytest.mark.parametrize(("kind", "data", "why"), ODD.values(), ids=ODD)
def test_raw_data_that_are_no_texts_are_named(kind: str, data: bytes, why: str) -> None:
    message = infer()
    message.inputs.add(name="t", datatype=kind)
    message.raw_input_contents.append(data)
    ((place, found),) = show(message, TENSORS).unread
    assert (place.startswith("$.inputs[0].raw_input_contents"), found) == (True, why)


def test_raw_data_without_their_tensors_are_named() -> None:
    message = infer(raw_input_contents=[pack([b"hidden"])])
    assert show(message, TENSORS).unread == [("$.raw_input_contents", PACKED)]


def test_a_vector_in_an_answer_is_not_missed_and_token_ids_are() -> None:
    method = descriptors().method(f"{SERVICE}/ModelInfer")
    assert method is not None
    answer: Any = method.answer()
    answer.outputs.add(name="v", datatype="FP32")
    answer.outputs.add(name="w", datatype="FP32").contents.fp32_contents.extend([1, 2])
    answer.raw_output_contents.extend([struct.pack("<2f", 1, 2), b""])
    assert show(answer, TENSORS, answer=True).unread == []
    answer.outputs.add(name="ids", datatype="INT64").contents.int64_contents.extend([1, 2])
    answer.raw_output_contents.append(b"")
    assert show(answer, TENSORS, answer=True).unread == [("$.outputs[2].contents.*", NUMBERS)]


@pytest.mark.parametrize(
    "after", [{}, {"text": "a"}, {"text": "a", "other": ["b"]}, {"text": "a", "texts": ["b", "c"]}]
)
def test_a_view_of_another_form_is_not_written(after: Any) -> None:
    with pytest.raises(protobuf.Unwritable):
        write(wide(text="a", texts=["b"]), SPEC, after)


def test_more_values_than_anybody_sends_are_refused() -> None:
    message = wide(datas=[b""] * (protobuf.MAX_VALUES + 1))
    with pytest.raises(protobuf.Unreadable):
        show(message, SPEC)


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(protobuf.Unreadable):
        protobuf.parse(type(wide()), b"\x0a\xff")
    with pytest.raises(protobuf.Unreadable):
        protobuf.parse(type(wide()), b"\x0a\x01\xff")  # a string that is not UTF-8


names = st.text(max_size=6)
inner = st.recursive(
    st.builds(dict, text=names),
    lambda below: st.builds(dict, text=names, inner=st.lists(below, max_size=2)),
    max_leaves=4,
)
messages = st.builds(
    wide,
    text=names,
    data=st.binary(max_size=6),
    texts=st.lists(names, max_size=3),
    notes=st.dictionaries(names, names, max_size=3),
    by_number=st.dictionaries(st.integers(-9, 9), inner, max_size=2),
    by_name=st.dictionaries(names, inner, max_size=2),
    number=st.integers(-(2**63), 2**63 - 1),
    numbers=st.lists(st.integers(0, 2**64 - 1), max_size=3),
    real=st.floats(),
    datas=st.lists(st.binary(max_size=3), max_size=3),
)


@given(messages)
def test_a_view_that_does_not_change_changes_nothing(message: Any) -> None:
    before = message.SerializeToString(deterministic=True)
    write(message, SPEC, show(message, SPEC).value)
    assert message.SerializeToString(deterministic=True) == before


@given(messages)
def test_every_text_of_a_message_is_in_its_view_or_named(message: Any) -> None:
    def upper(value: Any) -> Any:
        if isinstance(value, str):
            return f"<{value}>"
        if isinstance(value, dict):
            return {key: upper(child) for key, child in value.items()}
        return [upper(child) for child in value] if isinstance(value, list) else value

    shown, before = show(message, SPEC), [message.data, *message.datas]
    after = upper(shown.value)
    write(message, SPEC, after)
    assert show(message, SPEC).value == after
    hidden = [each for each, now in zip(before, [message.data, *message.datas], strict=True) if each and each == now]
    assert len(hidden) == len(shown.unread)


@given(st.lists(st.binary(max_size=9), max_size=5))
def test_packing_is_undone_by_unpacking(elements: list[bytes]) -> None:
    assert unpack(pack(elements)) == elements


SETS = {
    "no set": (b"\xff\xff", "a file that is no descriptor set"),
    "an empty set": (b"", "a descriptor set without any service"),
}


@pytest.mark.parametrize(("data", "why"), SETS.values(), ids=SETS)
def test_a_set_with_a_fault(data: bytes, why: str) -> None:
    with pytest.raises(protobuf.DescriptorFault, match=why):
        Descriptors(data)


def test_a_set_without_its_imports() -> None:
    from google.protobuf import descriptor_pb2

    whole = descriptor_pb2.FileDescriptorSet.FromString(described(WIDE))
    del whole.file[0]
    with pytest.raises(protobuf.DescriptorFault, match="without all its imports"):
        Descriptors(whole.SerializeToString())


def test_what_a_dialect_wants_of_a_set() -> None:
    assert list(misfits(dialect(), descriptors())) == []
    found = [what for what, _ in misfits(dialect(), descriptors(WIDE))]
    assert f"no method {SERVICE}/ModelInfer, which the endpoint infer is" in found
    streamed = "dialect: a\nversion: 1\nendpoints:\n  a: {methods: [POST], paths: [PATH], grpc: {}}\n"
    other = dialect(streamed.replace("PATH", f"{SERVICE}/ModelStreamInfer"))
    ((what, accepted),) = misfits(other, descriptors())
    assert (what, accepted) == (
        f"an answer in many messages of {SERVICE}/ModelStreamInfer",
        "a section stream in the endpoint a",
    )


def test_a_field_that_would_be_hidden_by_raw_data_is_a_misfit() -> None:
    source = """
        syntax = "proto3"; package c; service C { rpc Do(M) returns (M); }
        message T { string type = 1; string raw = 2; }
        message M { repeated T of = 1; repeated bytes raw = 2; }
    """
    text = (
        "dialect: a\nversion: 1\nendpoints:\n  a: {methods: [POST], paths: [/c.C/Do], "
        "grpc: {tensors: [{data: raw, of: of, type: type, text: [T]}]}}\n"
    )
    found = {what for what, _ in misfits(dialect(text), descriptors(source))}
    assert found == {"a field raw in c.T"}


METHOD = "methods: [POST], paths: [/a.A/Do]"
PATHS = "one path such as /package.Service/Method, and the method POST"
FORM = "a form of Python's struct for one number, such as i"
TENSOR = "{data: raw, of: of, type: kind, text: [T]"
DIALECTS = {
    "two paths": ("methods: [POST], paths: [/a.A/Do, /a.A/Be], grpc: {}", f"found POST /a.A/Do, /a.A/Be; accepted: {PATHS}"),
    "another method": ("methods: [GET], paths: [/a.A/Do], grpc: {}", f"found GET /a.A/Do; accepted: {PATHS}"),
    "a place in the path": ("methods: [POST], paths: [/a.A/*], grpc: {}", f"found POST /a.A/*; accepted: {PATHS}"),
    "an unknown key": (f"{METHOD}, grpc: {{x: 1}}", "found an unknown key; accepted: the keys tensors, elements, numbers, vectors"),
    "a tensor without its data": (f"{METHOD}, grpc: {{tensors: [{{of: a}}]}}", "found nothing; accepted: the name of a field"),
    "a form of two numbers": (f"{METHOD}, grpc: {{tensors: [{TENSOR}, numbers: {{X: ii}}}}]}}", f"found 'ii'; accepted: {FORM}"),
    "a form of a text": (f"{METHOD}, grpc: {{tensors: [{TENSOR}, numbers: {{X: s}}}}]}}", f"found 's'; accepted: {FORM}"),
    "a framing": (
        f"{METHOD}, grpc: {{}}, stream: {{framing: [sse], deltas: [{{path: $.a}}]}}",
        "accepted: no key framing in the stream of a gRPC method",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "told"), DIALECTS.values(), ids=DIALECTS)
def test_a_dialect_with_a_fault(keys: str, told: str) -> None:
    found, faults = parse_dialect(f"dialect: a\nversion: 1\nendpoints:\n  a: {{{keys}}}\n", "a.yaml")
    assert found is None
    assert any(str(each).startswith("a.yaml:4: endpoints.a") and told in str(each) for each in faults), faults


def test_a_dialect_is_all_grpc_or_none_and_has_errors_or_not() -> None:
    error = "error: {body: {}, event: {}, types: {other: x}}\n"
    one, other = f"  a: {{{METHOD}, grpc: {{}}}}\n", "  b: {methods: [POST], paths: [/b]}\n"

    def told(text: str) -> list[str]:
        return [
            f"{each.key}: {each.accepted}" for each in parse_dialect(f"dialect: a\nversion: 1\n{text}", "a.yaml")[1]
        ]

    assert told(f"endpoints:\n{one}") == []
    assert told(f"{error}endpoints:\n{other}") == []
    assert told(f"{error}endpoints:\n{one}") == ["error: no section error, since gRPC says how errors are written"]
    assert told(f"endpoints:\n{other}") == ["error: how errors are written"]
    assert told(f"{error}endpoints:\n{one}{other}") == ["endpoints: a section grpc in all endpoints or in none"]
