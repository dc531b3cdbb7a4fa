"""A real gRPC server that speaks the Open Inference Protocol, and a service of its own that streams one way."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.e2e.harness import free_port
from tests.protos import SERVICE, descriptors
from tidegate.dialects.protobuf import pack, unpack

LEAK = "Jane pays with 4111 1111 1111 1111, mail jane.doe@example.com. Plan: gold"
"""What the model says when somebody asks it to leak."""

PAUSE = 0.02
SIZE = 4

TALK_PROTO = """
syntax = "proto3";
package talk;
service Talk {
  rpc Tell(Ask) returns (stream Piece);
  rpc Collect(stream Ask) returns (Piece);
  rpc Fail(Ask) returns (Piece);
}
message Ask { string model = 1; string prompt = 2; map<string, string> notes = 3; repeated int32 tokens = 4; }
message Piece { string text = 1; }
"""

TALK_DIALECT = """
dialect: talk
version: 1
endpoints:
  tell:
    methods: [POST]
    paths: [/talk.Talk/Tell]
    asked: {model: [$.model]}
    request: [{path: $.prompt, role: user}]
    grpc: {numbers: [tokens]}
    stream:
      deltas: [{path: $.text}]
  collect: {like: tell, paths: [/talk.Talk/Collect]}
  fail: {like: tell, paths: [/talk.Talk/Fail]}
"""


class Peer:
    """The server. ``calls`` are the methods that were called with their metadata, ``messages`` what arrived."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.port = free_port()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.messages: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        address = f"127.0.0.1:{self.port}"
        if credentials is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, credentials)

    def __enter__(self) -> Peer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(5)

    def die(self) -> None:
        """Stop at once, in the middle of whatever is said."""
        self._server.stop(0)

    @property
    def url(self) -> str:
        """The address a policy gives as ``upstream``."""
        return f"http://127.0.0.1:{self.port}"


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        path = details.method
        source = TALK_PROTO if path.startswith("/talk.") else ""
        method = descriptors(source).method(path)
        if method is None:
            return None
        self._peer.calls.append((path, dict(details.invocation_metadata)))
        act = getattr(self, re.sub(r"(?<!^)(?=[A-Z])", "_", path.rpartition("/")[2]).lower())
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streams, method.server_streams]
        return kind(
            lambda request, context: act(method, request, context),
            request_deserializer=method.request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def server_live(self, method: Any, request: Any, context: Any) -> Any:
        return method.answer(live=True)

    def model_metadata(self, method: Any, request: Any, context: Any) -> Any:
        return method.answer(name=request.name, platform="none", versions=["1"])

    def model_infer(self, method: Any, request: Any, context: Any) -> Any:
        self._peer.messages.append(request)
        text = said(request)
        if text == "fail":
            context.set_trailing_metadata(
                (("grpc-status-details-bin", b"\n\x14jane.doe@example.com"), ("x-own", "kept"))
            )
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "cannot read 4111 1111 1111 1111 of jane.doe@example.com")
        answer = method.answer(model_name=request.model_name, id=request.id)
        if request.raw_input_contents:
            answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
            answer.raw_output_contents.append(pack([reply(text).encode()]))
        else:
            tensor = answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(reply(text).encode())
        answer.outputs.add(name="score", datatype="FP32", shape=[2])
        if request.raw_input_contents:
            answer.raw_output_contents.append(b"\x00\x00\xc0\x7f\xff\xff\x80\xbf")
        return answer

    def model_stream_infer(self, method: Any, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            self._peer.messages.append(request)
            for piece in cut(reply(said(request))):
                answer = method.answer()
                inner = answer.infer_response
                inner.model_name, inner.id = request.model_name, request.id
                inner.parameters["triton_final_response"].bool_param = False
                inner.outputs.add(name="text_output", datatype="BYTES", shape=[1])
                inner.raw_output_contents.append(pack([piece.encode()]))
                yield answer
                time.sleep(PAUSE)
            last = method.answer()
            last.infer_response.id = request.id
            last.infer_response.parameters["triton_final_response"].bool_param = True
            yield last

    def tell(self, method: Any, request: Any, context: Any) -> Iterator[Any]:
        self._peer.messages.append(request)
        if request.prompt == "break":
            yield method.answer(text="some text and ")
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room for jane.doe@example.com")
        for piece in cut(reply(request.prompt)):
            yield method.answer(text=piece)
            time.sleep(PAUSE)
        if request.prompt == "stall":
            time.sleep(8)

    def collect(self, method: Any, requests: Iterator[Any], context: Any) -> Any:
        texts = []
        for request in requests:
            self._peer.messages.append(request)
            texts.append(request.prompt)
        return method.answer(text=reply(" ".join(texts)))

    def fail(self, method: Any, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.INTERNAL, "broken")


def said(request: Any) -> str:
    """Return the prompt of an inference request."""
    if request.raw_input_contents:
        return (unpack(request.raw_input_contents[0]) or [b""])[0].decode()
    return request.inputs[0].contents.bytes_contents[0].decode()


def piece_text(request: Any) -> list[str]:
    """Return the texts of the first input of a request."""
    return [each.decode() for each in unpack(request.raw_input_contents[0]) or []]


def reply(text: str) -> str:
    """Say back what was said, or leak."""
    return LEAK if text == "leak" else f"You said: {text}"


def cut(text: str) -> list[str]:
    """Cut a text into pieces of a few characters."""
    return [text[at : at + SIZE] for at in range(0, len(text), SIZE)]


def infer_request(text: str, *, model: str = "good-model", raw: bool = True, name: str = "") -> Any:
    """Make an inference request."""
    method = descriptors().method(f"{SERVICE}/ModelInfer")
    assert method is not None
    request: Any = method.request(model_name=model, id=name)
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    if raw:
        request.raw_input_contents.append(pack([text.encode()]))
    else:
        tensor.contents.bytes_contents.append(text.encode())
    return request
