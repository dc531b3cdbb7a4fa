"""Second looks at identity and account numbers: pure functions of the matched bytes.

The same law as ``validators.py``: total, linear in a bounded span, blind to the text around it. Where a number has a
well-kept implementation (python-stdnum, phonenumbers) that decides; what neither has is written here from its public
description.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from importlib import import_module

from stdnum import iban, luhn
from stdnum.exceptions import ValidationError
from stdnum.iso7064 import mod_11_10

from tidegate.inspection.addresses import (
    is_coordinates,
    is_mac,
    is_mailbox,
    is_plate,
    is_private_ip,
    is_public_ip,
    is_uk_postcode,
)
from tidegate.inspection.telephones import (
    MAX_SPAN,
    digits_of,
    is_international_phone,
    is_mobile,
    is_named_phone,
    is_nanp,
    is_nanp_number,
    is_trunk_phone,
)

Validator = Callable[[bytes], bool]

# German insurance numbers: the areas of issue (VKVV section 2); the letter counts as its place in the alphabet.
_DE_RVNR = re.compile(rb"([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([A-Z])([0-9]{2})([0-9])")
_TH_PROVINCES = frozenset(
    (*range(10, 28), *range(30, 50), *range(50, 59), *range(60, 68), *range(70, 78), *range(80, 87), *range(90, 97))
)
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def is_number(span: bytes, module: str) -> bool:
    """Accept what the python-stdnum module ``module`` (``us.ssn``, ``iban``, ...) holds valid."""
    if len(span) > MAX_SPAN:
        return False
    try:
        return bool(_MODULES[module].is_valid(span.decode("ascii")))
    except (ValidationError, ValueError, IndexError, KeyError):
        return False


def is_iban(span: bytes) -> bool:
    """Accept IBANs in one case: mixed case is what random base64 has."""
    if len(span) > MAX_SPAN or not (span == span.upper() or span == span.lower()):
        return False
    try:
        # Not the bank's own check: its list of banks is never complete.
        return bool(iban.validate(span.decode("ascii"), check_country=False))
    except (ValidationError, ValueError, IndexError):
        return False


# -------------------------------------------------------------------------------------------------- accounts


def is_bech32(span: bytes) -> bool:
    """Accept native segwit addresses: bech32, or bech32m from version 1 on (BIP 173, BIP 350)."""
    prefix, _, data = span.decode("ascii", "replace").rpartition("1")
    if len(span) > MAX_SPAN or not prefix or not all(each in _BECH32 for each in data):
        return False
    values = [*(ord(each) >> 5 for each in prefix), 0, *(ord(each) & 31 for each in prefix), *map(_BECH32.index, data)]
    check = 1
    for value in values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term if top >> bit & 1 else 0
    return check == (1 if data[:1] == "q" else 0x2BC830A3)


def is_bitcoin(span: bytes) -> bool:
    """Accept Bitcoin addresses: base58check, bech32 or bech32m."""
    return is_bech32(span) if span.startswith(b"bc1") else is_number(span, "bitcoin")


# -------------------------------------------------------------------------------------------------- numbers


def is_nhs(span: bytes) -> bool:
    """Accept UK NHS numbers, but with hyphens only what is no North American telephone number."""
    return is_number(span, "gb.nhs") and (b"-" not in span or not is_nanp_number(span))


def is_card_of_others(span: bytes) -> bool:
    """Accept 12 to 19 digits with a right Luhn digit that begin as no brand with a rule of its own does."""
    digits = digits_of(span)
    others = digits[:1] in set("01789") and digits[:2] not in {"81", "82"} and digits[:4] != "1800"
    return 12 <= len(digits) <= 19 and others and len(set(digits)) > 2 and bool(luhn.is_valid(digits))


def is_aadhaar(span: bytes) -> bool:
    """Accept Indian Aadhaar numbers however they are separated (Verhoeff)."""
    return is_number(digits_of(span).encode(), "in_.aadhaar")


def is_itin(span: bytes) -> bool:
    """Accept US taxpayer numbers of people: 9, and a group the IRS assigns (50-65, 70-88, 90-92, 94-99)."""
    digits = digits_of(span)
    if len(digits) != 9 or digits[0] != "9":
        return False
    group = int(digits[3:5])
    return 50 <= group <= 65 or (70 <= group <= 99 and group not in {89, 93})


def is_routing(span: bytes) -> bool:
    """Accept US bank routing numbers, in one piece or in groups."""
    return is_number(digits_of(span).encode(), "us.rtn")


def is_npi(span: bytes) -> bool:
    """Accept US National Provider Identifiers: Luhn with the prefix 80840 (45 CFR 162.406)."""
    digits = digits_of(span)
    return len(digits) == 10 and digits[0] in "12" and len(set(digits)) > 2 and bool(luhn.is_valid("80840" + digits))


def is_dea(span: bytes) -> bool:
    """Accept US DEA registration numbers: two letters and seven digits with their checksum (21 CFR 1301.13)."""
    digits = digits_of(span)
    if len(span) != 9 or len(digits) != 7 or len(set(digits)) < 3:
        return False
    values = [int(each) for each in digits]
    return (sum(values[0:6:2]) + 2 * sum(values[1:6:2])) % 10 == values[6]


def is_medicare_au(span: bytes) -> bool:
    """Accept Australian Medicare card numbers: first digit 2 to 6, weights 1 3 7 9 repeated."""
    digits = digits_of(span)
    if not 10 <= len(digits) <= 11 or digits[0] not in "23456" or len(set(digits)) < 4:
        return False
    return sum(int(each) * weight for each, weight in zip(digits[:8], (1, 3, 7, 9) * 2, strict=True)) % 10 == int(
        digits[8]
    )


def is_my_number(span: bytes) -> bool:
    """Accept Japanese individual numbers (My Number): twelve digits, weights 6 5 4 3 2 7 6 5 4 3 2, modulus 11."""
    digits = digits_of(span)
    if len(digits) != 12 or len(set(digits)) < 3:
        return False
    rest = sum(int(each) * weight for each, weight in zip(digits, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2), strict=False)) % 11
    return int(digits[11]) == (0 if rest <= 1 else 11 - rest)


def is_kr_resident(span: bytes) -> bool:
    """Accept Korean registration numbers of residents and foreigners: a date, a century digit that fits it.

    Numbers issued since October 2020 have no check digit, so none is asked for.
    """
    digits = digits_of(span)
    if len(digits) != 13 or len(set(digits[6:])) < 3:
        return False
    century = {"1": 19, "2": 19, "5": 19, "6": 19, "3": 20, "4": 20, "7": 20, "8": 20, "9": 18, "0": 18}[digits[6]]
    return _is_date(century * 100 + int(digits[:2]), digits[2:4], digits[4:6])


def is_kr_digits(span: bytes) -> bool:
    """Accept Korean registration numbers in one piece, but no South African ones, which have a check digit."""
    return is_kr_resident(span) and not is_za_number(span)


def is_kr_company(span: bytes) -> bool:
    """Accept Korean business numbers with their check digit: weights 1 3 7 1 3 7 1 3 5, the tens of the last too."""
    digits = digits_of(span)
    if not is_number(digits.encode(), "kr.brn"):
        return False
    values = [int(each) for each in digits]
    total = sum(value * weight for value, weight in zip(values, (1, 3, 7, 1, 3, 7, 1, 3, 5), strict=False))
    return (total + values[8] * 5 // 10 + values[9]) % 10 == 0


def is_pesel_digits(span: bytes) -> bool:
    """Accept Polish PESEL numbers in one piece, but no telephone number with its leading zero."""
    return is_number(span, "pl.pesel") and not is_mobile(span)


def is_th_number(span: bytes) -> bool:
    """Accept Thai identity numbers: check digit, and a province (ISO 3166-2:TH) as the second and third digit."""
    digits = digits_of(span)
    return is_number(digits.encode(), "th.pin") and int(digits[1:3]) in _TH_PROVINCES


def is_za_number(span: bytes) -> bool:
    """Accept South African identity numbers: a date, citizen, resident or refugee (0 to 2), Luhn."""
    digits = digits_of(span)
    if len(digits) != 13 or digits[10] not in "012" or not luhn.is_valid(digits):
        return False
    return any(_is_date(century * 100 + int(digits[:2]), digits[2:4], digits[4:6]) for century in (19, 20))


def is_se_long(span: bytes) -> bool:
    """Accept Swedish personal numbers with the century written out: a date, Luhn over the last ten digits."""
    digits = digits_of(span)
    if len(digits) != 12 or digits[:2] not in {"18", "19", "20"}:
        return False
    return _is_date(int(digits[:4]), digits[4:6], digits[6:8]) and bool(luhn.is_valid(digits[2:]))


def is_se_short(span: bytes) -> bool:
    """Accept Swedish personal numbers of ten digits: a date in this century or the last, and Luhn."""
    digits = digits_of(span)
    return len(digits) == 10 and (is_se_long(b"19" + span) or is_se_long(b"20" + span))


def is_fi_hetu(span: bytes) -> bool:
    """Accept Finnish identity codes with any separator in use since 2023: a date and the check character."""
    text = span.decode("ascii", "replace").upper()
    hit = re.fullmatch(r"([0-9]{2})([0-9]{2})([0-9]{2})([-+A-FU-Y])([0-9]{3})([0-9A-FHJ-NPR-Y])", text)
    if hit is None:
        return False
    day, month, year, mark, serial, check = hit.groups()
    century = 18 if mark == "+" else 20 if mark in "ABCDEF" else 19
    right = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(day + month + year + serial) % 31]
    return check == right and _is_date(century * 100 + int(year), month, day)


def is_tax_number(span: bytes) -> bool:
    """Accept eleven digits that one tax office in three would give out: Australia's ABN, Germany's, Italy's."""
    repeated = len(set(span[:10])) in {8, 9}  # as the German ones are; most numbers are not
    return (repeated and is_number(span, "de.idnr")) or is_number(span, "au.abn") or is_number(span, "it.iva")


def is_de_idnr(span: bytes) -> bool:
    """Accept German tax identification numbers: eleven digits, ISO 7064 modulus 11, 10; the first is no zero."""
    digits = digits_of(span)
    return len(digits) == 11 and digits[0] != "0" and len(set(digits)) > 2 and bool(mod_11_10.is_valid(digits))


def is_de_vat(span: bytes) -> bool:
    """Accept German VAT numbers: with DE in capitals any, in small letters (a word of many languages) the checked."""
    return span.startswith(b"DE") or is_number(digits_of(span).encode(), "de.vat")


def is_de_id_card(span: bytes) -> bool:
    """Accept German identity card and passport numbers with their check digit (ICAO), but no health insurance's."""
    text = span.decode("ascii", "replace").upper()
    if not re.fullmatch(r"[CFGHJKLMNPRTVWXYZ][0-9CFGHJKLMNPRTVWXYZ]{8}[0-9]", text):
        return False
    return _mrz(text[:9]) == int(text[9]) and sum(map(str.isdigit, text)) >= 4 and not is_de_kvnr(span)


def is_de_rvnr(span: bytes) -> bool:
    """Accept German pension insurance numbers: area, date of birth, letter, serial, check digit (VKVV section 4)."""
    hit = _DE_RVNR.fullmatch(span.replace(b" ", b"").upper())
    if hit is None or not 1 <= int(hit[3]) <= 12 or not 1 <= int(hit[2]) % 50 <= 31:
        return False
    number = f"{hit[1].decode()}{hit[2].decode()}{hit[3].decode()}{hit[4].decode()}{hit[5][0] - 64:02}{hit[6].decode()}"
    weights = (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)
    sums = (sum(divmod(int(each) * weight, 10)) for each, weight in zip(number, weights, strict=True))
    return sum(sums) % 10 == int(hit[7])


def is_de_kvnr(span: bytes) -> bool:
    """Accept German health insurance numbers: a letter, eight digits, Luhn-like check digit (GKV directive 290)."""
    text = span.decode("ascii", "replace").upper()
    if not re.fullmatch(r"[A-Z][0-9]{9}", text) or len(set(text[1:])) < 2:
        return False
    number = f"{ord(text[0]) - 64:02}{text[1:9]}"
    sums = (sum(divmod(int(each) * weight, 10)) for each, weight in zip(number, (1, 2) * 5, strict=True))
    return sum(sums) % 10 == int(text[9])


def is_sg_nric(span: bytes) -> bool:
    """Accept Singapore NRIC and FIN numbers: prefix S, T, F, G or M, seven digits, check letter."""
    text = span.decode("ascii", "replace").upper()
    if not re.fullmatch(r"[STFGM][0-9]{7}[A-Z]", text):
        return False
    total = sum(int(each) * weight for each, weight in zip(text[1:8], (2, 7, 6, 5, 4, 3, 2), strict=True))
    if text[0] == "M":
        return text[8] == "KLJNPQRTUWX"[10 - (total + 3) % 11]
    table = "JZIHGFEDCBA" if text[0] in "ST" else "XWUTRQPNMLK"
    return text[8] == table[(total + (4 if text[0] in "TG" else 0)) % 11]


def is_uk_licence(span: bytes) -> bool:
    """Accept British driving licence numbers: name, decade, month (women 51 to 62), day, year, initials."""
    text = span.decode("ascii", "replace").upper()
    hit = re.fullmatch(r"[A-Z]{1,5}9{0,4}[0-9]([0156][0-9])([0-9]{2})[0-9][A-Z9]{2}[A-Z0-9][A-Z]{2}", text)
    return hit is not None and 1 <= int(hit[1]) % 50 <= 12 and 1 <= int(hit[2]) <= 31


def is_it_code_of_form(span: bytes) -> bool:
    """Accept Italian fiscal codes whose check character is wrong: sixteen characters of a form nothing else has."""
    text = span.decode("ascii", "replace")
    hit = re.fullmatch(r"[A-Z]{6}[0-9]{2}[A-Z]([0-9]{2})[A-Z][0-9]{3}[A-Z]", text)
    return (
        hit is not None
        and int(hit[1]) <= 71
        and 1 <= int(hit[1]) % 40 <= 31
        and not is_number(span, "it.codicefiscale")
    )


def is_mrz(span: bytes) -> bool:
    """Accept a passport's machine-readable zone by three check digits of its second line (ICAO 9303 part 4)."""
    text = span[-44:].decode("ascii", "replace")
    if not re.fullmatch(r"[A-Z0-9<]{9}[0-9][A-Z<]{3}[0-9]{7}[MFX<][0-9]{7}[A-Z0-9<]{14}[0-9<][0-9]", text):
        return False
    parts = ((text[:9], text[9]), (text[13:19], text[19]), (text[21:27], text[27]))
    return all(_mrz(value) == int(check) for value, check in parts)


def _mrz(text: str) -> int:
    """Return the check digit of ICAO 9303: weights 7 3 1, letters from 10 up, the filler nothing."""
    values = (0 if each == "<" else int(each, 36) for each in text)
    return sum(value * (7, 3, 1)[index % 3] for index, value in enumerate(values)) % 10


def _is_date(year: int, month: str, day: str) -> bool:
    try:
        return bool(date(year, int(month), int(day)))
    except ValueError:
        return False


# python-stdnum modules by the name a rule gives them: length, structure and, where there is one, the check digit.
STDNUM = {
    "ar-cbu": "ar.cbu", "ar-cuit": "ar.cuit", "at-svnr": "at.vnr", "au-abn": "au.abn", "au-acn": "au.acn",
    "au-tfn": "au.tfn", "be-nn": "be.nn", "bg-egn": "bg.egn", "bic": "bic", "br-cnpj": "br.cnpj", "br-cpf": "br.cpf",
    "ca-sin": "ca.sin", "ch-ahv": "ch.ssn", "cl-rut": "cl.rut", "cn-ric": "cn.ric", "co-nit": "co.nit",
    "cz-rc": "cz.rc", "dk-cpr": "dk.cpr",
    "ee-ik": "ee.ik", "es-cif": "es.cif", "es-dni": "es.dni", "es-nie": "es.nie", "fr-nir": "fr.nir",
    "gr-amka": "gr.amka", "hr-oib": "hr.oib", "id-nik": "id.nik", "ie-pps": "ie.pps", "il-idnr": "il.idnr",
    "in-pan": "in_.pan",
    "it-codicefiscale": "it.codicefiscale", "it-iva": "it.iva", "kr-brn": "kr.brn", "mx-curp": "mx.curp",
    "mx-rfc": "mx.rfc", "my-nric": "my.nric", "nl-bsn": "nl.bsn", "no-fodselsnummer": "no.fodselsnummer",
    "nz-ird": "nz.ird", "pk-cnic": "pk.cnic", "pl-nip": "pl.nip", "pl-pesel": "pl.pesel", "pt-nif": "pt.nif",
    "ro-cnp": "ro.cnp", "ru-inn": "ru.inn", "se-orgnr": "se.orgnr", "se-personnummer": "se.personnummer",
    "sg-uen": "sg.uen", "si-emso": "si.emso", "tr-tckimlik": "tr.tckimlik", "ua-rntrc": "ua.rntrc",
    "uk-utr": "gb.utr", "us-ein": "us.ein", "us-ssn": "us.ssn",
}  # fmt: skip
_MODULES = {
    module: import_module(f"stdnum.{module}")
    for module in (
        *STDNUM.values(),
        "bitcoin",
        "de.idnr",
        "de.vat",
        "gb.nhs",
        "in_.aadhaar",
        "kr.brn",
        "th.pin",
        "us.rtn",
    )
}

IDENTIFIERS: Mapping[str, Validator] = {
    **{name: partial(is_number, module=module) for name, module in STDNUM.items()},
    "au-medicare": is_medicare_au,
    "bech32": is_bech32,
    "card-other": is_card_of_others,
    "coordinates": is_coordinates,
    "crypto-btc": is_bitcoin,
    "de-id-card": is_de_id_card,
    "de-idnr": is_de_idnr,
    "de-kvnr": is_de_kvnr,
    "de-rvnr": is_de_rvnr,
    "de-vat": is_de_vat,
    "fi-hetu": is_fi_hetu,
    "iban": is_iban,
    "in-aadhaar": is_aadhaar,
    "ip-private": is_private_ip,
    "ip-public": is_public_ip,
    "it-codicefiscale-form": is_it_code_of_form,
    "jp-my-number": is_my_number,
    "kr-brn-check": is_kr_company,
    "kr-resident": is_kr_resident,
    "kr-resident-digits": is_kr_digits,
    "mac": is_mac,
    "mailbox": is_mailbox,
    "mrz": is_mrz,
    "phone": is_international_phone,
    "phone-digits": is_named_phone,
    "phone-mobile": is_mobile,
    "phone-national": is_trunk_phone,
    "phone-us": is_nanp,
    "pl-pesel-digits": is_pesel_digits,
    "plate": is_plate,
    "se-long": is_se_long,
    "se-short": is_se_short,
    "sg-nric": is_sg_nric,
    "tax-digits": is_tax_number,
    "th-pin": is_th_number,
    "uk-licence": is_uk_licence,
    "uk-nhs": is_nhs,
    "uk-postcode": is_uk_postcode,
    "us-dea": is_dea,
    "us-itin": is_itin,
    "us-npi": is_npi,
    "us-routing": is_routing,
    "za-idnr": is_za_number,
}
