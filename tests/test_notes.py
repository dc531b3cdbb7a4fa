"""Checkpoint notes and proof texts: as C2SP writes them, and nothing else is taken for one."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tidegate.evidence.notes import (
    NoteError,
    load_signer,
    load_verifier,
    make_signer,
    parse,
    parse_many,
    read_proof,
    tlog_proof,
)

SIGNER = make_signer("gate/log/one")
ROOT = bytes(range(32))
NOTE = SIGNER.sign(7, ROOT)


def test_a_note_has_the_text_of_the_specification() -> None:
    text, _, signature = NOTE.partition("\n\n")
    assert text == f"gate/log/one\n7\n{base64.b64encode(ROOT).decode()}"
    mark, name, data = signature.removesuffix("\n").split(" ")
    raw = base64.b64decode(data)
    assert (mark, name, raw[:4]) == ("\N{EM DASH}", "gate/log/one", SIGNER.verifier.id)
    Ed25519PublicKey.from_public_bytes(SIGNER.verifier.public).verify(raw[4:], f"{text}\n".encode())


def test_the_key_id_of_the_specification_s_example() -> None:
    # c2sp.org/signed-note: the vkey of its example
    vkey = "example.com/foo+530ccdc4+AVKjz7d0DvdgPmF3E4Gb0sYGhJ2AXIz5jXqMXgYSLzkS"
    with pytest.raises(NoteError):  # not a true key: its id does not fit, and that is noticed
        load_verifier(vkey)


def test_keys_come_back_from_their_texts() -> None:
    assert load_signer(SIGNER.dump() + "\n") == SIGNER
    assert load_verifier(SIGNER.verifier.vkey) == SIGNER.verifier
    assert SIGNER.seed.hex() not in repr(SIGNER)


def test_a_note_opens_with_its_key_alone() -> None:
    assert SIGNER.verifier.open(NOTE).size == 7
    assert SIGNER.verifier.open(NOTE).root == ROOT
    with pytest.raises(NoteError, match="another log"):
        make_signer("gate/log/two").verifier.open(NOTE)
    with pytest.raises(NoteError, match="not signed by this key"):
        make_signer("gate/log/one").verifier.open(NOTE)


def test_further_signatures_are_ignored_but_a_wrong_one_of_ours_is_not() -> None:
    other = make_signer("witness.example/w").sign(7, ROOT).rpartition("\n\n")[2]
    assert SIGNER.verifier.open(NOTE + other).size == 7
    wrong = SIGNER.sign(8, ROOT).rpartition("\n\n")[2]
    with pytest.raises(NoteError, match="signature of the note is wrong"):
        SIGNER.verifier.open(NOTE + wrong)


def test_every_changed_character_is_noticed() -> None:
    for at in range(len(NOTE)):
        for to in ("A", "7", "\n", " "):
            changed = NOTE[:at] + to + NOTE[at + 1 :]
            if changed != NOTE:
                with pytest.raises(NoteError):
                    SIGNER.verifier.open(changed)


@pytest.mark.parametrize(
    "text",
    [
        "", "a\n1\n", f"a\n01\n{base64.b64encode(ROOT).decode()}\n\n— a AAAA\n", NOTE.replace("\n\n", "\nmore\n\n"),
        NOTE.removesuffix("\n"), NOTE.replace("— ", "- "), NOTE.replace("gate/log/one\n7", "gate log\n7"),
    ],
)  # fmt: skip
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        parse(text)


@pytest.mark.parametrize("name", ["", "two words", "a+b", "line\n"])
def test_names_that_no_note_may_carry(name: str) -> None:
    with pytest.raises(NoteError, match="name of a log"):
        make_signer(name)


def test_a_file_of_notes_is_cut_into_them() -> None:
    notes = [SIGNER.sign(size, ROOT) for size in (1, 2, 3)]
    assert parse_many("".join(notes)) == notes
    assert parse_many("\n".join(notes)) == notes
    assert parse_many("") == []


def test_a_proof_text_comes_back() -> None:
    text = tlog_proof(3, [ROOT, bytes(32)], NOTE)
    assert text.startswith("c2sp.org/tlog-proof@v1\nindex 3\n")
    assert read_proof(text) == (3, [ROOT, bytes(32)], NOTE)
    assert read_proof(text.replace("\nindex", "\nextra AAAA\nindex")) == (3, [ROOT, bytes(32)], NOTE)
    for wrong in (text[1:], text.replace("index 3", "index 03"), text.replace("index 3", "index -1"), "c2sp.org"):
        with pytest.raises(NoteError):
            read_proof(wrong)
