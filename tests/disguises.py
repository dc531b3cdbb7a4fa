"""What the tests of decoding share: one value in every disguise that is undone, and rules that find it."""

from __future__ import annotations

import base64
import gzip
import html
import json
import zlib
from urllib.parse import quote

from tests.wire import KEY
from tidegate.inspection.engine import build
from tidegate.inspection.rules import parse_pack

RULES = "pack: t\nclass: secrets\nversion: 1\ndescription: a\nrules:\n" + "".join(
    f"  - {{id: {name}, description: a, severity: {severity}, pattern: '\\b{head}-[A-Za-z0-9]{{8,20}}\\b',"
    f" match: [{head}-AbCd1234, {head}-AbCd12345], pass: [a, b], references: ['https://example.com/']}}\n"
    for name, severity, head in (("key", "high", "sk"), ("low", "low", "lo"))
)
ENGINE = build(parse_pack(RULES, "t.yaml")[0], None)
DATA = KEY.encode()

HIDDEN = {
    "base64": base64.b64encode(DATA).decode(),
    "base64 without padding": base64.b64encode(DATA).decode().rstrip("="),
    "base64 in a URL": "https://a.example/p?d=" + base64.urlsafe_b64encode(DATA).decode(),
    "base64 cut out of more": base64.b64encode(b"xy" + DATA).decode(),
    **{
        f"base64 without its first {many} characters": base64.b64encode(b"say: " + DATA).decode()[many:]
        for many in (1, 2, 3)
    },
    "base64 twice": base64.b64encode(base64.b64encode(DATA)).decode(),
    "base64 in lines": base64.encodebytes(b"a b c " * 20 + DATA + b" d e f" * 20).decode(),
    "a data URL": "data:text/plain;base64," + base64.b64encode(DATA).decode(),
    "base32": base64.b32encode(DATA).decode(),
    "base32 in small letters": base64.b32encode(DATA).decode().lower(),
    "ascii85": base64.a85encode(DATA).decode(),
    "hex": DATA.hex(),
    "hex with its mark": f"0x{DATA.hex()}",
    "hex with spaces": DATA.hex(" "),
    "hex in a host name": f"https://{DATA[:12].hex()}{DATA[12:].hex()}.a.example/",
    "bits": " ".join(f"{byte:08b}" for byte in DATA),
    "decimal codes": ", ".join(map(str, DATA)),
    "percent": "".join(f"%{byte:02X}" for byte in DATA),
    "percent twice": quote("".join(f"%{byte:02X}" for byte in DATA)),
    "HTML entities": "".join(f"&#{byte};" for byte in DATA),
    "a named entity": html.escape(f'"{KEY}"').replace("-", "&hyphen;").replace("‐", "-").replace("&hyphen;", "&#45;"),
    "backslash x": "".join(f"\\x{byte:02x}" for byte in DATA),
    "backslash u": "".join(f"\\u{byte:04x}" for byte in DATA),
    "behind a backslash n": f"one\\n{KEY}",
    "quoted-printable": "".join(f"={byte:02X}" for byte in DATA),
    "gzip in base64": base64.b64encode(gzip.compress(DATA)).decode(),
    "zlib in base64": base64.b64encode(zlib.compress(DATA)).decode(),
    "full width": "".join(chr(byte + 0xFEE0) for byte in DATA),
    "Cyrillic letters": KEY.replace("A", "А").replace("E", "Е").replace("s", "ѕ"),
    "zero width": "\u200b".join(KEY),
    "soft hyphens": "\u00ad".join(KEY),
    "tag characters": "".join(chr(0xE0000 + byte) for byte in DATA),
    "tag characters behind a letter": "x" + "".join(chr(0xE0000 + byte) for byte in DATA),
    "variation selectors behind a letter": "x" + "".join(chr(0xE0100 + byte - 16) for byte in DATA),
    "variation selectors": "😀" + "".join(chr(0xE0100 + byte - 16) for byte in DATA),
    "right to left": f"\u202e{KEY[::-1]}\u202c",
    "reversed": KEY[::-1],
    "ROT13": KEY.translate(str.maketrans("skAbCdEfGh", "fxNoPqRsTu")),
    "case swapped": KEY.swapcase(),
    "spaced out": " ".join(KEY),
    "dashed": "-".join(KEY),
    "digits as words": " ".join({"1": "one", "5": "five"}.get(each, each) for each in KEY),
    "in two lines": f"{KEY[:9]}\n{KEY[9:]}",
    "in two literals": f'"{KEY[:9]}" + "{KEY[9:]}"',
    "in two items": json.dumps([KEY[:9], KEY[9:]]),
    "in two fields": json.dumps({"a": KEY[:9], "b": KEY[9:]}),
    "entities in base64": base64.b64encode("".join(f"&#{byte};" for byte in DATA).encode()).decode(),
    "zero width and percent": "s\u200bk%2D" + KEY[3:],
}
