"""Copies of checkpoints outside: each kind of sink gets every note, and a sink that fails is told of."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tidegate.evidence import sinks
from tidegate.evidence.notes import make_signer, parse_many
from tidegate.evidence.sinks import Copier
from tidegate.policy.keeping import Sink, SinkKind

SIGNER = make_signer("gate/log/one")
NOTES = [SIGNER.sign(size, bytes(32)) for size in (1, 2, 3)]


def copied(sink: Sink) -> list[str]:
    told: list[str] = []
    copier = Copier(sink, told.append)
    for note in NOTES:
        copier(note)
    copier.close()
    return told


def test_a_file_gets_every_note_and_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for _ in range(2):
        assert copied(Sink(SinkKind.FILE, (str(path),))) == []
    assert parse_many(path.read_text()) == NOTES * 2


def test_a_command_gets_the_note_on_its_input(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    program = f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read())"
    assert copied(Sink(SinkKind.COMMAND, (sys.executable, "-c", program))) == []
    assert parse_many(path.read_text()) == NOTES


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_syslog_gets_a_line(tmp_path: Path, kind: str) -> None:
    if kind == "unix":
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind(str(tmp_path / "log"))
        address = str(tmp_path / "log")
    else:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
    server.settimeout(10)
    with server:
        assert copied(Sink(SinkKind.SYSLOG, (address,))) == []
        lines = [server.recv(4096).decode() for _ in NOTES]
    assert lines[1].startswith("<85>tidegate: checkpoint gate/log/one|2|")
    assert lines[1].partition("|2|")[2].replace("|", "\n").endswith(NOTES[1].rstrip().rpartition("\n")[2])


class Hook(BaseHTTPRequestHandler):
    got: list[str]
    status = 200

    def do_POST(self) -> None:
        self.got.append(self.rfile.read(int(self.headers["content-length"])).decode())
        self.send_response(self.status)
        self.send_header("location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[type[Hook]]:
    made = type("Made", (Hook,), {"got": []})
    server = HTTPServer(("127.0.0.1", 0), made)
    made.url = f"http://127.0.0.1:{server.server_port}/notes"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_every_note(hook: type[Hook]) -> None:
    assert copied(Sink(SinkKind.WEBHOOK, (hook.url,))) == []
    assert hook.got == NOTES


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_does_not_take_it_is_told_of(hook: type[Hook], status: int) -> None:
    hook.status = status
    assert copied(Sink(SinkKind.WEBHOOK, (hook.url,))) == [f"webhook failed: status {status}"]
    assert len(hook.got) == 3


def test_a_failing_sink_is_told_of_once_and_when_it_works_again(tmp_path: Path) -> None:
    told: list[str] = []
    place = tmp_path / "gone" / "notes"
    copier = Copier(Sink(SinkKind.FILE, (str(place),)), told.append)
    copier(NOTES[0])
    copier(NOTES[1])
    while copier.lost < 2:
        pass
    place.parent.mkdir()
    copier(NOTES[2])
    copier.close()
    assert told == ["file failed: FileNotFoundError", "file again"]
    assert parse_many(place.read_text()) == NOTES[2:]
    assert str(tmp_path) not in "".join(told)


def test_a_command_that_fails_is_told_of(tmp_path: Path) -> None:
    assert copied(Sink(SinkKind.COMMAND, (sys.executable, "-c", "raise SystemExit(3)"))) == [
        "command failed: exit status 3"
    ]


def test_a_sink_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(sinks, "WAITING", 2)
    monkeypatch.setattr(sinks, "TIMEOUT", 0.05)
    monkeypatch.setitem(Copier.SENDERS, SinkKind.FILE, lambda *_: free.wait(10))
    copier = Copier(Sink(SinkKind.FILE, ("x",)))
    for _ in range(50):
        copier(NOTES[0])
    assert copier.lost >= 47
    free.set()
    copier.close()
