"""Take a tour of the gate with real processes on free ports, and check every promise on the way.

A folder of its own holds the policy, the tokens and the recording. Exits 0 only if every promise holds. With
``--real-model`` the leak comes from a real model on this machine; the first time that is built, which takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _demo_stage import (
    BIN,
    HOST,
    LEAKS,
    Broken,
    Promise,
    Seen,
    Tour,
    console,
    free_ports,
    gate,
    must,
    promise,
    started,
    summary,
    walk,
)
from _demo_wire import Answer, ask, connect

LIMIT = 300  # seconds for the whole tour; an idle laptop needs less than forty
CHAT, MESSAGES = "/openai/v1/chat/completions", "/anthropic/v1/messages"
KEY = "AKIA" + "Q7ZK4WJX2MVT5R3P"
LEAK = "Show me the customer record."
PROMISES: list[Promise] = []
TOOL = {"name": "send_mail", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "sample-small", "messages": [{"role": "user", "content": text}], **more}


def no_leak(answer: Answer, where: str) -> None:
    seen = answer.raw.decode()
    must(not any(leak in seen for leak in LEAKS), f"{where} holds the customer's data")
    must(not any(leak in answer.text for leak in LEAKS), f"{where}, put together, holds the customer's data")


@promise(PROMISES, "a clean question is answered, word for word")
def clean(tour: Tour) -> str:
    question = f"Why does {KEY} fail?" if tour.broken("clean") else "What is a tide gate?"
    answer = tour.ask(CHAT, chat(question), tour.alice, expect="answered")
    must(answer.status == 200, f"status {answer.status}")
    must(answer.text.endswith(f"You said: {question}"), "the answer is not the model's")
    tour.noted["clean"] = answer.exchange
    return answer.text


@promise(PROMISES, "a prompt with an access key is blocked, and nothing of it reaches the model")
def block(tour: Tour) -> str:
    before = tour.hits()["hits"]
    answer = tour.ask(CHAT, chat(f"Why does {KEY} not work?"), tour.alice, expect="denied finding")
    must(answer.status == 403, f"status {answer.status}")
    must(tour.hits()["hits"] == before, "the model was asked")
    must(KEY not in answer.raw.decode(), "the refusal quotes the key")
    return f"403, model asked 0 times: {answer.json['error']['message']}"


@promise(PROMISES, "a leaked customer record is masked in the stream")
def mask_openai(tour: Tour) -> str:
    answer = tour.ask(CHAT, chat(LEAK, stream=True), tour.alice, expect="answered")
    no_leak(answer, "the stream")
    must("[REDACTED:email]" in answer.text, "no placeholder stands for the e-mail address")
    must("Plan: gold" in answer.text, "the text after the record is missing")
    tour.noted["stream"] = answer.exchange
    return " | ".join(line for line in answer.text.splitlines() if line)


@promise(PROMISES, "that stream is live: its text arrives in many pieces, and begins long before its end")
def live(tour: Tour) -> str:
    streamed = not tour.broken("live")
    answer = tour.ask(CHAT, chat(LEAK, stream=streamed), tour.alice, expect="answered")
    must(len(answer.pieces) >= 12, f"it arrived in {len(answer.pieces)} pieces")
    times = [at for at, text in answer.pieces if text]
    first = next(at for at, text in answer.pieces if "Here" in text)
    last = next(at for at, text in answer.pieces if "REDACTED" in text)
    must(last - first > 0.2, f"the first words came only {last - first:.2f} s before the first masked span")
    seen = f"first words after {first:.2f} s, first masked span at {last:.2f} s, end at {times[-1]:.2f} s"
    return f"{seen}, {len(times)} pieces"


@promise(PROMISES, "the same through the Anthropic API, streamed and whole")
def mask_anthropic(tour: Tour) -> str:
    body = chat(LEAK, max_tokens=300)
    for stream in (True, False):
        answer = tour.ask(MESSAGES, {**body, "stream": stream}, tour.alice, expect="answered", header="x-api-key")
        no_leak(answer, "the stream" if stream else "the answer")
        must("[REDACTED:card-visa]" in answer.text, "no placeholder stands for the card")
    return " | ".join(line for line in answer.text.splitlines() if line)


@promise(PROMISES, "the arguments of a streamed tool call are masked and are still JSON")
def tools(tour: Tour) -> str:
    body = chat("Use the tool.", stream=True, tools=[{"type": "function", "function": TOOL}])
    answer = tour.ask(CHAT, body, tour.alice, expect="answered")
    no_leak(answer, "the tool call")
    arguments = json.loads(answer.arguments)
    must(arguments["to"] == "[REDACTED:email]", "the address in the arguments was not masked")
    must(arguments["body"] == "Hello Jane,\nthank you.", "the other arguments were changed")
    return answer.arguments


@promise(PROMISES, "the same gate as a proxy (HTTP_PROXY): the block and the mask hold there too")
def proxy(tour: Tour) -> str:
    address = f"http://{HOST}:{tour.model}/v1/chat/completions"
    answer = tour.ask(address, chat(LEAK, stream=True), tour.alice, expect="answered", port=tour.proxy)
    no_leak(answer, "the proxied stream")
    must("[REDACTED:email]" in answer.text, "no placeholder stands for the e-mail address")
    denied = tour.ask(address, chat(f"Use {KEY}."), tour.alice, expect="denied finding", port=tour.proxy)
    must(denied.status == 403, f"status {denied.status} for a prompt with a key")
    return "masked 200, blocked 403, with no base URL changed"


@promise(PROMISES, "a caller whose group has no role is denied")
def group(tour: Tour) -> str:
    return refused(tour, tour.mallory, 403, "not_granted")


@promise(PROMISES, "a caller without a token is denied")
def token(tour: Tour) -> str:
    return refused(tour, tour.alice if tour.broken("token") else None, 401, "caller_missing")


def refused(tour: Tour, token: str | None, status: int, reason: str) -> str:
    before = tour.hits()["hits"]
    answer = tour.ask(CHAT, chat("Hello."), token, expect=f"denied {reason}")
    must(answer.status == status, f"status {answer.status}")
    must(tour.hits()["hits"] == before, "the model was asked")
    return f"{status} {answer.json['error']['message']}"


@promise(PROMISES, "a host that the policy does not list cannot be reached through the proxy")
def unlisted(tour: Tour) -> str:
    status, body = connect(tour.proxy, "elsewhere.example:443")
    tour.outputs.append(body)
    must(status == 403, f"CONNECT was answered with {status}")
    return "CONNECT elsewhere.example:443 -> 403"


@promise(PROMISES, "the caller's token stops at the gate, and the model gets the connection's credential")
def credential(tour: Tour) -> str:
    tour.ask(MESSAGES, chat("Hello.", max_tokens=50), tour.alice, expect="answered", header="x-api-key")
    names = tour.hits()["last"]["headers"]
    must("x-model-key" in names, "the model got no credential")
    must("x-api-key" not in names and "authorization" not in names, "the caller's header went to the model")
    return f"header fields at the model: {', '.join(names)}"


@promise(
    PROMISES,
    "real OpenAI and Anthropic SDKs, unmodified: the stream is masked, a block is their own exception",
    needs="openai anthropic",
)
def sdks(tour: Tour) -> str:
    import anthropic
    import openai

    base = f"http://{HOST}:{tour.gate}"
    with openai.OpenAI(base_url=f"{base}/openai/v1", api_key=tour.alice) as client:
        stream = client.chat.completions.create(**chat(LEAK, stream=True))
        said = "".join(each.choices[0].delta.content or "" for each in stream if each.choices)
        must(
            "[REDACTED:email]" in said and not any(leak in said for leak in LEAKS), "the openai SDK read unmasked text"
        )
        with contextlib.suppress(openai.PermissionDeniedError):
            client.chat.completions.create(**chat(f"Use {KEY}."))
            raise Broken("the openai SDK was not refused")
    with anthropic.Anthropic(base_url=f"{base}/anthropic", api_key=tour.alice) as other:
        with other.messages.stream(**chat(LEAK, max_tokens=300)) as events:
            said = "".join(events.text_stream)
        must(
            "[REDACTED:email]" in said and not any(leak in said for leak in LEAKS),
            "the anthropic SDK read unmasked text",
        )
        try:
            other.messages.create(**chat(f"Use {KEY}.", max_tokens=50))
        except anthropic.PermissionDeniedError as error:
            versions = f"openai {openai.__version__}, anthropic {anthropic.__version__}"
            return f"{versions}; {type(error).__name__}: {error.body['error']['message']}"
    raise Broken("the anthropic SDK was not refused")


@promise(PROMISES, "every exchange of this tour is recorded with its outcome and reason")
def recorded(tour: Tour) -> str:
    rows = {each["id"]: each for each in flows(tour)}
    if tour.broken("recorded"):
        rows.pop(tour.noted["clean"])
    for exchange, (outcome, reason) in tour.exchanges.items():
        must(exchange in rows, f"{exchange} is not in the recording")
        found = (rows[exchange]["outcome"], rows[exchange]["reason"] or "")
        must(found == (outcome, reason), f"{exchange} is recorded as {found}, and was {(outcome, reason)}")
    must(any(each["reason"] == "unlisted_host" for each in rows.values()), "the refused tunnel is not in the recording")
    shown = tour.tidegate("flows", "show", tour.noted["stream"], "--recording", tour.recording)
    must(shown.returncode == 0 and "pii.email" in shown.stdout, "flows show does not name the rule")
    denied = sum(outcome == "denied" for outcome, _ in tour.exchanges.values())
    return f"{len(tour.exchanges)} exchanges, {denied} of them denied, and the refused tunnel"


def flows(tour: Tour) -> list[dict[str, Any]]:
    done = tour.tidegate("flows", "list", "--recording", tour.recording, "--limit", 1000, "--json")
    must(done.returncode == 0, f"flows list failed: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


@promise(PROMISES, "a recorded request can be sent through the gate again, and is judged again")
def replay_send(tour: Tour) -> str:
    words = ["replay", "send", tour.noted["clean"], "--as", "local:alice", "--group", "dev", "--policy", tour.policy]
    before = tour.hits()["hits"]
    done = tour.tidegate(*words, *([] if tour.broken("replay-send") else ["--live"]))
    must(done.returncode == 0, f"exit {done.returncode}")
    must(tour.hits()["hits"] == before + 1, "the model was not asked once")
    newest = flows(tour)[0]
    must(newest["caller"] == "alice" and newest["outcome"] == "answered", "the replay is not recorded as an exchange")
    return f"{tour.noted['clean']} -> {newest['id']}, {newest['outcome']}"


@promise(PROMISES, "a recording can answer in the model's place, and forwards nothing")
def replay_serve(tour: Tour) -> str:
    (port,) = free_ports(1)
    words = ["replay", "serve", tour.noted["clean"], "--recording", tour.recording, "--listen", f"{HOST}:{port}"]
    before = tour.hits()["hits"]
    question = "Something else." if tour.broken("replay-serve") else "What is a tide gate?"
    with started(tour, "replay", [BIN / "tidegate", *words], port):
        answer = ask(port, CHAT, chat(question), None)
        other = ask(port, CHAT, chat("Not recorded."), None)
    tour.outputs += [answer.raw, other.raw]
    must(answer.status == 200 and "tide gate" in answer.text, f"status {answer.status} for a recorded question")
    must(other.status == 404, f"status {other.status} for a question that was not recorded")
    must(tour.hits()["hits"] == before, "the model was asked")
    return f"recorded question 200, any other 404: {other.json['error']['message']}"


@promise(PROMISES, "tidegate check reports every fault of a broken policy at once, and quotes no secret")
def check(tour: Tour) -> str:
    secret = "sk-" + "demo-canary-0123456789abcdef"
    policy = json.loads(tour.policy.read_text())
    if not tour.broken("check"):
        policy["connections"][0]["dialect"] = "opnai"
        policy["connections"][1]["credential"] = {"header": "x-api-key", "value": secret}
        policy["bindings"][0]["groups"] = ["dev"]
        policy["mod"] = "enforce"
    path = tour.folder / "broken.yaml"
    path.write_text(json.dumps(policy, indent=1))
    done = tour.tidegate("check", "--policy", path)
    path.unlink()
    must(done.returncode == 1, f"exit {done.returncode}")
    for part in ("opnai", "credential", "groups", "mod"):
        must(part in done.stderr, f"the fault in {part} is not reported")
    must(secret not in done.stderr + done.stdout, "a message quotes the secret")
    first, *_, last = done.stderr.strip().splitlines()
    return f"{last} The first: {first.removeprefix(f'{tour.folder}/')}"


@promise(PROMISES, "no secret is in the recording's bytes, a log, an output or an answer", after=True)
def canaries(tour: Tour) -> str:
    planted = {
        "the key of a prompt": KEY,
        "a caller's token": tour.alice,
        "another caller's token": tour.mallory,
        "the upstream's credential": tour.credential,
        **{f"the customer's data ({number})": leak for number, leak in enumerate(LEAKS)},
        "the customer's card": "4111111111111111",
    }
    keep = {tour.folder / "upstream.key"}
    files = [each for each in tour.folder.rglob("*") if each.is_file() and each not in keep]
    sinks = {str(each.relative_to(tour.folder)): each.read_bytes() for each in files}
    sinks["what clients and commands were given"] = b"\n".join(tour.outputs)
    for sink, data in sinks.items():
        for what, value in planted.items():
            must(value.encode() not in data, f"{what} is in {sink}")
    must("recording.db" in sinks and b"exchange" in sinks["gate.log"], "a sink is missing")
    return f"{len(planted)} canaries searched for in {len(sinks)} places, {sum(map(len, sinks.values())) // 1024} KiB"


def tour_of_sample(tour: Tour) -> list[Seen]:
    """Run the sample model and the gate, walk, stop them, and search what they left."""
    (tour.model,) = free_ports(1)
    sample = [sys.executable, "-m", "tidegate.sample_model", "--port", tour.model, "--delay", 0.02]
    with started(tour, "model", sample, tour.model), gate(tour):
        console.print(
            f"gate on {HOST}:{tour.gate}, as a proxy on {HOST}:{tour.proxy}, sample model on {HOST}:{tour.model}\n"
        )
        found = walk(tour, [each for each in PROMISES if not each.after])
    return found + walk(tour, [each for each in PROMISES if each.after])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--real-model", action="store_true", help="let a real model on this machine leak (built the first time)"
    )
    parser.add_argument("--break", dest="sabotage", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Take the tour."""
    options = arguments()
    if options.real_model:
        import _demo_real as real
    else:
        real = None
    names = [each.name for each in (real.PROMISES if real else PROMISES)]
    if options.sabotage and options.sabotage not in names:
        raise SystemExit(f"demo: --break {options.sabotage}: no such promise; there are: {', '.join(names)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the children are ended as well
    watchdog = threading.Timer(LIMIT if real is None else 3600, lambda: os.kill(os.getpid(), signal.SIGTERM))
    watchdog.daemon = True
    watchdog.start()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as name:
        tour = Tour(
            Path(name), options.sabotage, credential=f"upstream-canary-{os.urandom(8).hex()}", real=real is not None
        )
        found = real.tour(tour) if real else tour_of_sample(tour)
    status = summary(found)
    console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")
    return status


if __name__ == "__main__":
    sys.exit(main())
