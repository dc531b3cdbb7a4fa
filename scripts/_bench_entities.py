"""What the labels of the personal-data corpora ask for, sorted by their formats alone: not by what is found.

``CHECKED``: the value tells what it is by itself, through a check digit, a checksum or a form that other things lack.
``NAMED``: it does not; a name beside it does. ``UNCOVERED``: it has no form at all, or is nobody's personal data.
A label in none of them is reported as not sorted.
"""

from __future__ import annotations

import re
from typing import Any

CHECKED = {
    "AU_ABN": "eleven digits, modulus 89: one number in 89 passes",
    "AU_MEDICARE": "ten digits, first 2 to 6, check digit",
    "CA_SIN": "three groups of three, Luhn",
    "CREDIT_CARD": "ranges and lengths of the networks, Luhn",
    "CRYPTO": "base58check, bech32",
    "DE_HANDELSREGISTER": "HRA or HRB and a number",
    "DE_HEALTH_INSURANCE": "a letter, nine digits, check digit",
    "DE_SOCIAL_SECURITY": "area, date of birth, letter, check digit",
    "DE_TAX_ID": "eleven digits, check digit, one digit repeated",
    "DE_VAT_ID": "DE and nine digits",
    "EMAIL_ADDRESS": "an @ and a domain",
    "ES_CIF": "a letter, seven digits, check character",
    "ES_NIE": "X, Y or Z, seven digits, check letter",
    "ES_NIF": "eight digits, check letter",
    "FI_PERSONAL_IDENTITY_CODE": "date of birth, century sign, check character",
    "IBAN_CODE": "country, its length, modulus 97",
    "IN_AADHAAR": "twelve digits, Verhoeff",
    "IN_GSTIN": "fifteen characters with a PAN inside",
    "IN_PAN": "five letters, the fourth of ten, four digits, a letter",
    "IP_ADDRESS": "dotted or colon form",
    "IT_FISCAL_CODE": "sixteen characters in a fixed order, date of birth, check character",
    "IT_VAT_CODE": "eleven digits, province, Luhn: one number in a hundred passes",
    "KR_BRN": "3-2-5 digits, check digit",
    "KR_FRN": "thirteen digits, date of birth",
    "KR_RRN": "thirteen digits, date of birth",
    "MAC_ADDRESS": "six octets",
    "MEDICAL_LICENSE": "two letters, seven digits, check digit (DEA)",
    "PHONE": "country code, or the groups of a numbering plan",
    "PHONE_NUMBER": "country code, or the groups of a numbering plan",
    "PH_MOBILE_NUMBER": "country code or trunk zero, numbering plan",
    "PL_PESEL": "date of birth, check digit",
    "SE_ORGANISATIONSNUMMER": "6-4 digits, Luhn",
    "SE_PERSONNUMMER": "date of birth, Luhn",
    "SG_NRIC_FIN": "a letter of five, seven digits, check letter",
    "SG_UEN": "digits and letters, check letter",
    "TH_TNIN": "thirteen digits, province, check digit",
    "TR_NATIONAL_ID": "eleven digits, two check digits",
    "TR_PHONE_NUMBER": "country code or trunk zero, numbering plan",
    "UK_DRIVING_LICENCE": "name, date of birth and initials in sixteen characters",
    "UK_NHS": "ten digits in groups of three, three and four, check digit",
    "UK_NINO": "two letters, six digits, a letter",
    "US_ITIN": "9, and a group that the IRS assigns",
    "US_MBI": "eleven characters in a fixed order",
    "US_NPI": "ten digits, Luhn with 80840, in groups",
    "US_SSN": "3-2-4 digits with hyphens, without the areas never assigned",
    "ZA_ID_NUMBER": "date of birth, citizenship, Luhn",
}  # fmt: skip
NAMED = {
    "ABA_ROUTING_NUMBER": "nine digits",
    "AU_ACN": "nine digits, written like any large number",
    "AU_TFN": "eight or nine digits, written like any large number",
    "DE_BSNR": "nine digits without a check digit",
    "DE_FUEHRERSCHEIN": "eleven letters and digits, as part numbers have",
    "DE_ID_CARD": "nine letters and digits; the check digit stands apart, on the card's back",
    "DE_KFZ": "one to three letters, one or two letters, one to four digits",
    "DE_LANR": "nine digits",
    "DE_PASSPORT": "nine letters and digits; the check digit stands apart, in the machine-readable zone",
    "DE_PLZ": "five digits",
    "DE_TAX_NUMBER": "ten to thirteen digits; each state has its own check, or none",
    "ES_PASSPORT": "three letters and six digits, no check digit",
    "IN_PASSPORT": "a letter and seven digits, no check digit",
    "IN_VEHICLE_REGISTRATION": "letters and digits, no check digit",
    "IN_VOTER": "three letters and seven digits, no public check digit",
    "IT_DRIVER_LICENSE": "ten letters and digits, no check digit (the newer ones begin with U1)",
    "IT_PASSPORT": "two letters and seven digits, no check digit",
    "KR_DRIVER_LICENSE": "twelve digits, no public check digit",
    "KR_PASSPORT": "a letter and eight digits, one of which may be a letter; no check digit",
    "NG_NIN": "eleven digits without a public check digit",
    "NG_VEHICLE_REGISTRATION": "three letters, three digits, two letters",
    "PH_TIN": "nine or twelve digits in threes, like any large number",
    "TR_LICENSE_PLATE": "two digits, one to three letters, two to four digits",
    "UK_PASSPORT": "two letters and seven digits, no check digit",
    "UK_POSTCODE": "two groups of letters and digits, as model names have; recorded only when written with the space",
    "UK_VEHICLE_REGISTRATION": "seven letters and digits",
    "US_BANK_NUMBER": "eight to seventeen digits",
    "US_DRIVER_LICENSE": "each state has its own form; many are digits alone",
    "US_PASSPORT": "a letter and eight digits, or nine digits",
}  # fmt: skip
UNCOVERED = {
    "ADDRESS": "words", "AGE": "a small number", "DATE_TIME": "a date is nobody's; a date of birth needs its name",
    "DOMAIN_NAME": "a site is nobody's", "GPE": "words", "LOCATION": "words", "NRP": "words", "ORGANIZATION": "words",
    "PERSON": "words", "PREFIX": "words", "STREET_ADDRESS": "words", "TITLE": "words",
    "URL": "a page is nobody's; a user name in it is found",
    "ZIP_CODE": "five digits; found beside its name",
}  # fmt: skip
GROUPS = {"checked": CHECKED, "named": NAMED, "uncovered": UNCOVERED}

# Harmless look-alikes that hold what they are said not to hold, by reading each flagged row.
ADDRESSES = "a real address of a person or a project, in the head of a source file"
SAMPLES = "a made-up person's data in a tutorial on personal data, in every respect like a real one's"
TRUE = dict.fromkeys(
    ("00194", "00222", "00348", "00466", "00808", "00826", "00867"), ADDRESSES
) | dict.fromkeys(
    ("01791", "01805", "01806", "01808", "01809", "01812", "01814", "01829", "01840", "01874", "01876", "01879"),
    SAMPLES,
) | {"00862": "made-up addresses at domains that exist (one@one.org), in an example"}  # fmt: skip


def group(entity: str) -> tuple[str, str]:
    """Return an entity's group and the reason for it."""
    return next(((name, reasons[entity]) for name, reasons in GROUPS.items() if entity in reasons), ("unsorted", ""))


def is_bare(text: str) -> bool:
    """Tell whether a text is nothing but up to nine digits: the form of a count, a price or a key of a table.

    At most one of the digits checks the others, so a tenth of all such numbers would pass.
    """
    return re.fullmatch(r"\s*[0-9]{1,9}\s*", text) is not None


def contradicted(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return the (label, text) of rows that stand among the positives and the negatives of one label."""
    said = {want: {(row["label"], row["text"]) for row in rows if row["expect"] is want} for want in (True, False)}
    return said[True] & said[False]
