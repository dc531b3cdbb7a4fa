"""What is stored at a provider belongs to who made it: real SDKs, a real gate, two callers, one upstream credential."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.account import SILENCE, Account, ids
from tests.e2e.harness import CREDENTIAL, Process, policy, tidegate_run, token, wait_for_port
from tidegate.evidence import queries

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.e2e

ROLES = {
    "dev": {
        "allow": [
            {"connections": ["*"], "endpoints": ["*"], "models": ["sample-*"]},
            {"connections": ["*"], "endpoints": ["*"]},
        ]
    },
    "limited": {"allow": [{"connections": ["*"], "endpoints": ["*"], "models": ["sample-small"]}]},
}
BINDINGS = [{"groups": ["local:dev"], "roles": ["dev"]}, {"groups": ["local:limited"], "roles": ["limited"]}]


@dataclass
class Setting:
    gate: Process
    upstream: Account
    tokens: dict[str, str]
    folder: Path
    open: ExitStack = field(default_factory=ExitStack)

    def openai(self, who: str) -> Any:
        client = openai.OpenAI(
            base_url=f"{self.gate.url}/openai/v1", api_key=self.tokens[who], timeout=20, max_retries=0
        )
        return self.open.enter_context(client)

    def anthropic(self, who: str) -> Any:
        client = anthropic.Anthropic(
            base_url=f"{self.gate.url}/anthropic", api_key=self.tokens[who], timeout=20, max_retries=0
        )
        return self.open.enter_context(client)

    def upload(self, who: str) -> str:
        asked = {"model": "sample-small", "messages": [{"role": "user", "content": "hello"}]}
        line = {"custom_id": "0", "method": "POST", "url": "/v1/chat/completions", "body": asked}
        return str(self.openai(who).files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch").id)

    def batch(self, who: str) -> str:
        asked = {"model": "sample-small", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
        return str(self.anthropic(who).messages.batches.create(requests=[{"custom_id": "0", "params": asked}]).id)

    def denied(self, ask: Callable[[], object], error: type[Exception] | None = None, code: str = "not_owner") -> None:
        """Ask; it must be refused, and not one byte may reach the upstream."""
        before = len(self.upstream.requests), len(self.upstream.data)
        with pytest.raises(error or openai.NotFoundError) as caught:
            ask()
        told = caught.value.body  # type: ignore[attr-defined]
        assert (told.get("error") or told).get("code") == code, told
        assert (len(self.upstream.requests), len(self.upstream.data)) == before


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("owned")
    with Account() as upstream:
        written = policy(folder, upstream.url, roles=ROLES, bindings=BINDINGS)
        tokens = {name: token(folder, name) for name in ("alice", "bob")}
        tokens["lisa"] = token(folder, "lisa", ("limited",))
        with tidegate_run(written, wait=False) as gate:
            wait_for_port(gate.port, gate.process, 120)
            found = Setting(gate, upstream, tokens, folder)
            with found.open:
                yield found


def masked(text: str) -> None:
    assert "jane.doe" not in text
    assert "4111" not in text
    assert "[REDACTED:" in text


ASK = {"model": "sample-small", "input": "hello"}


def test_a_response_is_continued_fetched_and_deleted_by_who_made_it(setting: Setting) -> None:
    alice, bob = setting.openai("alice"), setting.openai("bob")
    made = alice.responses.create(**ASK)
    masked(made.output_text)
    item = made.output[0].id
    alice.responses.create(**ASK, previous_response_id=made.id)
    assert CREDENTIAL in setting.upstream.requests[-1].headers["authorization"]
    reference = [{"type": "item_reference", "id": item}]
    alice.responses.create(model="sample-small", input=reference)
    masked(alice.responses.retrieve(made.id).output_text)
    masked(str(alice.responses.input_items.list(made.id).data))

    setting.denied(lambda: bob.responses.create(**ASK, previous_response_id=made.id))
    setting.denied(lambda: bob.responses.create(model="sample-small", input=reference))
    setting.denied(lambda: bob.responses.create(model="sample-small", input=[{"id": item}]))
    setting.denied(lambda: bob.responses.retrieve(made.id))
    setting.denied(lambda: bob.responses.cancel(made.id))
    setting.denied(lambda: bob.responses.input_items.list(made.id))
    setting.denied(lambda: bob.responses.delete(made.id))
    setting.denied(lambda: alice.responses.input_items.list(made.id, after="msg_of_another"))
    alice.responses.delete(made.id)


def test_what_nobody_made_and_what_somebody_else_made_is_refused_alike(setting: Setting) -> None:
    made = setting.openai("alice").responses.create(**ASK)
    told = set()
    for name in (made.id, "resp_nobody"):
        with pytest.raises(openai.NotFoundError) as caught:
            setting.openai("bob").responses.retrieve(name)
        told.add(re.sub(r"ex_\w+", "", str(caught.value.body)))
    assert len(told) == 1
    assert made.id not in str(told)


def test_what_is_not_stored_is_nobodys(setting: Setting) -> None:
    alice = setting.openai("alice")
    made = alice.responses.create(**ASK, store=False)
    setting.denied(lambda: alice.responses.retrieve(made.id))


def test_a_streamed_response_is_its_callers_from_its_first_event(setting: Setting) -> None:
    alice, bob = setting.openai("alice"), setting.openai("bob")
    text, name = "", ""
    with alice.responses.create(**ASK, stream=True) as stream:
        for event in stream:
            if event.type == "response.created":
                name = event.response.id
                alice.responses.retrieve(name)  # before the stream has ended
                setting.denied(partial(bob.responses.retrieve, name))
            elif event.type == "response.output_text.delta":
                text += event.delta
    masked(text)
    assert text.endswith("Plan: gold")
    alice.responses.create(**ASK, previous_response_id=name)
    again = "".join(e.delta for e in alice.responses.retrieve(name, stream=True) if e.type.endswith("text.delta"))
    assert again == text


def test_what_waited_for_the_store_leaves_though_the_upstream_is_silent(setting: Setting) -> None:
    began = time.monotonic()
    with setting.openai("alice").responses.create(model="sample-small", input="slowly", stream=True) as stream:
        first = next(iter(stream))
        assert first.type == "response.created"
        assert time.monotonic() - began < SILENCE - 2


def test_a_background_response_is_an_answer_when_it_is_fetched(setting: Setting) -> None:
    alice = setting.openai("alice")
    made = alice.responses.create(**ASK, background=True)
    assert made.status == "queued"
    fetched = alice.responses.retrieve(made.id)
    masked(fetched.output_text)
    alice.responses.create(model="sample-small", input=[{"type": "item_reference", "id": fetched.output[0].id}])
    setting.denied(lambda: setting.openai("bob").responses.retrieve(made.id))
    alice.responses.cancel(made.id)


def test_a_conversation_is_its_makers(setting: Setting) -> None:
    alice, bob = setting.openai("alice"), setting.openai("bob")
    name = alice.conversations.create().id
    alice.responses.create(**ASK, conversation=name)
    alice.responses.create(**ASK, conversation={"id": name})
    made = alice.conversations.items.create(name, items=[{"role": "user", "content": "hello"}])
    masked(str(alice.conversations.items.list(name).data))
    assert alice.conversations.retrieve(name).id == name
    alice.responses.create(model="sample-small", input=[{"type": "item_reference", "id": made.data[0].id}])
    for conversation in (name, {"id": name}):
        setting.denied(lambda given=conversation: bob.responses.create(**ASK, conversation=given))
    setting.denied(lambda: bob.conversations.retrieve(name))
    setting.denied(lambda: bob.conversations.items.list(name))
    setting.denied(lambda: bob.conversations.items.create(name, items=[{"role": "user", "content": "hello"}]))
    setting.denied(lambda: bob.conversations.delete(name))
    odd = {"conversation": [{"id": name}, 1]}
    setting.denied(lambda: alice.responses.create(**ASK, extra_body=odd), openai.BadRequestError, "body_malformed")


def test_files_and_batches_are_their_makers_and_lists_show_no_others(setting: Setting) -> None:
    alice, bob = setting.openai("alice"), setting.openai("bob")
    own, other = setting.upload("alice"), setting.upload("bob")
    assert own in [each.id for each in alice.files.list().data]
    raw = alice.files.with_raw_response.list().http_response.text
    assert other not in ids(raw)
    assert '"has_more":true' in raw
    assert {each.id for each in bob.files.list().data} & ids(raw) == set()
    assert alice.files.retrieve(own).id == own
    ask = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = alice.batches.create(input_file_id=own, **ask)
    masked(alice.files.content(batch.output_file_id).text)
    assert len(alice.files.content(batch.output_file_id).text.strip().splitlines()) == 3
    assert [each.id for each in alice.batches.list().data] == [batch.id]
    assert alice.batches.retrieve(batch.id).id == batch.id
    alice.batches.cancel(batch.id)

    setting.denied(lambda: bob.files.retrieve(own))
    setting.denied(lambda: bob.files.content(own))
    setting.denied(lambda: bob.files.content(batch.output_file_id))
    setting.denied(lambda: bob.files.delete(own))
    setting.denied(lambda: bob.files.list(after=own))
    setting.denied(lambda: bob.batches.create(input_file_id=own, **ask))
    setting.denied(lambda: bob.batches.retrieve(batch.id))
    setting.denied(lambda: bob.batches.cancel(batch.id))
    assert bob.batches.list().data == []
    content = [{"type": "input_file", "file_id": own}]
    alice.responses.create(model="sample-small", input=[{"role": "user", "content": content}])
    setting.denied(lambda: bob.responses.create(model="sample-small", input=[{"role": "user", "content": content}]))


def test_vector_stores_are_their_makers(setting: Setting) -> None:
    alice, bob = setting.openai("alice"), setting.openai("bob")
    own = alice.vector_stores.create(name="notes", file_ids=[setting.upload("alice")]).id
    masked(str(alice.vector_stores.search(own, query="who").data))
    tool = {"type": "file_search", "vector_store_ids": [own]}
    alice.responses.create(**ASK, tools=[tool])
    setting.denied(lambda: bob.responses.create(**ASK, tools=[tool]))
    setting.denied(lambda: bob.vector_stores.search(own, query="who"))
    setting.denied(lambda: bob.vector_stores.files.list(own))
    setting.denied(lambda: bob.vector_stores.delete(own))
    assert bob.vector_stores.list().data == []
    mine, foreign = setting.upload("bob"), setting.upload("alice")
    setting.denied(lambda: bob.vector_stores.create(name="x", file_ids=[mine, foreign]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_assistants_threads_and_runs_are_their_makers_and_masked_live(setting: Setting) -> None:
    alice, bob = setting.openai("alice").beta, setting.openai("bob").beta
    assistant = alice.assistants.create(model="sample-small").id
    thread = alice.threads.create().id
    alice.threads.messages.create(thread, role="user", content="hello")
    masked(str(alice.threads.messages.list(thread).data))
    run = alice.threads.runs.create(thread_id=thread, assistant_id=assistant)
    assert alice.threads.runs.retrieve(run.id, thread_id=thread).id == run.id
    text = ""
    with alice.threads.runs.stream(thread_id=thread, assistant_id=assistant) as stream:
        for event in stream:
            if event.event == "thread.message.delta":
                text += event.data.delta.content[0].text.value
            elif event.event == "thread.message.completed":
                assert event.data.content[0].text.value == text
    masked(text)
    assert text.endswith("Plan: gold")
    started = alice.threads.create_and_run(assistant_id=assistant)
    alice.threads.messages.list(started.thread_id)

    assert [each.id for each in alice.assistants.list().data] == [assistant]
    assert bob.assistants.list().data == []
    own = bob.threads.create().id
    setting.denied(lambda: bob.assistants.retrieve(assistant))
    setting.denied(lambda: bob.threads.messages.list(thread))
    setting.denied(lambda: bob.threads.messages.create(thread, role="user", content="hello"))
    setting.denied(lambda: bob.threads.runs.create(thread_id=own, assistant_id=assistant))
    setting.denied(lambda: bob.threads.runs.retrieve(run.id, thread_id=thread))
    setting.denied(lambda: bob.threads.create_and_run(assistant_id=assistant))
    attachments = [{"file_id": setting.upload("alice"), "tools": []}]
    setting.denied(lambda: bob.threads.messages.create(own, role="user", content="x", attachments=attachments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_where_a_request_names_no_model_that_of_what_it_names_counts(setting: Setting) -> None:
    lisa = setting.openai("lisa")
    made = lisa.responses.create(**ASK)
    assert lisa.responses.retrieve(made.id).id == made.id
    refuse = openai.PermissionDeniedError, "model_denied"
    setting.denied(lambda: lisa.beta.assistants.create(model="sample-large"), *refuse)
    setting.denied(lisa.beta.threads.create, *refuse)  # made with no model at all
    assert setting.openai("alice").responses.create(model="other-model", input="hello").id


def test_message_batches_are_their_makers(setting: Setting) -> None:
    alice, bob = setting.anthropic("alice"), setting.anthropic("bob")
    own, other = setting.batch("alice"), setting.batch("bob")
    assert alice.messages.batches.retrieve(own).results_url == f"/v1/messages/batches/{own}/results"
    results = list(alice.messages.batches.results(own))  # by the address in results_url, which leads through the gate
    assert len(results) == 3
    masked(results[0].result.message.content[0].text)
    page = alice.messages.batches.list()
    assert [each.id for each in page.data] == [own]
    assert (page.first_id, page.last_id, page.has_more) == (own, own, True)
    alice.messages.batches.cancel(own)
    refuse = anthropic.NotFoundError
    setting.denied(lambda: bob.messages.batches.retrieve(own), refuse)
    setting.denied(lambda: bob.messages.batches.results(own), refuse)
    setting.denied(lambda: bob.messages.batches.cancel(own), refuse)
    setting.denied(lambda: bob.messages.batches.delete(own), refuse)
    setting.denied(lambda: bob.messages.batches.list(after_id=own), refuse)
    assert [each.id for each in bob.messages.batches.list().data] == [other]
    alice.messages.batches.delete(own)


def test_who_made_what_survives_a_kill_and_a_second_process_knows_it(setting: Setting) -> None:
    written = setting.folder / "policy.yaml"
    again = policy(
        setting.folder,
        setting.upstream.url,
        name="second.yaml",
        roles=ROLES,
        bindings=BINDINGS,
        recording={"mode": "strict", "keep": "redacted", "path": "second.db"},
        state={"path": "control.db"},
    )
    assert written.exists()
    with tidegate_run(again, wait=False) as second:
        wait_for_port(second.port, second.process, 120)
        with openai.OpenAI(
            base_url=f"{second.url}/openai/v1", api_key=setting.tokens["alice"], max_retries=0
        ) as client:
            made = client.responses.create(**ASK)
            os.kill(second.process.pid, signal.SIGKILL)
        second.process.wait(10)
    assert setting.openai("alice").responses.retrieve(made.id).id == made.id
    setting.denied(lambda: setting.openai("bob").responses.retrieve(made.id))


def test_the_store_holds_no_id_and_the_recording_tells_the_reason(setting: Setting) -> None:
    made = setting.openai("alice").responses.create(**ASK)
    setting.denied(lambda: setting.openai("bob").responses.retrieve(made.id))
    files = [setting.folder / f"control.db{end}" for end in ("", "-wal")]
    data = b"".join(each.read_bytes() for each in files if each.exists())
    assert made.id.encode() not in data
    assert oct((setting.folder / "control.db").stat().st_mode)[-3:] == "600"
    rows = [dict(row) for row in queries.list_flows(setting.folder / "recording.db", limit=20)]
    assert any(row["reason"] == "not_owner" for row in rows)
