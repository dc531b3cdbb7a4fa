"""Counts what crossed, from the records of finished exchanges. The data path only appends a record to a queue.

Everything else happens in the admin listener's thread. Labels come from closed lists: names of the policy, enums, and
models that a provider answered for, of which the first ``MODELS_MOST`` have a label of their own.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from tidegate.admin import names
from tidegate.evidence.records import ExchangeRecord
from tidegate.model import MASKING, Direction, Outcome

QUEUE = 100_000
"""Records that may wait for the admin thread: a minute at full speed. It looks every second."""

MODELS_MOST = 200
MODEL_CHARACTERS = 128
OTHER, NONE = "other", ""


class _Rising(Collector):
    """A counter that somebody else counts."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterable[Metric]:
        """Read it."""
        yield CounterMetricFamily(self._name, self._text, value=self._read())


class Metrics:
    """The registry of one process. ``sealed`` may be called from the data path; the rest from the admin thread."""

    def __init__(self) -> None:
        self._waiting: collections.deque[ExchangeRecord] = collections.deque(maxlen=QUEUE)
        self.sealed: Callable[[ExchangeRecord], None] = self._waiting.append
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        registry = self.registry
        ProcessCollector(registry=registry)
        self._exchanges = Counter(
            names.EXCHANGES,
            "Exchanges that are over, by how they ended.",
            ("connection", "endpoint", "outcome", "reason"),
            registry=registry,
        )
        self._decisions = Counter(
            names.DECISIONS, "Findings, by what was decided.", ("connection", "decision", "rule"), registry=registry
        )
        self._redactions = Counter(
            names.REDACTIONS, "Findings that were masked.", ("rule", "direction"), registry=registry
        )
        self._asked = Counter(names.REQUEST_BYTES, "Bytes of request bodies.", ("connection",), registry=registry)
        self._answered = Counter(names.RESPONSE_BYTES, "Bytes of answers.", ("connection",), registry=registry)
        self._duration = Histogram(
            names.DURATION,
            "From the request's head to the end of the answer.",
            names.MODELS,
            buckets=names.DURATION_BUCKETS,
            registry=registry,
        )
        self._first = Histogram(
            names.FIRST_TOKEN,
            "From the request's head to the first byte of a streamed answer.",
            names.MODELS,
            buckets=names.FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.reloads = Counter(names.RELOADS, "Calls for a reload of the policy.", ("result",), registry=registry)
        self.requests = Counter(
            names.ADMIN_REQUESTS, "Requests of the admin listener.", ("route", "status"), registry=registry
        )
        self.issued = Counter(names.TOKENS_ISSUED, "Tokens given out.", ("grant", "identity"), registry=registry)
        self.refused = Counter(names.SAML_REFUSED, "Assertions that were refused.", ("reason",), registry=registry)
        self._policy = Gauge(names.POLICY, "The policy in force.", ("sha256", "mode"), registry=registry)
        self._failing = Gauge(
            names.KEYS_FAILING, "Whether an identity's keys could not be fetched.", ("identity",), registry=registry
        )

    def watch(self, name: str, text: str, read: Callable[[], float], *, rising: bool = False) -> None:
        """Have a number read at each scrape; ``rising``: it only ever grows."""
        if rising:
            self.registry.register(_Rising(name, text, read))
        else:
            Gauge(name, text, registry=self.registry).set_function(read)

    def drain(self) -> None:
        """Count the records that are waiting."""
        while self._waiting:
            self._count(self._waiting.popleft())

    def page(self, sha256: str, mode: str, failing: Mapping[str, bool]) -> bytes:
        """Return everything in the text format of Prometheus."""
        self.drain()
        self._policy.clear()
        self._policy.labels(sha256, mode).set(1)
        self._failing.clear()
        for identity, fails in failing.items():
            self._failing.labels(identity).set(fails)
        return generate_latest(self.registry)

    def numbers(self) -> list[tuple[str, str]]:
        """Return the numbers that stand alone, each with what it counts."""
        return [
            (family.documentation.rstrip("."), f"{sample.value:,.10g}")
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.labels and not sample.name.endswith("_created")
        ]

    def _count(self, record: ExchangeRecord) -> None:
        connection = record.connection or NONE
        self._exchanges.labels(connection, record.endpoint or NONE, record.outcome or NONE, record.reason or NONE).inc()
        self._asked.labels(connection).inc(record.request_bytes)
        self._answered.labels(connection).inc(record.response_bytes)
        for direction, findings in (
            (Direction.PROMPT, record.prompt_findings),
            (Direction.RESPONSE, record.answer_findings),
        ):
            for each in findings:
                self._decisions.labels(connection, each.action, each.rule).inc()
                if each.action in MASKING:
                    self._redactions.labels(each.rule, direction).inc()
        if record.outcome is Outcome.ANSWERED and record.duration_us is not None:
            model = self._model(record)
            self._duration.labels(model, model, NONE).observe(record.duration_us / 1e6)
            if record.streamed and record.first_byte_us is not None:
                self._first.labels(model, model, NONE).observe(record.first_byte_us / 1e6)

    def _model(self, record: ExchangeRecord) -> str:
        """Return the label of a model: one that its provider answered for with success, or ``other``."""
        name = record.model
        if name is None:
            return NONE
        if name in self._models:
            return name
        plain = len(name) <= MODEL_CHARACTERS and name.isascii() and name.isprintable()
        served = record.status is not None and 200 <= record.status < 300
        if not plain or not served or len(self._models) >= MODELS_MOST:
            return OTHER
        self._models.add(name)
        return name
