"""Second looks at a matched span: pure functions of the matched bytes alone, named in a rule's ``validators``.

A span is what the rule would redact: the group ``value`` where the pattern has one, else the whole match. A validator
sees nothing around it, so that a stream and a whole text agree (docs/rules.md lists them all). Every one answers
``False`` instead of raising, whatever the bytes are.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module

import phonenumbers
from stdnum import luhn, mac
from stdnum.exceptions import ValidationError

Validator = Callable[[bytes], bool]

# Words that people write where a secret would stand. Each is rare enough in random text: four letters of a base-36
# alphabet meet by chance once in 1.7 million places.
STOP_WORDS = (
    b"example", b"placeholder", b"changeme", b"change_me", b"change-me", b"change_this", b"change-this", b"your",
    b"dummy", b"sample", b"redacted", b"replace", b"insert", b"fake", b"notreal", b"not-real", b"not_real", b"foobar",
    b"mysecret", b"my-secret", b"my_secret", b"secret_key", b"secret-key", b"api_key", b"api-key", b"apikey",
    b"my_token", b"mytoken", b"xxxx", b"****", b"....", b"____", b"----", b"${", b"{{", b"%(", b"<", b"$(",
    b"0123456789", b"12345678", b"87654321", b"abcdefgh", b"qwerty", b"deadbeef", b"lorem", b"todo",
)  # fmt: skip
# Whole values that are never the secret itself.
STOP_VALUES = frozenset(
    b"password passwd pass pwd passphrase secret token key none null nil true false undefined string text value user "
    b"username test testing default required optional empty hidden masked prompt admin root guest env config".split()
)
# Shell, template and interpolation openings: the secret is elsewhere.
_REFERENCE = re.compile(
    rb"[$%#@]\{|\$[A-Za-z_(]|\{\{|\{[A-Za-z_]|%[A-Za-z_]{2,64}%|<[A-Za-z]|(?:os\.|process\.|env\.|ENV\[)"
)
# How addresses, paths and templates begin: not what a person or a generator makes up as a password.
_NOT_TYPED = (b"/", b"./", b"http", b"arn:", b"$", b"{", b"(")
_RUN = re.compile(rb"(.)\1{5}", re.DOTALL)

# Regions whose national (undialled) numbers are recognised: those that begin with a zero, and those that do not.
ZERO_REGIONS = ("GB", "DE", "FR", "NL", "CH", "AT", "AU", "IN", "IT", "JP", "IL", "SE", "TR", "PH", "ZA")
OTHER_REGIONS = ("US", "ES", "IT", "IN", "BR", "PL", "PT", "DK", "NO", "CN")


def not_placeholder(span: bytes) -> bool:
    """Reject what stands for a secret in documentation: stop words, references, runs, too few distinct characters."""
    low = span.lower()
    if low.strip(b"\"'` ") in STOP_VALUES or any(word in low for word in STOP_WORDS):
        return False
    if _REFERENCE.match(span) or _RUN.search(low):
        return False
    return len(span) < 12 or len(set(low)) >= 5


def has_entropy(span: bytes, bits: float) -> bool:
    """Accept spans with at least ``bits`` of Shannon entropy per byte."""
    counts = Counter(span)
    return bool(span) and -sum(n / len(span) * math.log2(n / len(span)) for n in counts.values()) >= bits


def is_mixed(span: bytes) -> bool:
    """Accept spans that hold a letter and a digit: what random tokens have and words lack."""
    return re.search(rb"[A-Za-z]", span) is not None and re.search(rb"[0-9]", span) is not None


def is_password(span: bytes) -> bool:
    """Accept what looks like a chosen secret rather than code: two kinds of characters, no name, call or path."""
    if re.fullmatch(rb"[A-Za-z_][A-Za-z_]{0,200}(?:[.:/-][A-Za-z_]{1,200}){0,20}[();]{0,3}", span):
        return False
    if re.search(rb"[A-Za-z_]\(|\)\.|->|::|==|\]\.", span) or span.startswith(_NOT_TYPED):
        return False
    if re.fullmatch(rb"[\W_]{1,200}|[0-9.,:]{1,200}", span):
        return False
    kinds = (rb"[a-z]", rb"[A-Z]", rb"[0-9]", rb"[^A-Za-z0-9]")
    return sum(re.search(kind, span) is not None for kind in kinds) >= 2


def is_jwt(span: bytes) -> bool:
    """Accept spans whose first part decodes to a JOSE header (RFC 7515): a JSON object with ``alg`` or ``enc``."""
    head = span.split(b".", 1)[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and bool({"alg", "enc"} & header.keys())


def is_luhn(span: bytes) -> bool:
    """Accept digits, separators aside, with a right Luhn check digit (ISO/IEC 7812-1) and not all the same."""
    digits = _digits(span)
    return len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def is_number(span: bytes, module: str) -> bool:
    """Accept what the python-stdnum module ``module`` (``us.ssn``, ``iban``, ...) holds valid."""
    try:
        return bool(_STDNUM[module].is_valid(span.decode("ascii")))
    except (ValidationError, ValueError, IndexError):
        return False


def is_phone(span: bytes) -> bool:
    """Accept numbers in E.164 form (``+``, country code, number) that the numbering plan of their country knows."""
    return _phone(span, None)


def is_national_phone(span: bytes) -> bool:
    """Accept numbers that one of the regions above could assign, written as inside that region."""
    regions = ZERO_REGIONS if _digits(span).startswith("0") else OTHER_REGIONS
    return any(_phone(span, region) for region in regions)


def is_phone_length(span: bytes) -> bool:
    """Accept seven to fifteen digits (E.164's longest), not all the same, that are no plain date."""
    digits = _digits(span)
    plain_date = re.fullmatch(rb"[12][0-9]{3}-[0-9]{2}-[0-9]{2}", span)
    return 7 <= len(digits) <= 15 and len(set(digits)) > 1 and plain_date is None


def is_us_phone(span: bytes) -> bool:
    """Accept numbers of the North American plan, with or without their country code."""
    return _phone(span, "US")


def is_public_ip(span: bytes) -> bool:
    """Accept IPv4 and IPv6 addresses that are globally reachable (IANA special-purpose registries excluded)."""
    try:
        return ipaddress.ip_address(span.decode("ascii")).is_global
    except ValueError:
        return False


def is_mac(span: bytes) -> bool:
    """Accept MAC addresses that are neither zero, broadcast nor of one repeated octet."""
    octets = re.split(rb"[:.-]", span)
    return len({octet.lower() for octet in octets}) > 2 and bool(mac.is_valid(span.decode("latin-1").replace(".", ":")))


def is_date(span: bytes) -> bool:
    """Accept dates, in any order of day, month and year, whose year is 1900 to 2099 or has two digits."""
    parts = [int(part) for part in re.findall(rb"[0-9]{1,4}", span)]
    if re.search(rb"[A-Za-z]{3}", span):
        return len(parts) == 2 and 1 <= parts[0] <= 31 and 1900 <= parts[1] <= 2099
    years = [part for part in parts if part > 31]
    rest = sorted(part for part in parts if part <= 31)
    if len(parts) != 3 or len(years) > 1 or (years and not (1900 <= years[0] <= 2099 or years[0] < 100)):
        return False
    return rest[0] >= 1 and any(1 <= part <= 12 for part in rest)


def is_ssn(span: bytes) -> bool:
    """Accept US Social Security numbers however they are separated, without the areas and numbers never assigned."""
    digits = _digits(span)
    return len(digits) == 9 and is_number(f"{digits[:3]}-{digits[3:5]}-{digits[5:]}".encode(), "us.ssn")


def is_nino(span: bytes) -> bool:
    """Accept UK National Insurance numbers whose prefix is in use (HMRC manual NIM39110)."""
    return span[:2].upper() not in {b"BG", b"GB", b"KN", b"NK", b"NT", b"TN", b"ZZ", b"QQ"}


def _phone(span: bytes, region: str | None) -> bool:
    try:
        number = phonenumbers.parse(span.decode("ascii"), region)
    except (phonenumbers.NumberParseException, ValueError):
        return False
    return phonenumbers.is_valid_number(number)


def _digits(span: bytes) -> str:
    return re.sub(rb"[^0-9]", b"", span).decode("ascii")


# python-stdnum modules by the name a rule gives them: length, structure and, where there is one, the check digit.
_STDNUM_NAMES = {
    "au-tfn": "au.tfn", "be-nn": "be.nn", "bic": "bic", "br-cpf": "br.cpf", "ca-sin": "ca.sin", "ch-ahv": "ch.ssn",
    "crypto-btc": "bitcoin", "de-idnr": "de.idnr", "dk-cpr": "dk.cpr", "es-dni": "es.dni", "es-nie": "es.nie",
    "fi-hetu": "fi.hetu", "fr-nir": "fr.nir", "iban": "iban", "ie-pps": "ie.pps", "in-aadhaar": "in_.aadhaar",
    "in-pan": "in_.pan", "it-codicefiscale": "it.codicefiscale", "kr-rrn": "kr.rrn", "nl-bsn": "nl.bsn",
    "no-fodselsnummer": "no.fodselsnummer", "pl-pesel": "pl.pesel", "se-personnummer": "se.personnummer",
    "th-pin": "th.pin", "tr-tckimlik": "tr.tckimlik", "uk-nhs": "gb.nhs", "us-itin": "us.itin", "us-routing": "us.rtn",
    "us-ssn": "us.ssn", "za-idnr": "za.idnr",
}  # fmt: skip
_STDNUM = {module: import_module(f"stdnum.{module}") for module in _STDNUM_NAMES.values()}

VALIDATORS: dict[str, Validator] = {
    "date": is_date,
    "entropy:2.5": partial(has_entropy, bits=2.5),
    "entropy:3": partial(has_entropy, bits=3.0),
    "entropy:3.5": partial(has_entropy, bits=3.5),
    "entropy:4": partial(has_entropy, bits=4.0),
    "ip-public": is_public_ip,
    "jwt": is_jwt,
    "luhn": is_luhn,
    "mac": is_mac,
    "mixed": is_mixed,
    "password": is_password,
    "phone": is_phone,
    "phone-digits": is_phone_length,
    "phone-national": is_national_phone,
    "phone-us": is_us_phone,
    "placeholder": not_placeholder,
    "uk-nino": is_nino,
    "us-ssn-digits": is_ssn,
    **{name: partial(is_number, module=module) for name, module in _STDNUM_NAMES.items()},
}
