"""Second looks at telephone numbers: pure functions of the matched bytes, by the numbering plans of phonenumbers.

Rules whose patterns could name the same span exclude each other here, so that one number is one finding: a fixed form
(international, North American, with a leading zero) comes before a number that stands beside a word.
"""

from __future__ import annotations

import re
from functools import cache

import phonenumbers
from phonenumbers.phonemetadata import PhoneMetadata
from stdnum.gb import nhs

# Longer spans than any identifier's are refused unread: an IBAN with its spaces is 42 characters, an IPv6 address 45.
MAX_SPAN = 128
# Regions whose numbers, written as inside the region with a leading zero, are recognised.
ZERO_REGIONS = (
    "GB", "DE", "FR", "NL", "CH", "AT", "AU", "IN", "IT", "JP", "IL", "SE", "TR", "PH", "ZA", "BE", "KR", "NZ", "IE",
    "FI",
)  # fmt: skip
# How a North American number is written; its rule and the rules it takes precedence over agree on this.
NANP = re.compile(
    rb"(?:\+?1[ .-]?|001[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}"
    rb"|\+1[ .-]?[2-9][0-9]{9}"
)
# How a national number with a leading zero is written, and one in a single piece: the patterns of their rules.
TRUNK = re.compile(
    rb"(?:\(0|0 ?)[1-9](?:(?:[0-9]{1,4}\)?[ /-]|\)[ /-]?)[0-9]{2,8}(?:[ -][0-9]{2,5}){0,4}"
    rb"|[ -][0-9]{3,8}(?:[ -][0-9]{2,5}){0,3}|(?:[ -][0-9]{2}){4})|0[1-9](?:\.[0-9]{2}){4}"
)
_NOTHING = re.compile("")
_EXTENSION = re.compile(rb"(?i:(?:x|ext\.?) ?)[0-9]{1,6}\Z")


def digits_of(span: bytes) -> str:
    """Return the ASCII digits of ``span``, in order."""
    return bytes(byte for byte in span if 48 <= byte <= 57).decode("ascii")


def is_nanp(span: bytes) -> bool:
    """Accept numbers of the North American plan; with an extension any 3-3-4 grouping, which nothing else has."""
    if _EXTENSION.search(span):
        return 10 <= len(digits_of(span)) <= 20
    return is_nanp_number(span) and not is_nhs_spaced(span)


def is_international_phone(span: bytes) -> bool:
    """Accept ``+`` and a country code other than 1, and a number its plan assigns or, when grouped, could assign."""
    number = _parsed(span)
    if number is None or number.country_code == 1:
        return False
    if phonenumbers.is_valid_number(number):
        return True
    possible = phonenumbers.is_possible_number_with_reason(number) == phonenumbers.ValidationResult.IS_POSSIBLE
    return possible and len(re.findall(rb"[0-9]{1,20}", span)) >= 3


def is_trunk_phone(span: bytes) -> bool:
    """Accept a leading zero and the digit groups that a region prints its numbers in: all of them, or its area code."""
    groups = [each.decode("ascii") for each in re.findall(rb"[0-9]{1,20}", span[:MAX_SPAN])]
    if not groups or not groups[0].startswith("0") or re.search(rb"[A-Za-z]", span):  # letters: a MAC address
        return False
    national = "".join(groups)[1:]
    rest = [groups[0][1:], *groups[1:]] if len(groups[0]) > 1 else groups[1:]
    if not 7 <= len(national) <= 11 or len(set(national)) < 3:
        return False
    by_area = len(rest) == 2 or re.search(rb"[(/]", span) is not None
    return any(_grouped(region, national, rest, by_area) for region in ZERO_REGIONS)


def is_mobile(span: bytes) -> bool:
    """Accept ten or eleven digits in one piece: a leading zero and a mobile number, or a Chinese mobile number."""
    digits = digits_of(span)
    if not 10 <= len(digits) <= 11 or len(set(digits)) < 4:
        return False
    if digits[0] != "0":
        return _plan("CN")[1].fullmatch(digits) is not None
    return any(_plan(region)[1].fullmatch(digits[1:]) for region in ZERO_REGIONS)


def is_named_phone(span: bytes) -> bool:
    """Accept seven to fifteen digits, not all the same and no date, that no rule for a fixed form finds already."""
    digits = digits_of(span.partition(b"x")[0])
    if not 7 <= len(digits) <= 15 or len(set(digits)) == 1 or _looks_like_date(span):
        return False
    if span.startswith(b"+") or NANP.fullmatch(span):
        return not (is_nanp_number(span) or is_international_phone(span))
    return not (is_trunk_phone(span) if TRUNK.fullmatch(span) else span.isdigit() and is_mobile(span))


def _looks_like_date(span: bytes) -> bool:
    return re.fullmatch(rb"[12][0-9]{3}[-./][0-9]{1,2}[-./][0-9]{1,2}", span) is not None


def is_nanp_number(span: bytes) -> bool:
    """Accept numbers that the North American plan assigns, with the country code 1 or without."""
    digits = digits_of(span)
    if len(digits) == 11 and digits[0] == "1":
        digits = digits[1:]
    elif span.startswith(b"+"):
        return False
    return len(digits) == 10 and _north_american().fullmatch(digits) is not None


def _parsed(span: bytes) -> phonenumbers.PhoneNumber | None:
    # No plan has numbers of fewer than seven digits with their country code; parsing takes 20 microseconds.
    if len(span) > MAX_SPAN or len(digits_of(span)) < 7:
        return None
    try:
        return phonenumbers.parse(span.decode("ascii"), None)
    except (phonenumbers.NumberParseException, ValueError):
        return None


@cache
def _north_american() -> re.Pattern[str]:
    """Return the numbers of all regions with the country code 1, of every kind: ten times faster than to parse one."""
    kinds = (
        "fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost", "personal_number", "voip", "pager", "uan",
        "voicemail",
    )  # fmt: skip
    patterns: dict[str, None] = {}
    for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[1]:
        plan = PhoneMetadata.metadata_for_region(region)
        for kind in kinds:
            described = getattr(plan, kind, None)
            if described is not None and described.national_number_pattern:
                patterns[described.national_number_pattern] = None
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


type _Form = tuple[re.Pattern[str], re.Pattern[str]]  # what a number begins with, and its groups


@cache
def _plan(region: str) -> tuple[re.Pattern[str], re.Pattern[str], tuple[_Form, ...]]:
    """Return a region's numbers, its mobile numbers, and how it prints them. Keys: ``ZERO_REGIONS`` and ``CN``."""
    plan = PhoneMetadata.metadata_for_region(region)
    if plan is None or plan.general_desc is None or plan.mobile is None:
        return _NOTHING, _NOTHING, ()
    forms = (
        (
            re.compile(form.leading_digits_pattern[-1] if form.leading_digits_pattern else ""),
            re.compile(form.pattern or ""),
        )
        for form in plan.number_format
    )
    everything, mobile = plan.general_desc.national_number_pattern, plan.mobile.national_number_pattern
    return re.compile(everything or ""), re.compile(mobile or ""), tuple(forms)


def _grouped(region: str, national: str, groups: list[str], by_area: bool) -> bool:
    """Tell whether ``region`` has the number and prints it in ``groups``; ``by_area``: the first of them is enough."""
    everything, _, forms = _plan(region)
    if not everything.fullmatch(national):
        return False
    for leading, form in forms:
        if leading.match(national) and (hit := form.fullmatch(national)):
            printed = list(hit.groups())
            return printed == groups or (by_area and printed[0] == groups[0])
    return False


def is_nhs_spaced(span: bytes) -> bool:
    """Accept a UK NHS number in its printed form, 3 3 4 with spaces."""
    return re.fullmatch(rb"[0-9]{3} [0-9]{3} [0-9]{4}", span) is not None and bool(nhs.is_valid(span.decode("ascii")))
