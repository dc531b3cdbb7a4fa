"""Reading attachments apart: what the process answers, and that nothing it does or fails to do reaches the gate."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import PNG, archive, docx, pdf, run, slow_docx
from tidegate.extracting import Extractor, extract_apart
from tidegate.inspection.attachments import Extraction, Text, extract, found

ADDONS = str(Path(__file__).resolve().parents[1] / "addons")
MARK = "AKIATESTKEY1234567890"


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, sys, time, json\ndata = sys.stdin.buffer.read()\n{text}")


async def test_the_process_reads_what_is_read_here() -> None:
    sent = [docx(run(MARK)), pdf("hello"), PNG, archive({"a.txt": "x"}), b""]
    assert await Extractor().extract(sent) == tuple(map(extract, sent))


async def test_lone_surrogates_come_through() -> None:
    data = b'{"a": "\\ud800 x"}'
    assert await Extractor().extract([data]) == (extract(data),)


async def test_a_large_attachment_comes_through() -> None:
    text = "".join(f"line {number}\n" for number in range(300_000))
    (read,) = await Extractor().extract([archive({"a.txt": text})])
    assert [each.text for each in read.texts] == ["a.txt", text]


BAD = {
    "hangs": ("time.sleep(60)", found.LATE),
    "dies": ("os.kill(os.getpid(), 9)", found.CRASHED),
    "says nothing": ("", found.CRASHED),
    "says no JSON": ("print('hello')", found.CRASHED),
    "says too little": ("print('[]')", found.CRASHED),
    "says something else": ("print('[1]')", found.CRASHED),
    "says another form": ("""print('[{"kind": "x", "texts": 5, "unread": []}]')""", found.CRASHED),
    "leaves a part out": ("""print('[{"kind": "x", "texts": []}]')""", found.CRASHED),
    "invents a reason": ("""print('[{"kind": "x", "texts": [], "unread": ["SECRET"]}]')""", found.CRASHED),
}


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=BAD.keys())
async def test_a_process_that_fails_has_scanned_nothing(text: str, why: str) -> None:
    (read,) = await Extractor(script(text), seconds=2.0 if why == found.LATE else 20.0).extract([b"x"])
    assert read.texts == ()
    assert read.unread == (why,)


async def test_a_kind_that_is_no_word_is_not_repeated() -> None:
    row = {"kind": "SECRET value", "texts": [], "unread": []}
    (read,) = await Extractor(script(f"print('[{json.dumps(row)}]')")).extract([b"x"])
    assert read == Extraction("unknown")


async def test_an_endless_reply_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.extracting.MAX_REPLY", 1 << 20)
    (read,) = await Extractor(script("while True: sys.stdout.write('x' * 65536)")).extract([b"x"])
    assert read.unread == (found.CRASHED,)


async def test_one_that_does_not_listen_is_ended() -> None:
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    (read,) = await Extractor(command, seconds=2.0).extract([bytes(5_000_000)])
    assert read.unread == (found.LATE,)


async def test_a_program_that_is_not_there_has_scanned_nothing() -> None:
    (read,) = await Extractor(("/nowhere/at/all",)).extract([b"x"])
    assert read.unread == (found.CRASHED,)


async def test_the_loop_runs_on_and_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """While three hang, of which one at least waits for its turn, the loop turns hundreds of times."""
    monkeypatch.setattr("tidegate.extracting.WAIT", 0.5)
    extractor, turns = Extractor(script("time.sleep(60)"), seconds=2.0), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.005)

    counting = asyncio.create_task(count())
    read = await asyncio.gather(*(extractor.extract([b"x"]) for _ in range(9)))
    counting.cancel()
    assert {each.unread for (each,) in read} == {(found.LATE,)}
    assert turns > 50
    assert not extractor._running


async def test_a_real_parser_that_takes_too_long_is_ended() -> None:
    (read,) = await Extractor(seconds=3.0).extract([slow_docx()])
    assert read == Extraction("unknown", (), (found.LATE,))


async def test_closing_ends_what_runs() -> None:
    extractor = Extractor(script("time.sleep(60)"))
    reading = asyncio.create_task(extractor.extract([b"x"]))
    await asyncio.sleep(0.5)
    assert len(extractor._running) == 1
    extractor.close()
    (read,) = await reading
    assert read.unread == (found.CRASHED,)


async def test_the_process_has_no_environment_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIDEGATE_TEST_CREDENTIAL", "canary")
    text = "print(json.dumps([{'kind': 'x', 'texts': [['', ' '.join(os.environ)]], 'unread': []}]))"
    (read,) = await Extractor(script(text)).extract([b"x"])
    assert "TIDEGATE_TEST_CREDENTIAL" not in read.texts[0].text
    target = tmp_path / "written"
    confined = f"""
import resource
sys.path.insert(0, {ADDONS!r})
from tidegate.extraction_worker import _confine
_confine()
try:
    with open({str(target)!r}, "w") as file:
        file.write("x")
    said = "written"
except OSError as error:
    said = "refused"
limits = [resource.getrlimit(each)[0] for each in (resource.RLIMIT_CPU, resource.RLIMIT_CORE)]
print(json.dumps([dict(kind="x", texts=[["", said + str(limits)]], unread=[])]))
"""
    (read,) = await Extractor(script(confined)).extract([b"x"])
    assert read.texts == (Text("", "refused[30, 0]"),)
    assert not target.exists() or target.stat().st_size == 0


def test_the_process_starts_without_the_rest_of_the_gate() -> None:
    """Each request with a document pays for what is imported."""
    text = "import sys, tidegate.extraction_worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split()
    assert "tidegate.inspection.attachments.archives" in loaded
    assert not {"mitmproxy", "hyperscan", "pypdf", "orjson", "tidegate.inspection.engine", "asyncio"} & set(loaded)


def test_a_program_without_a_loop_reads_one() -> None:
    assert extract_apart(archive({"a.txt": MARK})) == extract(archive({"a.txt": MARK}))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
async def test_memory_is_bounded() -> None:
    confined = f"""
sys.path.insert(0, {ADDONS!r})
from tidegate.extraction_worker import _confine
_confine()
bytearray(3 * 2**30)
print(json.dumps([dict(kind="x", texts=[], unread=[])]))
"""
    (read,) = await Extractor(script(confined)).extract([b"x"])
    assert read.unread == (found.CRASHED,)
