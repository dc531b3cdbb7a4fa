"""The evidence bundle: deterministic, checked by its own program alone, and no byte of it can change unnoticed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from mitmproxy import http
from mitmproxy.io import FlowReader
from mitmproxy.test import tflow
from sqlite_utils.utils import sqlite3

from tidegate.cli import main
from tidegate.evidence import offline
from tidegate.evidence.bundle import Selection, export
from tidegate.evidence.files import Files
from tidegate.evidence.ledger import Settings
from tidegate.evidence.log import Cadence
from tidegate.evidence.records import ExchangeRecord, RecordingError
from tidegate.evidence.store import Recorder
from tidegate.evidence.subjects import Subjects
from tidegate.evidence.verify import key_beside, verify
from tidegate.model import Action, Finding, Outcome
from tidegate.policy.policy import Keep
from tidegate.replay.flows import encode, safe_state

FOUND = Finding("secrets.aws-access-key", "secrets", "$.messages[0].content", 5, 25, Action.REDACT)
EVERY = int(os.environ.get("TIDEGATE_CAMPAIGN_BUNDLE_STEP", "41"))
"""Every how many bytes of a bundle one is changed; the campaign of docs/evidence.md sets 1."""


def flow(at: int) -> http.HTTPFlow:
    made = tflow.tflow(resp=True)
    made.request.content = json.dumps({"messages": [{"content": f"question {at} [REDACTED:card]"}]}).encode()
    made.response.content = f"answer {at}".encode()
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "rec" / "tidegate.db"

    async def run() -> None:
        recorder = Recorder(path, encode, settings=Settings(private=True, cadence=Cadence(leaves=9)))
        recorder.start()
        for at in range(30):
            more = {"identity": "corp", "caller": "alice" if at % 2 else "bob", "prompt_findings": (FOUND,)}
            name = f"ex_{at:04}"
            await recorder.intent(ExchangeRecord(name, at * 1_000_000, "POST", "/x", **more))
            end = ExchangeRecord(name, at * 1_000_000, "POST", "/x", outcome=Outcome.ANSWERED, **more)
            recorder.seal(end, safe_state(flow(at), Keep.REDACTED, name))
            if at == 10:
                recorder.lose()
        recorder.close()

    asyncio.run(run())
    return path


def check(bundle: bytes, tmp_path: Path, key: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's own program, as an auditor would: alone, without this package."""
    (tmp_path / "bundle.zip").write_bytes(bundle)
    with zipfile.ZipFile(tmp_path / "bundle.zip") as opened:
        opened.extract("verify.py", tmp_path)
    command = [sys.executable, "-I", str(tmp_path / "verify.py"), str(tmp_path / "bundle.zip"), "--key", key, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_the_program_is_one_short_file_of_nobody_s_code_but_cryptography() -> None:
    text = Path(offline.__file__).read_text()
    assert len(text.splitlines()) <= 300
    imports = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= {"cryptography", *sys.stdlib_module_names}


def test_a_bundle_is_checked_offline(path: Path, tmp_path: Path) -> None:
    key = key_beside(Files(path)).vkey
    bundle = export(path, Selection(caller="corp:alice"))
    done = check(bundle, tmp_path, key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 exchanges have the bodies that were recorded; 0 have none" in done.stdout
    assert "1 events tell of records that were lost" in done.stdout
    (tmp_path / "kept").write_text(Files(path).note.read_text())
    assert "among those kept elsewhere" in check(bundle, tmp_path, key, "--checkpoint", str(tmp_path / "kept")).stdout
    (tmp_path / "kept").write_text("something else")
    assert check(bundle, tmp_path, key, "--checkpoint", str(tmp_path / "kept")).returncode == 1


def test_the_same_selection_gives_the_same_bytes(path: Path) -> None:
    selection = Selection(since_us=5_000_000, until_us=9_000_000)
    assert export(path, selection) == export(path, selection)


def test_another_key_does_not_hold(path: Path, tmp_path: Path) -> None:
    from tidegate.evidence.notes import make_signer

    other = make_signer(key_beside(Files(path)).name).verifier.vkey
    done = check(export(path, Selection(ids=("ex_0003",))), tmp_path, other)
    assert (done.returncode, done.stdout) == (1, "DOES NOT HOLD: a checkpoint is not signed by this key\n")


def run(bundle: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["verify.py", str(bundle), "--key", key])
    return offline.main()


def test_every_changed_byte_is_found(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, chosen = key_beside(Files(path)).vkey, random.Random(5)
    data = export(path, Selection(ids=("ex_0003",)))
    place = tmp_path / "changed.zip"
    place.write_bytes(data)
    assert run(place, key, monkeypatch) == 0
    for at in range(0, len(data), EVERY):
        place.write_bytes(data[:at] + bytes((data[at] ^ 1 << chosen.randrange(8),)) + data[at + 1 :])
        assert run(place, key, monkeypatch) != 0, at
    for changed in (data[:-1], data + b"x", b"x" + data, data[: len(data) // 2]):
        place.write_bytes(changed)
        assert run(place, key, monkeypatch) != 0


def repacked(data: bytes, change: dict[str, bytes | None], tmp_path: Path) -> bytes:
    """A forger's bundle: members exchanged, the manifest made to fit."""
    from hashlib import sha256

    (tmp_path / "b.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        members = {name: bundle.read(name) for name in bundle.namelist()}
    for name, value in change.items():
        if value is None:
            del members[name]
        else:
            members[name] = value
    manifest = json.loads(members["manifest.json"])
    manifest["members"] = {name: sha256(d).hexdigest() for name, d in members.items() if name != "manifest.json"}
    members["manifest.json"] = json.dumps(manifest, sort_keys=True, indent=1).encode()
    return offline.pack(members)


def test_a_forger_who_makes_the_manifest_fit_is_found(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, place = key_beside(Files(path)).vkey, tmp_path / "forged.zip"
    data = export(path, Selection(ids=("ex_0003",)))
    (tmp_path / "b.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        lines = bundle.read("events.jsonl").splitlines(keepends=True)
        body = bundle.read("bodies/ex_0003.flow")
        proofs = [name for name in bundle.namelist() if name.startswith("proofs/")]
    forgeries: list[dict[str, bytes | None]] = [
        {"events.jsonl": b"".join(lines).replace(b"redact", b"allowd")},
        {"events.jsonl": b"".join(reversed(lines))},
        {"events.jsonl": lines[0]},
        {"bodies/ex_0003.flow": body.replace(b"question 3", b"question 4")},
        {"bodies/ex_0099.flow": body},
        {proofs[0]: b"nonsense"},
        {proofs[0]: None},
        {"checkpoints/consistency.txt": b"consistency proof, first to last checkpoint\n"},
    ]
    for change in forgeries:
        place.write_bytes(repacked(data, change, tmp_path))
        assert run(place, key, monkeypatch) != 0, list(change)
    place.write_bytes(repacked(data, {}, tmp_path))
    assert run(place, key, monkeypatch) == 0


def test_who_was_erased_is_gone_and_the_proofs_hold(path: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(path.parent, tmp_path / "rec")
    copy = tmp_path / "rec" / "tidegate.db"
    cli = CliRunner()
    held = cli.invoke(main, ["evidence", "hold", "corp:alice", "--reason", "case 7", "--recording", str(copy)])
    assert "corp:alice since" in held.stdout
    refused = cli.invoke(main, ["evidence", "erase", "corp:alice", "--yes", "--recording", str(copy)])
    assert refused.exit_code == 1
    assert "found a legal hold on this caller (case 7); nothing was erased" in refused.stderr
    cli.invoke(main, ["evidence", "hold", "corp:alice", "--release", "--recording", str(copy)])
    done = cli.invoke(main, ["evidence", "erase", "corp:alice", "--yes", "--basis", "T-1", "--recording", str(copy)])
    assert done.exit_code == 0, done.output
    assert "approvals in the control store (state.path) keep names and words as they were" in done.stderr
    recorder = Recorder(copy, encode, settings=Settings(private=True))
    recorder.start()
    recorder.close()
    assert verify(copy).faults == []
    for file in copy.parent.iterdir():
        data = file.read_bytes()
        assert b"alice" not in data, file
        assert b"question" not in data, file
    db = sqlite3.connect(copy)
    kinds = [kind for (kind,) in db.execute("SELECT kind FROM event")]
    db.close()
    assert [each for each in kinds if each in ("hold", "release", "erased")] == ["hold", "release", "erased"]
    assert cli.invoke(main, ["flows", "list", "--recording", str(copy), "--caller", "alice", "--json"]).stdout == ""
    assert len(cli.invoke(main, ["flows", "list", "--recording", str(copy), "--caller", "bob", "--json"]).stdout) > 100
    bundle = check(export(copy, Selection(since_us=0)), tmp_path, key_beside(Files(copy)).vkey)
    assert bundle.returncode == 0
    assert "15 exchanges have the bodies that were recorded; 15 have none in this bundle" in bundle.stdout
    again = cli.invoke(main, ["evidence", "erase", "corp:alice", "--yes", "--recording", str(copy)])
    assert "found no caller of that name; nothing was erased" in again.stderr


def test_no_caller_and_no_text_stands_in_the_clear_but_in_the_file_of_keys(path: Path) -> None:
    for file in path.parent.iterdir():
        data = file.read_bytes()
        assert b"question" not in data, file
        assert (b"alice" in data) == (file.name == "tidegate.db.keys"), file


@pytest.mark.parametrize("form", ["mitm", "har", "jsonl"])
def test_other_tools_open_what_is_exported(path: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    command = ["export", "ex_0003", "ex_0004", "--recording", str(path), "--format", form, "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    if form == "mitm":
        with out.open("rb") as file:
            assert [each.response.text for each in FlowReader(file).stream()] == ["answer 3", "answer 4"]
    elif form == "har":
        entries = json.loads(out.read_text())["log"]["entries"]
        assert [each["response"]["content"]["text"] for each in entries] == ["answer 3", "answer 4"]
    else:
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [(each["id"], each["response"]["body"]) for each in lines] == [
            ("ex_0003", "answer 3"),
            ("ex_0004", "answer 4"),
        ]
    subjects = Subjects(Files(path).keys)
    kind, detail = subjects.told()[-1][1:]
    subjects.close()
    assert kind == "export"
    assert detail.startswith(f"{form} of 2 exchanges, ex_0003 to ex_0004")


def test_nothing_selected_is_said(path: Path) -> None:
    with pytest.raises(RecordingError, match="found no exchange that was selected"):
        export(path, Selection(since_us=1 << 60))
    done = CliRunner().invoke(main, ["export", "--recording", str(path), "--out", "x"])
    assert "found nothing to export; accepted: EXCHANGES, --caller, --since or --until" in done.output


def test_a_proof_for_other_verifiers(path: Path, tmp_path: Path) -> None:
    import base64

    from tidegate.evidence.notes import read_proof
    from tidegate.evidence.tree import check_consistency, check_inclusion, leaf_hash

    key = key_beside(Files(path))
    done = CliRunner().invoke(main, ["evidence", "prove", "ex_0003", "--recording", str(path)])
    index, hashes, note = read_proof(done.stdout)
    checkpoint = key.open(note)
    payload = base64.b64decode(done.stdout.split("\n")[1].removeprefix("extra "))
    assert json.loads(payload)["exchange"]["id"] == "ex_0003"
    check_inclusion(leaf_hash(payload), index, checkpoint.size, hashes, checkpoint.root)
    db = sqlite3.connect(path)
    (tmp_path / "older").write_text(
        db.execute("SELECT note FROM checkpoint ORDER BY size LIMIT 1 OFFSET 1").fetchone()[0]
    )
    db.close()
    done = CliRunner().invoke(main, ["evidence", "prove", "--older", str(tmp_path / "older"), "--recording", str(path)])
    head, _, note = done.stdout.partition("\n\n")
    older, newest = key.open((tmp_path / "older").read_text()), key.open(note)
    proof = [base64.b64decode(each) for each in head.split("\n")[1:]]
    check_consistency(older.size, newest.size, proof, older.root, newest.root)
    (tmp_path / "older").write_text("nonsense")
    bad = CliRunner().invoke(main, ["evidence", "prove", "--older", str(tmp_path / "older"), "--recording", str(path)])
    assert "found no checkpoint note" in bad.stderr
