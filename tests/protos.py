"""Descriptor sets for tests: made by protoc from the protocols of the repository, or from a text."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from grpc_tools import protoc

from tidegate.dialects.load import parse_dialect
from tidegate.dialects.protobuf import Descriptors
from tidegate.dialects.spec import Dialect

ROOT = Path(__file__).resolve().parents[1]
OPEN_INFERENCE = ROOT / "rules" / "protos" / "open-inference.proto"
SERVICE = "/inference.GRPCInferenceService"


@functools.cache
def described(source: str) -> bytes:
    """Compile the text of one .proto file."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.proto").write_text(source)
        out = Path(folder) / "a.binpb"
        done = protoc.main(
            [
                "protoc",
                f"-I{folder}",
                f"-I{_well_known()}",
                "--include_imports",
                f"--descriptor_set_out={out}",
                "a.proto",
            ]
        )
        assert done == 0
        return out.read_bytes()


def _well_known() -> Path:
    import grpc_tools

    return Path(grpc_tools.__file__).parent / "_proto"


def open_inference() -> bytes:
    """Return the descriptor set of the Open Inference Protocol."""
    return described(OPEN_INFERENCE.read_text())


@functools.cache
def descriptors(source: str = "") -> Descriptors:
    """Open a descriptor set; the Open Inference Protocol's where no other protocol is given."""
    return Descriptors(described(source) if source else open_inference())


@functools.cache
def dialect(text: str = "") -> Dialect:
    """Read a dialect; the Open Inference Protocol's where no other is given."""
    path = ROOT / "rules" / "dialects" / "open-inference-grpc.yaml"
    found, faults = parse_dialect(text or path.read_text(), str(path))
    assert found is not None, faults
    return found
