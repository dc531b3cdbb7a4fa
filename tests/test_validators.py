from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.inspection.validators import FORM_WORDS, STAND_INS, STOP_VALUES, STOP_WORDS, VALIDATORS

# (validator, accepted, refused)
NUMBERS = [
    ("au-tfn", "123 456 782", "123 456 783"),
    ("be-nn", "85.07.30-033.28", "85.07.30-033.29"),
    ("bic", "AGRIFRPP882", "AGRIFRPP8"),
    ("br-cpf", "390.533.447-05", "390.533.447-06"),
    ("ca-sin", "123-456-782", "123-456-783"),
    ("ch-ahv", "756.9217.0769.85", "756.9217.0769.84"),
    ("crypto-btc", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3"),
    ("crypto-btc", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdx"),
    ("date", "04/12/1985", "32.13.1985"),
    ("date", "1985-12-04", "99.99.2001"),
    ("date", "March 3, 1979", "March 45, 1979"),
    ("date", "3 March 1979", "3 March 1779"),
    ("date", "4.12.85", "0.12.1985"),
    ("de-idnr", "36 574 261 809", "36 574 261 808"),
    ("dk-cpr", "211062-5629", "321062-5629"),
    ("entropy:2.5", "abcdef", "aaaaab"),
    ("entropy:3", "abcdefgh", "abcdabcd"),
    ("entropy:3.5", "abcdefghijklm", "abcdefgh"),
    ("entropy:4", "abcdefghijklmnop", "abcdefghijklm"),
    ("es-dni", "54362315K", "54362315Z"),
    ("es-nie", "X2482300W", "X2482300A"),
    ("fi-hetu", "131052-308T", "131052-308U"),
    ("fr-nir", "2 95 10 99 126 111 93", "2 95 10 99 126 111 92"),
    ("iban", "GB82 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 33"),
    ("iban", "DE89370400440532013000", "DE8937040044053201300"),
    ("ie-pps", "6433435F", "6433435E"),
    ("in-aadhaar", "2341 2341 2346", "2341 2341 2347"),
    ("in-pan", "ACUPA7085R", "ACUZA7085R"),
    ("ip-public", "8.8.8.8", "10.0.0.1"),
    ("ip-public", "2606:4700:4700::1111", "2001:db8::1"),
    ("ip-public", "1.1.1.1", "1.1.1.256"),
    ("it-codicefiscale", "RCCMNL83S18D969H", "RCCMNL83S18D967H"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.c2ln", "eyJhIjoxfQ.eyJhIjoxfQ.c2ln"),
    ("jwt", "eyJhbGciOiJub25lIn0.e30.", "not base64.x.y"),
    ("kr-rrn", "971013-9019902", "971013-9019903"),
    ("length:12", "abcdefghijkl", "abcdefghijk"),
    ("length:16", "abcdefghijklmnop", "abcdefghijklmno"),
    ("luhn", "4111-1111-1111-1111", "4111-1111-1111-1112"),
    ("luhn", "378282246310005", "0000000000000000"),
    ("mac", "3c:22:fb:9a:01:7e", "ff:ff:ff:ff:ff:ff"),
    ("mixed", "abc123", "abcdef"),
    ("mixed", "1a", "123456"),
    ("nl-bsn", "111222333", "111222334"),
    ("no-fodselsnummer", "15108695088", "15108695077"),
    ("password", "c0rrect-Horse9!", "os.environ.get"),
    ("password", "hunter22", "getPassword()"),
    ("password", "wX4%kk20!ab", "/run/secrets/db"),
    ("password", "s3cr3t", "12345678"),
    ("password-word", "winteriscoming", "password"),
    ("password-word", "mypassword", "required"),
    ("password-word", "Trampolin$", "passwordField"),
    ("phone", "+14155552671", "+1 123"),
    ("phone", "+49 30 901820", "+999 12345678"),
    ("phone-digits", "78 651 450", "2024-03-21"),
    ("phone-digits", "1234567", "0000000"),
    ("phone-digits", "123456789012345", "1234567890123456"),
    ("phone-national", "020 7946 0958", "00 00 00 00 00"),
    ("phone-national", "415-555-2671", "999"),
    ("phone-us", "(415) 555-2671", "123-456-7890"),
    ("pl-pesel", "44051401359", "44051401358"),
    ("placeholder", "hunter2hunter9", "your-api-key-here"),
    ("placeholder", "wJalrXUtnFEMIK7MDENG", "AKIAIOSFODNN7EXAMPLE"),
    ("placeholder", "k3j5h2g8f1d4s6a7", "xxxxxxxxxxxxxxxx"),
    ("placeholder", "a7", "${DB_PASSWORD}"),
    ("placeholder", "correcthorse", "password"),
    ("placeholder", "abcabcabcdef", "abcabcabcabc"),
    ("placeholder", "kkkkk1abcdef", "kkkkkk1abcdef"),
    ("random", "dgpyhjg4r4mzrjb9uwr3bcie", "authentication_middleware_v2"),
    ("random", "5us4rjh9ebxtblpi3cnw2hq0d8f", "2024-05-01T12:13:14.000Z"),
    ("random", "d3b07384d113edec49eaa6238ad5ff00", "v1.12.3-alpha.4"),
    ("random", "DqayBxnyJrtpvydFCzAphcqc", "AuthenticationManagerFactoryBean"),
    ("random", "7f3a9c12-4be0-4d27-9a6c-b1e05d8f7a34", "projects/production/secrets"),
    ("se-personnummer", "880320-0016", "880320-0018"),
    ("stand-in", "abcdefgh12345678", "YOUR_API_KEY"),
    ("stand-in", "hunter2hunter9", "${OPENAI_API_KEY}"),
    ("stand-in", "AKIATESTKEY1234567890", "AKIAIOSFODNN7EXAMPLE"),
    ("stand-in", "k3j5h2g8f1d4s6a7", "sk-xxxxxxxxxxxxxxxx"),
    ("stand-in", "correcthorse", "{{ vault.db }}"),
    ("stand-in", "abcabcabcabc", "abababababab"),
    ("th-pin", "1-2345-45678-78-1", "1-2345-45678-78-9"),
    ("tr-tckimlik", "17291716060", "17291716061"),
    ("uk-nhs", "943 476 5919", "943 476 5918"),
    ("uk-nino", "AB123456C", "QQ123456C"),
    ("us-itin", "912-90-3456", "912-93-3456"),
    ("us-routing", "121000358", "121000359"),
    ("us-ssn", "536-90-4399", "078-05-1120"),
    ("us-ssn", "212-34-5678", "666-12-3456"),
    ("us-ssn-digits", "536904399", "000123456"),
    ("us-ssn-digits", "536 90 4399", "536 00 4399"),
    ("za-idnr", "7503305044089", "8503305044089"),
]


@pytest.mark.parametrize(("name", "accepted", "refused"), NUMBERS)
def test_a_validator_accepts_the_right_and_refuses_the_nearly_right(name: str, accepted: str, refused: str) -> None:
    assert VALIDATORS[name](accepted.encode())
    assert not VALIDATORS[name](refused.encode())


def test_every_validator_is_in_the_table() -> None:
    assert {name for name, _, _ in NUMBERS} == set(VALIDATORS)


@pytest.mark.parametrize("word", [*STOP_WORDS, *sorted(STOP_VALUES)])
def test_a_stop_word_is_lower_case_and_refused(word: bytes) -> None:
    assert word == word.lower()
    assert not VALIDATORS["placeholder"](word)


@pytest.mark.parametrize("word", [*STAND_INS, *sorted(STOP_VALUES)])
def test_a_stand_in_is_refused_however_it_is_written(word: bytes) -> None:
    assert not VALIDATORS["stand-in"](word.upper())


@pytest.mark.parametrize("word", sorted(FORM_WORDS))
def test_a_word_of_a_form_is_no_password(word: bytes) -> None:
    assert not VALIDATORS["password-word"](word.title())


@pytest.mark.parametrize("name", sorted(VALIDATORS))
@given(span=st.binary(max_size=64) | st.text("0123456789-. :/aAxX+", max_size=40).map(str.encode))
def test_no_validator_raises_whatever_the_bytes(name: str, span: bytes) -> None:
    assert VALIDATORS[name](span) in {True, False}
