"""Real gRPC clients and a real gRPC server, with the gate between them: intact, masked whole and live, refused."""

from __future__ import annotations

import contextlib
import queue
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")

from tests.e2e.grpc_peer import TALK_DIALECT, TALK_PROTO, Peer, infer_request, said  # noqa: E402
from tests.e2e.harness import CREDENTIAL, Process, free_port, policy, tidegate_run, token  # noqa: E402
from tests.protos import SERVICE, described, descriptors, open_inference  # noqa: E402
from tidegate.dialects.protobuf import unpack  # noqa: E402
from tidegate.evidence import queries  # noqa: E402
from tidegate.model import Outcome  # noqa: E402

pytestmark = pytest.mark.e2e

KEY = "AKIA" + "Z7QK4WJX2MVT5R3P"
WAIT = 60
PATIENT = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
ROLES = {"dev": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["good-*"]}]}}


@dataclass
class Setting:
    """A running gate, the server behind it, and a channel through it."""

    gate: Process
    peer: Peer
    token: str
    channel: grpc.Channel

    def call(self, path: str, *, source: str = "", channel: Any = None) -> Any:
        method = descriptors(source).method(path)
        assert method is not None
        through = channel or self.channel
        make = {
            (False, False): through.unary_unary,
            (False, True): through.unary_stream,
            (True, False): through.stream_unary,
            (True, True): through.stream_stream,
        }[method.client_streams, method.server_streams]
        return make(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=method.answer.FromString,
        )

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")]

    def infer(self, request: Any, **more: Any) -> Any:
        return self.call(f"{SERVICE}/ModelInfer")(request, metadata=self.metadata, timeout=WAIT, **more)

    def row(self, *outcomes: str) -> dict[str, Any]:
        """Return the newest exchange, once it is sealed and has one of these outcomes."""
        until = time.monotonic() + 10
        while True:
            rows = [dict(row) for row in queries.list_flows(self.gate.cwd / "recording.db", limit=1)]
            if rows and rows[0]["outcome"] in (outcomes or set(Outcome)):
                return rows[0]
            assert time.monotonic() < until
            time.sleep(0.05)


def written(folder: Path, upstream: str, *, talk: bool = False, **changes: object) -> Path:
    (folder / "set.binpb").write_bytes(described(TALK_PROTO) if talk else open_inference())
    credential = {"header": "authorization", "value": "Bearer ${env:TIDEGATE_TEST_CREDENTIAL}"}
    connection = {
        "name": "models",
        "dialect": "talk" if talk else "open-inference-grpc",
        "descriptors": "set.binpb",
        "upstream": upstream,
        "serve": {"path": "/"},
        "credential": credential,
    }
    more: dict[str, Any] = {}
    if talk:
        (folder / "talk.yaml").write_text(TALK_DIALECT)
        more["dialects"] = ["talk.yaml"]
    return policy(folder, upstream, connections=[connection], roles=ROLES, **more, **changes)


@contextlib.contextmanager
def reaching(port: int, *options: tuple[str, Any], credentials: Any = None) -> Iterator[grpc.Channel]:
    """Open a channel and wait until it stands: a program may listen before it can do anything else."""
    address, every = f"127.0.0.1:{port}", [*PATIENT, *options]
    made = (
        grpc.insecure_channel(address, every)
        if credentials is None
        else grpc.secure_channel(address, credentials, every)
    )
    with made as channel:
        grpc.channel_ready_future(channel).result(120)
        yield channel


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    yield from running(tmp_path_factory.mktemp("grpc"), talk=False)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    yield from running(tmp_path_factory.mktemp("talk"), talk=True)


def running(folder: Path, *, talk: bool, **changes: object) -> Iterator[Setting]:
    with Peer() as peer:
        path = written(folder, peer.url, talk=talk, **changes)
        secret = token(folder)
        with tidegate_run(path) as gate, reaching(gate.port) as channel:
            yield Setting(gate, peer, secret, channel)


def loaded(setting: Setting) -> None:
    """Wait until the gate answers: mitmdump listens before its scripts have run."""
    until = time.monotonic() + 120
    while True:
        try:
            setting.infer(infer_request("hello"))
        except grpc.RpcError:
            assert time.monotonic() < until
            time.sleep(0.2)
        else:
            return


def masked(text: str) -> None:
    assert "jane.doe" not in text
    assert not re.search(r"4111|1111", text), text
    assert "[REDACTED:" in text
    assert text.endswith("Plan: gold")


def texts(answer: Any) -> list[str]:
    found = [each.decode() for raw in answer.raw_output_contents[:1] for each in unpack(raw) or []]
    return found + [each.decode() for tensor in answer.outputs for each in tensor.contents.bytes_contents]


# ── one message each way ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_a_call_crosses_intact(setting: Setting, raw: bool) -> None:
    before = len(setting.peer.calls)
    answer = setting.infer(infer_request("hello there", raw=raw, name="7"))
    assert texts(answer) == ["You said: hello there"]
    assert answer.id == "7"
    assert answer.outputs[1].name == "score"
    ((path, metadata),) = setting.peer.calls[before:]
    assert path == f"{SERVICE}/ModelInfer"
    assert metadata["authorization"] == f"Bearer {CREDENTIAL}"
    assert setting.token not in str(metadata)
    row = setting.row()
    assert (row["outcome"], row["endpoint"], row["model"], row["streamed"]) == ("answered", "infer", "good-model", 0)


def test_the_server_and_its_models_may_be_asked_about(setting: Setting) -> None:
    live = descriptors().method(f"{SERVICE}/ServerLive")
    about = descriptors().method(f"{SERVICE}/ModelMetadata")
    assert live is not None
    assert about is not None
    assert setting.call(f"{SERVICE}/ServerLive")(live.request(), metadata=setting.metadata, timeout=WAIT).live
    told = setting.call(f"{SERVICE}/ModelMetadata")(
        about.request(name="good-model"), metadata=setting.metadata, timeout=WAIT
    )
    assert (told.name, list(told.versions)) == ("good-model", ["1"])


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_a_prompt_is_masked_and_fits_its_length(setting: Setting, raw: bool) -> None:
    setting.infer(infer_request("mail jane.doe@example.com now", raw=raw))
    text = said(setting.peer.messages[-1])
    assert text.startswith("mail [REDACTED:")
    assert text.endswith("] now")
    assert setting.row()["outcome"] == "answered"


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_an_answer_is_masked_whole(setting: Setting, raw: bool) -> None:
    (text,) = texts(setting.infer(infer_request("leak", raw=raw)))
    masked(text)


@pytest.mark.parametrize("coding", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=["gzip", "deflate"])
def test_a_compressed_message_is_read_and_sent_plain(setting: Setting, coding: Any) -> None:
    answer = setting.infer(infer_request("hello " * 50, raw=True), compression=coding)
    assert texts(answer) == ["You said: " + "hello " * 50]
    with pytest.raises(grpc.RpcError) as refused:
        setting.infer(infer_request(f"{'hello ' * 50} {KEY}"), compression=coding)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def denied(setting: Setting, act: Any, code: Any) -> str:
    """Run what must be refused before anything reaches the server; return what its client reads."""
    before = len(setting.peer.calls)
    with pytest.raises(grpc.RpcError) as refused:
        act()
    assert refused.value.code() is code, refused.value
    assert len(setting.peer.calls) == before
    words = str(refused.value.details())
    assert re.search(r"request ex_\w+\)$", words)
    return words


def test_a_secret_in_a_prompt_is_blocked_and_nothing_is_called(setting: Setting) -> None:
    words = denied(setting, lambda: setting.infer(infer_request(f"key {KEY}")), grpc.StatusCode.PERMISSION_DENIED)
    assert "$.inputs[0].raw_input_contents[0].text" in words
    assert KEY not in words
    row = setting.row("denied")
    assert (row["outcome"], row["reason"], row["status"]) == ("denied", "finding", 403)


def test_what_may_not_be_asked_is_refused(setting: Setting) -> None:
    wrong = infer_request("hello", model="other")
    assert "model" in denied(setting, lambda: setting.infer(wrong), grpc.StatusCode.PERMISSION_DENIED)
    call = setting.call(f"{SERVICE}/ModelInfer")
    hello = infer_request("hello")
    denied(setting, lambda: call(hello, timeout=WAIT), grpc.StatusCode.UNAUTHENTICATED)
    other = setting.channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
    denied(setting, lambda: other(b"", metadata=setting.metadata, timeout=WAIT), grpc.StatusCode.UNIMPLEMENTED)
    denied(setting, lambda: setting.infer(infer_request("x" * 9_000_000)), grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_what_cannot_be_read_is_refused(setting: Setting) -> None:
    tokens = infer_request("hello", raw=False)
    tokens.inputs.add(name="input_ids", datatype="INT32", shape=[3]).contents.int_contents.extend([1, 2, 3])
    words = denied(setting, lambda: setting.infer(tokens), grpc.StatusCode.INVALID_ARGUMENT)
    assert "$.inputs[1].contents.int_contents" in words
    shared = infer_request("hello", raw=False)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
    words = denied(setting, lambda: setting.infer(shared), grpc.StatusCode.INVALID_ARGUMENT)
    assert "shared_memory_region" in words


def test_the_server_s_own_status_is_masked(setting: Setting) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        setting.infer(infer_request("fail"))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    words = failed.value.details()
    assert re.fullmatch(r"cannot read \[REDACTED:[^]]+\] of \[REDACTED:[^]]+\]", words), words
    trailing = dict(failed.value.trailing_metadata())
    assert "grpc-status-details-bin" not in trailing
    assert trailing["x-own"] == "kept"


# ── a stream of answers ──────────────────────────────────────────────────────────────────────────────────────────────


def ask(prompt: str, **more: Any) -> Any:
    method = descriptors(TALK_PROTO).method("/talk.Talk/Tell")
    assert method is not None
    return method.request(model="good-model", prompt=prompt, **more)


def arrived(pieces: Any) -> list[tuple[float, Any]]:
    return [(time.monotonic(), piece) for piece in pieces]


def test_a_stream_is_masked_live(talk: Setting) -> None:
    tell = talk.call("/talk.Talk/Tell", source=TALK_PROTO)
    plain = arrived(tell(ask("how are you today"), metadata=talk.metadata, timeout=WAIT))
    assert "".join(piece.text for _, piece in plain) == "You said: how are you today"
    found = arrived(tell(ask("leak"), metadata=talk.metadata, timeout=WAIT))
    masked("".join(piece.text for _, piece in found))
    assert found[-1][0] - found[0][0] > 0.1, "all messages came at once: the answer was not live"
    row = talk.row()
    assert (row["outcome"], row["streamed"], row["endpoint"]) == ("answered", 1, "tell")


def test_a_stream_that_the_server_breaks_off_says_what_was_held_and_why(talk: Setting) -> None:
    tell = talk.call("/talk.Talk/Tell", source=TALK_PROTO)
    found: list[Any] = []
    with pytest.raises(grpc.RpcError) as failed:
        found.extend(tell(ask("break"), metadata=talk.metadata, timeout=WAIT))
    assert "".join(piece.text for piece in found) == "some text and "
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.value.details().startswith("no room for [REDACTED:")


def test_many_requests_of_one_call_are_judged_before_any_is_sent(talk: Setting) -> None:
    collect = talk.call("/talk.Talk/Collect", source=TALK_PROTO)
    answer = collect(iter([ask("one"), ask("two")]), metadata=talk.metadata, timeout=WAIT)
    assert answer.text == "You said: one two"

    def two() -> Any:
        return collect(iter([ask("one"), ask(KEY)]), metadata=talk.metadata, timeout=WAIT)

    words = denied(talk, two, grpc.StatusCode.PERMISSION_DENIED)
    assert "message 2: $.prompt" in words


def test_the_keys_of_a_map_are_inspected(talk: Setting) -> None:
    tell = talk.call("/talk.Talk/Tell", source=TALK_PROTO)
    denied(
        talk,
        lambda: list(tell(ask("hi", notes={KEY: "x"}), metadata=talk.metadata, timeout=WAIT)),
        grpc.StatusCode.PERMISSION_DENIED,
    )
    list(tell(ask("hi", notes={"jane.doe@example.com": "x"}), metadata=talk.metadata, timeout=WAIT))
    ((name, value),) = talk.peer.messages[-1].notes.items()
    assert name.startswith("[REDACTED:")
    assert value == "x"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """A gate that waits only a second, and blocks what it would else mask."""
    actions = {"secrets": "block", "pii": "block", "injection": "allow", "exfil": "allow"}
    limits = {"response": {"idle": "1s", "first_byte": "5s"}}
    inspection = {"prompt": actions, "response": dict(actions)}
    yield from running(tmp_path_factory.mktemp("strict"), talk=True, limits=limits, inspection=inspection)


def told(setting: Setting, prompt: str) -> tuple[str, Any]:
    """Ask for a stream that fails; return what came before, and the failure."""
    tell = setting.call("/talk.Talk/Tell", source=TALK_PROTO)
    found: list[Any] = []
    with pytest.raises(grpc.RpcError) as failed:
        found.extend(tell(ask(prompt), metadata=setting.metadata, timeout=WAIT))
    return "".join(piece.text for piece in found), failed.value


def test_a_stream_that_is_blocked_in_the_middle_ends_with_a_status(strict: Setting) -> None:
    text, failure = told(strict, "leak")
    assert text == "Jane pays with "
    assert failure.code() is grpc.StatusCode.PERMISSION_DENIED
    assert re.search(r"the answer contains something of the class pii .*request ex_\w+\)$", failure.details())
    row = strict.row()
    assert (row["outcome"], row["reason"], row["streamed"]) == ("denied", "answer_finding", 1)


def test_a_stream_that_stalls_ends_with_a_status(strict: Setting) -> None:
    begun = time.monotonic()
    _, failure = told(strict, "stall")
    assert time.monotonic() - begun < 8
    assert failure.code() is grpc.StatusCode.UNAVAILABLE
    assert "paused in its answer" in failure.details()
    assert strict.row()["reason"] == "answer_idle"


def test_a_server_that_dies_in_a_stream_is_told_and_nothing_held_leaves(tmp_path: Path) -> None:
    with Peer() as peer:
        path = written(tmp_path, peer.url, talk=True)
        secret = token(tmp_path)
        with tidegate_run(path) as gate, reaching(gate.port) as channel:
            setting = Setting(gate, peer, secret, channel)
            found: list[Any] = []
            pieces = setting.call("/talk.Talk/Tell", source=TALK_PROTO)(
                ask("leak"), metadata=setting.metadata, timeout=WAIT
            )
            found.append(next(pieces))
            peer.die()
            with pytest.raises(grpc.RpcError) as failed:
                found.extend(pieces)
            assert failed.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            assert not re.search("4111|jane", "".join(piece.text for piece in found))
            assert setting.row()["outcome"] in {"failed", "answered"}
            with pytest.raises(grpc.RpcError) as gone:
                list(
                    setting.call("/talk.Talk/Tell", source=TALK_PROTO)(
                        ask("hi"), metadata=setting.metadata, timeout=WAIT
                    )
                )
            assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
            assert re.search(r"request ex_\w+\)$", gone.value.details())


# ── a stream each way ────────────────────────────────────────────────────────────────────────────────────────────────


def stream_text(answers: Sequence[Any], name: str) -> str:
    inner = [each.infer_response for each in answers if each.infer_response.id == name]
    return "".join(text for each in inner for text in texts(each))


def test_requests_at_once_are_answered_live(setting: Setting) -> None:
    infer = setting.call(f"{SERVICE}/ModelStreamInfer")
    requests = [infer_request("leak", name="a"), infer_request("hello", name="b")]
    answers = list(infer(iter(requests), metadata=setting.metadata, timeout=WAIT))
    masked(stream_text(answers, "a"))
    assert stream_text(answers, "b") == "You said: hello"
    row = setting.row()
    assert (row["outcome"], row["endpoint"], row["model"]) == ("answered", "infer_stream", "good-model")


class Talking:
    """A client that keeps its side of a call open: it says something when it is told to."""

    def __init__(self, setting: Setting) -> None:
        self.said: queue.Queue[Any] = queue.Queue()
        infer = setting.call(f"{SERVICE}/ModelStreamInfer")
        self.answers = infer(iter(self.said.get, None), metadata=setting.metadata, timeout=WAIT)

    def ask(self, *requests: Any) -> None:
        for each in requests:
            self.said.put(each)

    def until_final(self) -> tuple[str, list[float]]:
        """Return what an answer says and when its messages came; the call stays open."""
        text, times = "", []
        for answer in self.answers:
            assert not answer.error_message
            times.append(time.monotonic())
            text += "".join(texts(answer.infer_response))
            if answer.infer_response.parameters["triton_final_response"].bool_param:
                return text, times
        raise AssertionError("the call ended before its answer was final")


@pytest.mark.parametrize("name", ["", "1"], ids=["no id", "an id"])
def test_each_request_of_an_open_call_is_answered_live(setting: Setting, name: str) -> None:
    call = Talking(setting)
    call.ask(infer_request("leak", name=name))
    text, times = call.until_final()
    masked(text)
    assert times[-1] - times[0] > 0.1, "all messages came at once: the answer was not live"
    call.ask(infer_request("mail jane.doe@example.com", name=name))
    text, _ = call.until_final()
    assert text.startswith("You said: mail [REDACTED:")
    call.ask(None)
    assert list(call.answers) == []
    row = setting.row()
    assert (row["outcome"], row["endpoint"], row["streamed"]) == ("answered", "infer_stream", 1)


def test_a_secret_in_the_first_message_of_a_call_reaches_nobody(setting: Setting) -> None:
    def ask_badly() -> None:
        call = Talking(setting)
        call.ask(infer_request(f"key {KEY}"))
        list(call.answers)

    words = denied(setting, ask_badly, grpc.StatusCode.PERMISSION_DENIED)
    assert "message 1: $.inputs[0]" in words


def test_a_secret_in_a_later_message_ends_the_call(setting: Setting) -> None:
    call = Talking(setting)
    call.ask(infer_request("hello"))
    assert call.until_final()[0] == "You said: hello"
    before = len(setting.peer.messages)
    call.ask(infer_request(f"key {KEY}"), infer_request("one more"))
    with pytest.raises(grpc.RpcError) as refused:
        list(call.answers)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "message 2: $.inputs[0]" in refused.value.details()
    assert KEY not in str(setting.peer.messages[before:])
    row = setting.row()
    assert (row["outcome"], row["reason"]) == ("denied", "finding")


def test_another_model_in_a_later_message_ends_the_call(setting: Setting) -> None:
    call = Talking(setting)
    call.ask(infer_request("hello"))
    call.until_final()
    call.ask(infer_request("hello", model="other"))
    with pytest.raises(grpc.RpcError) as refused:
        list(call.answers)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_an_open_call_is_refused_at_once_without_a_token(setting: Setting) -> None:
    before = len(setting.peer.calls)
    said: queue.Queue[Any] = queue.Queue()
    answers = setting.call(f"{SERVICE}/ModelStreamInfer")(iter(said.get, None), timeout=WAIT)
    with pytest.raises(grpc.RpcError) as refused:
        list(answers)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    said.put(None)
    assert len(setting.peer.calls) == before


def test_a_client_that_leaves_an_open_call_is_noticed_upstream(setting: Setting) -> None:
    call = Talking(setting)
    call.ask(infer_request("hello", name="x"))
    next(call.answers)
    call.answers.cancel()
    call.ask(None)
    row = setting.row()
    assert (row["outcome"], row["reason"]) == ("aborted", "client_gone")
    assert setting.infer(infer_request("hello")).model_name == "good-model"


def test_an_upstream_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, f"http://127.0.0.1:{free_port()}")
    secret = token(tmp_path)
    with Peer() as peer, tidegate_run(path) as gate, reaching(gate.port) as channel:
        setting = Setting(gate, peer, secret, channel)
        with pytest.raises(grpc.RpcError) as whole:
            setting.infer(infer_request("hello"))
        call = Talking(setting)
        call.ask(infer_request("hello"))
        with pytest.raises(grpc.RpcError) as live:
            list(call.answers)
        call.ask(None)
        for failure in (whole.value, live.value):
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
            assert re.search(r"reason upstream_failed, request ex_\w+\)$", failure.details())
        assert setting.row()["outcome"] == "failed"
