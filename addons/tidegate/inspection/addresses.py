"""Second looks at addresses: of mailboxes, machines, places and vehicles. Pure functions of the matched bytes alone.

What is no address of a person in either sense is told apart here: addresses that a public registry reserves for
documentation, laboratories and the machine itself.
"""

from __future__ import annotations

import ipaddress
import re
from functools import cache

from publicsuffixlist import PublicSuffixList

# Longer spans are refused unread: an IPv6 address with its prefix length has 49 characters, a mailbox at most 254.
_MAX_ADDRESS = 320
# Ends of domains inside a house, which no public list has: RFC 6762 appendix G, RFC 8375, ICANN's .internal.
_INNER = frozenset({"local", "lan", "corp", "home", "internal", "intranet", "private", "localdomain"})
# Areas of British postcodes that are in use (Royal Mail's list, with Jersey, Guernsey, Man and the forces' BF).
_POSTCODE_AREAS = (
    "AB AL B BA BB BD BF BH BL BN BR BS BT CA CB CF CH CM CO CR CT CV CW DA DD DE DG DH DL DN DT DY E EC EH EN EX "
    "FK FY G GL GU GY HA HD HG HP HR HS HU HX IG IM IP IV JE KA KT KW KY L LA LD LE LL LN LS LU M ME MK ML N NE "
    "NG NN NP NR NW OL OX PA PE PH PL PO PR RG RH RM S SA SE SG SK SL SM SN SO SP SR SS ST SW SY TA TD TF TN TQ "
    "TR TS TW UB W WA WC WD WF WN WR WS WV YO ZE"
)
_POSTCODE = re.compile(r"([A-Z]{1,2})[0-9][0-9A-Z]? ?[0-9][ABD-HJLNP-UW-Z]{2}")


# -------------------------------------------------------------------------------------------------- mailboxes


def is_mailbox(span: bytes) -> bool:
    """Accept an e-mail address whose domain has a top-level domain that exists, or one of a house's own network.

    ``icon@2x.png`` and ``super@Main.onCreate`` have none. It need not be the last label: what follows a full stop
    without a space (``jane@acme.com.Then``) does not hide an address.
    """
    domain = span[:_MAX_ADDRESS].decode("utf-8", "replace").rpartition("@")[2].lower()
    return any(label in _INNER or _top_level().publicsuffix(f"x.{label}") for label in domain.split(".")[1:])


@cache
def _top_level() -> PublicSuffixList:
    """Return the public suffix list, which knows every top-level domain; reading it takes 30 ms, once."""
    return PublicSuffixList(accept_unknown=False, only_icann=True)


# -------------------------------------------------------------------------------------------------- machines


def is_private_ip(span: bytes) -> bool:
    """Accept IPv4 and IPv6 addresses and networks of a house or a laboratory; not ``0.0.0.0`` alone: nobody's."""
    address = _address(span)
    if address is None or (address.is_unspecified and b"/" not in span):
        return False
    return not address.is_global or address.is_reserved


def is_public_ip(span: bytes) -> bool:
    """Accept IPv4 and IPv6 addresses that are globally reachable (IANA special-purpose registries excluded)."""
    address = _address(span)
    return address is not None and address.is_global and not address.is_reserved


def _address(span: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(span[:_MAX_ADDRESS].decode("ascii").partition("/")[0])
    except ValueError:
        return None


def is_mac(span: bytes) -> bool:
    """Accept MAC addresses of more than two different octets; no longer runs (fingerprints), no dates with hyphens."""
    if len(span) > 17 or (span[2:3] == b"-" and not re.search(rb"[a-fA-F]", span)):
        return False
    digits = re.sub(rb"[:.-]", b"", span)
    octets = {digits[at : at + 2].lower() for at in range(0, len(digits), 2)}
    return len(octets) > 2 and re.fullmatch(rb"[0-9a-fA-F]{12}", digits) is not None


# -------------------------------------------------------------------------------------------------- places, vehicles


def is_coordinates(span: bytes) -> bool:
    """Accept a latitude and a longitude with at least four decimals each (about ten metres: a house)."""
    found = re.findall(rb"-?[0-9]{1,3}\.[0-9]{4,15}", span[:_MAX_ADDRESS])
    if len(found) != 2:
        return False
    latitude, longitude = (float(each) for each in found)
    return abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0.0, 0.0)


def is_uk_postcode(span: bytes) -> bool:
    """Accept British postcodes of an area that is in use, with the letters that the last two may be."""
    hit = _POSTCODE.fullmatch(span[:16].decode("ascii", "replace").upper())
    return hit is not None and hit[1] in _POSTCODE_AREAS.split()


def is_plate(span: bytes) -> bool:
    """Accept four to ten letters and digits, both of them, however they are grouped: what a number plate shows."""
    text = re.sub(rb"[ .-]", b"", span)
    return 4 <= len(text) <= 10 and re.search(rb"[0-9]", text) is not None and re.search(rb"[A-Z]", text) is not None
