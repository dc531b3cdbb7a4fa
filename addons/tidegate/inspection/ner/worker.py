"""The process that holds the model: ``python -m tidegate.inspection.ner.worker``. Frames in on stdin, out on stdout.

A shell: it is started by ``pool`` with a pipe at either end and nothing else of the gate's. First comes what to load,
and a frame says that it is loaded or why not; then each frame of texts is answered by one. It ends when its stdin does.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from tidegate.inspection.ner import frames
from tidegate.inspection.ner.spans import Word, batches, joined, pieces
from tidegate.inspection.ner.spec import begins, entity

RUN_TOKENS = 512
"""Tokens of one run, after which the clock is looked at: 60 to 100 ms of a small model (6 layers) on one core."""
NICE = 5
"""The gate's own loop goes first: what it does takes microseconds, and everybody waits for it."""


class Refused(Exception):
    """The model cannot be used; the text says why, in words of our own."""


@dataclass(frozen=True, slots=True)
class _Window:
    """Tokens that go through the model together. ``base`` is where its piece begins in the text ``index``."""

    index: int
    base: int
    encoding: Any


class Model:
    """A tokenizer and a session, loaded. ``given`` is what ``pool`` sends first."""

    def __init__(self, given: Any) -> None:
        """Load, and try a text. Raises ``Refused``."""
        import numpy
        import onnxruntime
        import tokenizers

        self._numpy = numpy
        self._labels: list[str] = given["labels"]
        classes: dict[str, str] = dict(given["classes"])
        self._entities = [each for each in dict.fromkeys(map(entity, self._labels)) if each in classes]
        self._classes = [classes[each] for each in self._entities]
        self._length: int = given["length"]
        self._threshold: float = given["threshold"]
        shape = (len(self._labels), len(self._entities))
        self._sums = numpy.zeros(shape, dtype=numpy.float32)
        self._firsts = numpy.zeros(shape, dtype=numpy.float32)
        for row, label in enumerate(self._labels):
            if entity(label) in self._entities:
                column = self._entities.index(entity(label))
                self._sums[row, column] = 1
                self._firsts[row, column] = begins(label)
        names = list(dict.fromkeys(self._classes))
        self._names = names
        self._of = numpy.zeros((len(self._entities), len(names)), dtype=numpy.float32)
        for row, cls in enumerate(self._classes):
            self._of[row, names.index(cls)] = 1
        self._load(given, onnxruntime, tokenizers)

    def _load(self, given: Any, onnxruntime: Any, tokenizers: Any) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(given["tokenizer"])
        except Exception as error:  # noqa: BLE001 - the library raises bare exceptions; it becomes a refusal
            raise Refused(f"tokenizer.json cannot be loaded ({type(error).__name__})") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._length, stride=self._length // 8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # more workers, not more threads: predictable
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(given["model"], options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - as above
            raise Refused(f"the model cannot be loaded ({type(error).__name__})") from None
        self._inputs = {each.name for each in self._session.get_inputs()}
        unknown = self._inputs - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or "input_ids" not in self._inputs:
            raise Refused(f"the model takes {', '.join(sorted(self._inputs))}, not input_ids, attention_mask ...")
        probe = self._windows(0, "One short text.")
        rows = self._run(probe)[0]
        if rows.shape[-1] != len(self._labels):
            raise Refused(f"the model gives {rows.shape[-1]} labels, and config.json has {len(self._labels)}")

    def read(self, texts: Sequence[str], until: float) -> list[list[tuple[str, int, int]] | None]:
        """Return class, start and end of what is found in each text; ``None`` for one that was not read in time.

        ``until`` is a time of ``time.monotonic``, which processes of one machine share.
        """
        found: list[list[tuple[str, int, int]] | None] = [None] * len(texts)
        short = [index for index, text in enumerate(texts) if len(text) <= self._length]
        for group in batches([len(texts[index]) for index in short], 4 * RUN_TOKENS):
            if time.monotonic() >= until:
                return found
            indexes = [short[each] for each in group]
            words = self._words([window for index in indexes for window in self._windows(index, texts[index])])
            for index in indexes:
                found[index] = _spans(texts[index], words[index])
        for index, text in enumerate(texts):
            if len(text) > self._length:
                found[index] = self._long(text, until)
        return found

    def _long(self, text: str, until: float) -> list[tuple[str, int, int]] | None:
        words: list[Word] = []
        for base, piece in pieces(text, self._length):
            if time.monotonic() >= until:
                return None
            words += self._words(self._windows(0, piece, base))[0]
        return _spans(text, words)

    def _windows(self, index: int, piece: str, base: int = 0) -> list[_Window]:
        encoding = self._tokenizer.encode(piece)
        return [_Window(index, base, each) for each in (encoding, *encoding.overflowing)]

    def _words(self, windows: Sequence[_Window]) -> dict[int, list[Word]]:
        """Return the words that were given a class, by the index of their text."""
        found: dict[int, list[Word]] = defaultdict(list)
        for group in batches([len(each.encoding.ids) for each in windows], max(RUN_TOKENS, self._length)):
            chosen = [windows[each] for each in group]
            for window, rows in zip(chosen, self._run(chosen), strict=True):
                found[window.index] += self._named(window, rows)
        return found

    def _run(self, windows: Sequence[_Window]) -> Any:
        """Return the logits of every token of every window."""
        numpy = self._numpy
        longest = max(len(each.encoding.ids) for each in windows)
        ids = numpy.zeros((len(windows), longest), dtype=numpy.int64)
        mask = numpy.zeros_like(ids)
        for row, window in enumerate(windows):
            size = len(window.encoding.ids)
            ids[row, :size] = window.encoding.ids
            mask[row, :size] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        return self._session.run(None, {name: given[name] for name in self._inputs})[0]

    def _named(self, window: _Window, rows: Any) -> list[Word]:
        """Give words their classes: the probability of a word is that of its likeliest token."""
        numpy = self._numpy
        tokens = [place for place, word in enumerate(window.encoding.word_ids) if word is not None]
        if not tokens:
            return []
        logits = rows[tokens].astype(numpy.float32)
        shares = numpy.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        ids = [window.encoding.word_ids[each] for each in tokens]
        first = [at for at, word in enumerate(ids) if at == 0 or word != ids[at - 1]]
        by_entity = numpy.maximum.reduceat(shares @ self._sums, first, axis=0)
        by_class = numpy.maximum.reduceat(shares @ self._sums @ self._of, first, axis=0)
        starting = (shares @ self._firsts)[first]
        found = []
        for at in numpy.flatnonzero(by_class.max(axis=-1) >= self._threshold):
            cls = self._names[int(by_class[at].argmax())]
            own = [place for place, each in enumerate(self._classes) if each == cls]
            kind = own[int(by_entity[at][own].argmax())]
            last = first[at + 1] - 1 if at + 1 < len(first) else len(tokens) - 1
            start = window.encoding.offsets[tokens[first[at]]][0]
            end = window.encoding.offsets[tokens[last]][1]
            begun = bool(starting[at][kind] * 2 > by_entity[at][kind])
            found.append(Word(window.base + start, window.base + end, cls, self._entities[kind], begun))
        return found


def _spans(text: str, words: Sequence[Word]) -> list[tuple[str, int, int]]:
    return [(each.cls, each.start, each.end) for each in joined(text, words)]


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Load what the first frame names, then answer frames until there are no more."""
    given = _next(source)
    if given is None:
        return
    try:
        model = Model(given)
    except Refused as why:
        _say(sink, {"refused": str(why)})
        return
    except Exception as error:  # noqa: BLE001 - only its type is told; a library's text may hold anything
        _say(sink, {"refused": f"the model cannot be tried ({type(error).__name__})"})
        return
    _say(sink, {"ready": True})
    while (asked := _next(source)) is not None:
        try:
            said: dict[str, object] = {"spans": model.read(asked["texts"], asked["until"])}
        except Exception:  # noqa: BLE001 - the gate treats it as unread; the text stays here
            said = {"failed": True}
        _say(sink, said)


def _next(source: BinaryIO) -> Any:
    head = source.read(frames.HEAD)
    if len(head) < frames.HEAD:
        return None
    size = frames.length(head)
    data = source.read(size)
    return frames.unpack(data) if len(data) == size else None


def _say(sink: BinaryIO, value: object) -> None:
    sink.write(frames.pack(value))
    sink.flush()


if __name__ == "__main__":
    os.nice(NICE)
    serve(sys.stdin.buffer, sys.stdout.buffer)
