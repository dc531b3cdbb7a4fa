"""Check a tidegate evidence bundle. Needs Python 3.9 or newer and the package `cryptography`, and no network.

    python verify.py BUNDLE.zip --key 'NAME+ID+KEY' [--checkpoint FILE]

The key is the log's public key. Take it from where you noted it, never from whoever gave you the bundle.
Exit status: 0 everything holds, 1 something does not, 2 the bundle cannot be read.
"""

# ruff: noqa: UP006, UP035 - this file runs on older Pythons too
import argparse
import base64
import hashlib
import json
import sys
import zipfile
from typing import Any, Dict, List, Tuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DASH = "\N{EM DASH} "


class Fault(Exception):
    """Something does not hold."""


def sha(data: bytes) -> bytes:
    """Return SHA-256."""
    return hashlib.sha256(data).digest()


def b64(text: str) -> bytes:
    """Read base64, in the one form it has."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise Fault("found base64 with stray bits")
    return data


class Key:
    """The log's public key."""

    def __init__(self, text: str) -> None:
        parts = text.strip().split("+", 2)
        if len(parts) != 3:
            raise Fault("the key is not of the form NAME+ID+KEY")
        self.name, data = parts[0], b64(parts[2])
        if len(data) != 33 or data[0] != 1:
            raise Fault("the key is no Ed25519 key")
        self.public = data[1:]
        self.id = sha(self.name.encode() + b"\n" + data)[:4]
        if self.id.hex() != parts[1]:
            raise Fault("the key does not fit its id")

    def open(self, note: str) -> Tuple[int, bytes]:
        """Return size and root of a checkpoint that this key signed."""
        head, _, tail = note.partition("\n\n")
        lines = head.split("\n")
        if len(lines) != 3 or lines[0] != self.name or not tail.endswith("\n"):
            raise Fault("a checkpoint is not of this log")
        if not lines[1].isdigit() or str(int(lines[1])) != lines[1]:
            raise Fault("the size of a checkpoint is no number")
        signed = False
        for line in tail[:-1].split("\n"):
            name, _, data = line[len(DASH) :].partition(" ")
            if not line.startswith(DASH):
                raise Fault("a line of a checkpoint is no signature")
            raw = b64(data)
            if name == self.name and raw[:4] == self.id:
                try:
                    Ed25519PublicKey.from_public_bytes(self.public).verify(raw[4:], (head + "\n").encode())
                except InvalidSignature:
                    raise Fault("the signature of a checkpoint is wrong") from None
                signed = True
        root = b64(lines[2])
        if not signed or len(root) != 32:
            raise Fault("a checkpoint is not signed by this key")
        return int(lines[1]), root


def node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node of the tree."""
    return sha(b"\x01" + left + right)


def half(width: int) -> int:
    """Return the largest power of two below a width."""
    return 1 << ((width - 1).bit_length() - 1)


def included(leaf: bytes, index: int, size: int, proof: List[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 6962, 2.1.1)."""
    if not 0 <= index < size:
        raise Fault("an index is out of range")
    if size == 1:
        if proof:
            raise Fault("a proof is too long")
        return leaf
    if not proof:
        raise Fault("a proof is too short")
    middle = half(size)
    if index < middle:
        return node(included(leaf, index, middle, proof[:-1]), proof[-1])
    return node(proof[-1], included(leaf, index - middle, size - middle, proof[:-1]))


def consistent(old: int, size: int, proof: List[bytes], old_root: bytes, whole: bool = True) -> Tuple[bytes, bytes]:
    """Return the two roots that a consistency proof leads to (RFC 6962, 2.1.2)."""
    if old == size:
        if len(proof) != (0 if whole else 1):
            raise Fault("a proof has the wrong length")
        found = old_root if whole else proof[0]
        return found, found
    if not proof or not 0 < old < size:
        raise Fault("a proof has the wrong length")
    middle, last = half(size), proof[-1]
    if old <= middle:
        first, second = consistent(old, middle, proof[:-1], old_root, whole)
        return first, node(second, last)
    first, second = consistent(old - middle, size - middle, proof[:-1], old_root, False)
    return node(last, first), node(last, second)


def read_members(path: str) -> Dict[str, bytes]:
    """Return the members of a bundle, whole and as its manifest lists them."""
    with open(path, "rb") as file:  # noqa: PTH123 - one file, few imports
        data = file.read()
    with zipfile.ZipFile(path) as bundle:
        names = [each.filename for each in bundle.infolist()]
        if len(set(names)) != len(names) or names != sorted(names):
            raise Fault("the members of the bundle are not in order")
        found = {name: bundle.read(name) for name in names}
    listed = json.loads(found["manifest.json"])["members"]
    if set(listed) != set(found) - {"manifest.json"}:
        raise Fault("the members of the bundle are not those of its manifest")
    for name, digest in listed.items():
        if sha(found[name]).hex() != digest:
            raise Fault(f"{name} is not as the manifest says")
    if pack(found) != data:
        raise Fault("the bundle has bytes that its members do not account for")
    return found


def pack(members: Dict[str, bytes]) -> bytes:
    """Write a bundle: sorted, stored, without times. The same members give the same bytes."""
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as bundle:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100444 << 16
            bundle.writestr(entry, members[name])
    return out.getvalue()


def read_proof(text: str) -> Tuple[int, List[bytes], str]:
    """Return index, hashes and checkpoint of a tlog-proof."""
    head, _, note = text.partition("\n\n")
    lines = head.split("\n")
    if lines[0] != "c2sp.org/tlog-proof@v1" or len(lines) < 2 or not lines[1].startswith("index "):
        raise Fault("a proof has another form")
    return int(lines[1][6:]), [b64(each) for each in lines[2:]], note


def check_events(members: Dict[str, bytes], key: Key) -> List[Tuple[int, Any]]:
    """Return the events that are proven to be in the log, with their indexes."""
    proven = []
    numbers = json.loads(members["manifest.json"])["events"]
    lines = members["events.jsonl"].split(b"\n")[:-1]
    if len(numbers) != len(lines) or b"\n".join([*lines, b""]) != members["events.jsonl"]:
        raise Fault("events.jsonl has another number of lines than the manifest says")
    if numbers != sorted(set(numbers)):
        raise Fault("the events are not in order")
    last = members["checkpoints/last.note"].decode()
    size, root = key.open(last)
    for number, line in zip(numbers, lines):  # noqa: B905 - not in Python 3.9
        index, proof, note = read_proof(members[f"proofs/{number}.tlog-proof"].decode())
        if index != number or note != last:
            raise Fault(f"the proof of event {number} is of something else")
        if included(sha(b"\x00" + line), number, size, proof) != root:
            raise Fault(f"event {number} is not in the log")
        proven.append((number, json.loads(line)))
    return proven


def check_checkpoints(members: Dict[str, bytes], key: Key) -> Tuple[int, int]:
    """Return the sizes of the first and last checkpoint; the one is proven to be the beginning of the other."""
    first, first_root = key.open(members["checkpoints/first.note"].decode())
    size, root = key.open(members["checkpoints/last.note"].decode())
    proof = [b64(each) for each in members["checkpoints/consistency.txt"].decode().split("\n")[1:-1]]
    if consistent(first, size, proof, first_root) != (first_root, root):
        raise Fault("the first checkpoint is not the beginning of the last one")
    return first, size


def check_bodies(members: Dict[str, bytes], events: List[Tuple[int, Any]]) -> Tuple[int, int]:
    """Return how many bodies are as the log says, and how many of them are not in the bundle."""
    found = missing = 0
    salts = json.loads(members["manifest.json"])["salts"]
    wanted = {each["exchange"]["id"]: each["stored"]["plain"] for _, each in events if "stored" in each}
    for exchange, commitment in wanted.items():
        body = members.get(f"bodies/{exchange}.flow")
        if body is None:
            missing += 1
        elif sha(b"\x00" + bytes.fromhex(salts[exchange]) + body).hex() != commitment:
            raise Fault(f"the bodies of exchange {exchange} are not those that were recorded")
        else:
            found += 1
    if {each for each in members if each.startswith("bodies/")} - {f"bodies/{each}.flow" for each in wanted}:
        raise Fault("the bundle has bodies that no event speaks of")
    return found, missing


def check_outside(path: str, members: Dict[str, bytes]) -> str:
    """Say what a file of checkpoints from elsewhere proves: the bundle's last one must be among them."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        text = file.read()
    last = members["checkpoints/last.note"].decode()
    if last.strip() not in text:
        raise Fault("the checkpoint of the bundle is not among those kept elsewhere")
    return "its checkpoint is among those kept elsewhere"


def main() -> int:
    """Check a bundle and say what holds."""
    parser = argparse.ArgumentParser(description="Check a tidegate evidence bundle, offline.")
    parser.add_argument("bundle")
    parser.add_argument("--key", required=True, help="the log's public key, from where you noted it")
    parser.add_argument("--checkpoint", help="a file of checkpoints that was kept elsewhere")
    asked = parser.parse_args()
    say = sys.stdout.write
    try:
        key, members = Key(asked.key), read_members(asked.bundle)
        events = check_events(members, key)
        first, size = check_checkpoints(members, key)
        bodies, missing = check_bodies(members, events)
        outside = check_outside(asked.checkpoint, members) if asked.checkpoint else ""
    except Fault as fault:
        say(f"DOES NOT HOLD: {fault}\n")
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is made of, it is no bundle
        say(f"cannot be read: {type(error).__name__}\n")
        return 2
    gaps = sum(1 for _, each in events if each["kind"] == "event" and each["event"] == "gap")
    say(f"{len(events)} events are in the log as they are here, under a checkpoint over {size} events\n")
    say(f"the log over {first} events is the beginning of the log over {size}\n")
    say(f"{bodies} exchanges have the bodies that were recorded; {missing} have none in this bundle\n")
    say(f"{gaps} events tell of records that were lost\n")
    say(f"{outside or 'not proven: that the log was not rewritten by who holds its key (give --checkpoint)'}\n")
    say("holds\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
