"""The worker processes of a model, for real: what they find, and what becomes of a question that is not answered."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ner_model import LABELS, make
from tidegate.inspection.ner import pool as pools
from tidegate.inspection.ner.pool import Answer, NerError, Pool
from tidegate.inspection.ner.spec import READ_BY_DEFAULT, Late, Ner, Unread

NEVER = 1e-6
"""Seconds of a budget that is over before a question has left."""


def ner(folder: Path, **changes: object) -> Ner:
    made = Ner(
        model=str(folder / "model.onnx"),
        tokenizer=str(folder / "tokenizer.json"),
        labels=LABELS,
        classes=(("LOC", "addresses"), ("PER", "names")),
        length=32,
        digest="",
        budget=20.0,
        late=Late.BLOCK,
        workers=1,
        roles=frozenset(READ_BY_DEFAULT),
        threshold=0.5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of the class


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def pool(folder: Path) -> AsyncIterator[Pool]:
    running = Pool(ner(folder))
    await running.start()
    yield running
    await running.close()


def found(answer: Answer) -> dict[str, list[tuple[str, str]]]:
    assert answer.unread is None
    return {text: [(each.cls, text[each.start : each.end]) for each in spans] for text, spans in answer.spans.items()}


async def until(condition: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.02)


TEXTS = {
    "a name": ("please greet Alice for me", [("names", "Alice")]),
    "a name of two words": ("greet Alice Johnson!", [("names", "Alice Johnson")]),
    "two names": ("Alice Bob", [("names", "Alice"), ("names", "Bob")]),
    "two classes": ("Bob, not of Berlin", [("names", "Bob"), ("addresses", "Berlin")]),
    "two words of another class": ("in New York now", [("addresses", "New York")]),
    "a word that the tokenizer splits is one name": ("here is Zaphod at last", [("names", "Zaphod")]),
    "wherever in it the label is": ("here is Obelix at last", [("names", "Obelix")]),
    "characters of more than one byte before it": ("größer als 😀 Alice", [("names", "Alice")]),
    "a lone surrogate": ("\ud800 Alice", [("names", "Alice")]),
    "nothing": ("nobody here", []),
    "no words at all": ("", []),
}  # fmt: skip


async def test_it_finds_what_the_model_knows_and_says_where(pool: Pool) -> None:
    texts = [text for text, _ in TEXTS.values()]
    assert found(await pool.ask(texts)) == {text: expected for text, expected in TEXTS.values() if expected}


@pytest.mark.parametrize("gap", [0, 1, 7, 60, 61, 62, 63, 64, 127, 128, 129, 500])
async def test_a_long_text_is_read_in_windows_and_no_name_is_lost_at_their_edges(pool: Pool, gap: int) -> None:
    names = ("Alice Johnson", "Zaphod", "New York", "Bob", "Berlin")
    text = "".join(f"{'x ' * gap}{names[index % 5]}, " for index in range(max(3, 400 // (gap + 1))))
    expected = [names[index % 5] for index in range(max(3, 400 // (gap + 1)))]
    assert [part for _, part in found(await pool.ask([text]))[text]] == expected


async def test_a_split_word_is_whole_wherever_a_window_ends(pool: Pool) -> None:
    texts = [f"{'x ' * gap}Zaphod{' x' * 40}" for gap in range(60)]
    assert found(await pool.ask(texts)) == {text: [("names", "Zaphod")] for text in texts}


async def test_what_was_read_once_is_remembered_and_not_asked_again(pool: Pool) -> None:
    await pool.ask(["greet Alice", "nobody"])
    pool.ner = replace(pool.ner, budget=NEVER)  # a worker would be late now
    assert found(await pool.ask(["nobody", "greet Alice"])) == {"greet Alice": [("names", "Alice")]}
    assert (await pool.ask(["greet Alice", "greet Bob"])).unread is Unread.LATE


async def test_no_more_is_remembered_than_there_is_room_for(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "KNOWN", 3)
    assert found(await pool.ask(["greet Alice", "a b", "c d"]))
    assert (await pool.ask(["one", "two", "three", "four"])).unread is Unread.LATE
    assert found(await pool.ask(["greet Alice"]))


async def test_a_budget_that_is_over_is_late_and_the_next_question_is_answered(folder: Path) -> None:
    running = Pool(ner(folder, budget=NEVER))
    await running.start()
    try:
        assert await running.ask(["greet Alice"]) == Answer(unread=Unread.LATE)
        running.ner = replace(running.ner, budget=20.0)
        assert found(await running.ask(["greet Alice"]))
    finally:
        await running.close()


async def test_a_killed_worker_fails_its_question_and_another_takes_its_place(pool: Pool) -> None:
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that the question is with the worker when it dies
    asked = asyncio.ensure_future(pool.ask(["greet Alice"]))
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    assert await asked == Answer(unread=Unread.FAILED)
    assert found(await pool.ask(["greet Alice"])) == {"greet Alice": [("names", "Alice")]}
    assert pid not in pool.pids


async def test_a_worker_that_dies_while_it_is_idle_is_replaced(pool: Pool) -> None:
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool.pids and pid not in pool.pids)
    assert found(await pool.ask(["greet Alice"]))


async def test_a_worker_that_hangs_is_late_and_then_replaced(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "HUNG", 0.2)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    pool.ner = replace(pool.ner, budget=0.1)
    assert (await pool.ask(["greet Alice"])).unread is Unread.LATE
    await until(lambda: pool.pids and pid not in pool.pids)
    pool.ner = replace(pool.ner, budget=20.0)
    assert found(await pool.ask(["greet Alice"]))


async def test_questions_beyond_the_queue_are_turned_away_at_once(pool: Pool) -> None:
    os.kill(pool.pids[0], signal.SIGSTOP)
    asked = [asyncio.ensure_future(pool.ask(["with the worker"]))]
    await asyncio.sleep(0.1)
    asked += [asyncio.ensure_future(pool.ask([f"text {number}"])) for number in range(pools.WAITING)]
    await asyncio.sleep(0.1)
    asked += [asyncio.ensure_future(pool.ask(["one more"]))]
    assert (await asked[-1]).unread is Unread.BUSY
    os.kill(pool.pids[0], signal.SIGCONT)
    assert {each.unread for each in await asyncio.gather(*asked[:-1])} == {None}


async def test_what_no_model_could_read_in_time_is_not_sent(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "FASTEST", 1)  # twenty characters in twenty seconds
    assert (await pool.ask(["Alice " * 10])).unread is Unread.LATE
    assert (await pool.ask(["greet Alice", "and Bob as well"])).unread is Unread.LATE
    assert found(await pool.ask(["greet Alice"]))  # which was sent, so that asking again goes on from there
    assert (await pool.ask(["greet Alice", "and Bob as well"])).unread is None


async def test_large_texts_are_read_too(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LARGE", 4)
    assert found(await pool.ask(["greet Alice"])) == {"greet Alice": [("names", "Alice")]}


async def test_two_workers_share_the_questions(folder: Path) -> None:
    running = Pool(ner(folder, workers=2))
    await running.start()
    try:
        assert len(running.pids) == 2
        os.kill(running.pids[0], signal.SIGSTOP)
        answers = [asyncio.ensure_future(running.ask([f"Alice {number}"])) for number in range(4)]
        await until(lambda: sum(each.done() for each in answers) >= 3)
        os.kill(running.pids[0], signal.SIGCONT)
        assert all(found(each) for each in await asyncio.gather(*answers))
    finally:
        await running.close()


async def test_closing_ends_the_processes(folder: Path) -> None:
    running = Pool(ner(folder))
    await running.start()
    (pid,) = running.pids
    await running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def given_to(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux shows what a process was given")
async def test_a_worker_gets_nothing_of_the_gate_s_environment(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SECRET", "environment-canary")
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool.pids and pid not in pool.pids)
    assert found(await pool.ask(["greet Alice"]))
    environment = given_to(pool.pids[0])
    assert b"PYTHONPATH" in environment
    assert b"environment-canary" not in environment


def test_the_gate_itself_loads_nothing_of_the_extra() -> None:
    # numpy is not among them: sqlite-utils takes it wherever it is installed
    code = "import tidegate.running, sys; print(sorted({'onnxruntime', 'tokenizers'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


async def refusal(made: Ner) -> str:
    running = Pool(made)
    with pytest.raises(NerError) as caught:
        await running.start()
    await running.close()
    return str(caught.value)


async def test_a_model_that_does_not_fit_its_labels_is_refused(tmp_path: Path) -> None:
    made = ner(make(tmp_path / "m"), labels=("O", "B-PER"), classes=(("PER", "names"),))
    assert await refusal(made) == "the model gives 5 labels, and config.json has 2"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.onnx", "the model cannot be loaded (InvalidProtobuf)"),
        ("tokenizer.json", "tokenizer.json cannot be loaded (Exception)"),
    ],
)
async def test_a_file_that_is_something_else_is_refused(tmp_path: Path, name: str, says: str) -> None:
    folder = make(tmp_path / "m")
    (folder / name).write_text("no such thing")
    assert await refusal(ner(folder)) == says


async def test_a_question_leaves_nothing_behind_with_its_worker(pool: Pool) -> None:
    """asyncio keeps everybody who ever waited for a process, until it ends."""
    process = pool._workers[0].process
    assert process is not None
    for number in range(20):
        assert found(await pool.ask([f"greet Alice and {'more ' * number}"]))
    assert len(process._transport._exit_waiters) <= 1  # type: ignore[attr-defined]


async def test_a_machine_without_room_for_a_process_is_asked_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_process, asked = asyncio.create_subprocess_exec, []

    async def refuse_once(*command: str, **more: object) -> asyncio.subprocess.Process:
        asked.append(command)
        if len(asked) == 1:
            raise BlockingIOError("no more processes")
        return await make_process(*command, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse_once)
    os.kill(pool.pids[0], signal.SIGKILL)
    await until(lambda: len(asked) == 2)
    assert found(await pool.ask(["greet Alice"])) == {"greet Alice": [("names", "Alice")]}
