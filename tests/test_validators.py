from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn

from tidegate.inspection.telephones import is_nanp_number
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
    ("grafana-key", "eyJrIjoia1Q0dzlacVh2MkxtN1JiMVljOEhzSjVHIiwibiI6ImMifQ==", "eyJrIjoiM2Y5YzFkN2EtNWI4ZSJ9"),
    ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.c2ln", "eyJhIjoxfQ.eyJhIjoxfQ.c2ln"),
    ("jwt", "eyJhbGciOiJub25lIn0.e30.", "not base64.x.y"),
    ("length:12", "abcdefghijkl", "abcdefghijk"),
    ("length:16", "abcdefghijklmnop", "abcdefghijklmno"),
    ("luhn", "4111-1111-1111-1111", "4111-1111-1111-1112"),
    ("luhn", "378282246310005", "0000000000000000"),
    ("mac", "3c:22:fb:9a:01:7e", "ff:ff:ff:ff:ff:ff"),
    ("mac", "00-1A-2B-3C-4D-5E", "00:00:00:00:00:00"),
    ("mac", "3c22.fb9a.017e", "3c:22:fb:9a:01:7e:01"),
    ("mac", "02-1a-2b-3c-4d-5e", "02-11-26-23-02-26"),
    ("mailbox", "jane@acme.de", "icon@2x.png"),
    ("mailbox", "jane@acme.com.Then", "super@Main.onCreate"),
    ("mailbox", "jane@xn--bcher-kva.xn--p1ai", "sd_in@devanagari.utf"),
    ("mailbox", "j.doe@intra.acme.local", "jane@com"),
    ("mixed", "abc123", "abcdef"),
    ("mixed", "1a", "123456"),
    ("nl-bsn", "111222333", "111222334"),
    ("no-fodselsnummer", "15108695088", "15108695077"),
    ("password", "c0rrect-Horse9!", "os.environ.get"),
    ("password", "hunter22", "getPassword()"),
    ("password", "wX4%kk20!ab", "/run/secrets/db"),
    ("password", "s3cr3t", "12345678"),
    ("phone", "+442079460958", "+14155552671"),
    ("password-word", "winteriscoming", "password"),
    ("password-word", "mypassword", "required"),
    ("password-word", "Trampolin$", "passwordField"),
    ("phone", "+49 30 901820", "+999 12345678"),
    ("phone-digits", "78 651 450", "2024-03-21"),
    ("phone-digits", "1234567", "0000000"),
    ("phone-digits", "123456789012345", "1234567890123456"),
    ("phone-national", "020 7946 0958", "00 00 00 00 00"),
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
    ("stand-in", "ops_eyJzaWduSW5B.9", "ops_eyJzaWduSW5B..."),
    ("stand-in", "abcabcabcabc", "abababababab"),
    ("th-pin", "1-2345-45678-78-1", "1-2345-45678-78-9"),
    ("th-pin", "1520000000004", "1974567890124"),
    ("tr-tckimlik", "17291716060", "17291716061"),
    ("uk-nhs", "943 476 5919", "943 476 5918"),
    ("uk-nhs", "9434765919", "943-476-5919"),
    ("uk-nino", "AB123456C", "QQ123456C"),
    ("us-itin", "912-90-3456", "912-93-3456"),
    ("us-routing", "121000358", "121000359"),
    ("us-ssn", "536-90-4399", "078-05-1120"),
    ("us-ssn", "212-34-5678", "666-12-3456"),
    ("us-ssn-digits", "536904399", "000123456"),
    ("us-ssn-digits", "536 90 4399", "536 00 4399"),
    ("za-idnr", "7503305044089", "8503305044089"),
    ("za-idnr", "0001015002288", "0013015002285"),
    ("ar-cbu", "2850590940090418135201", "2810590940090418135201"),
    ("ar-cuit", "20-05536168-2", "20-26756539-2"),
    ("at-svnr", "1237 010180", "2237 010180"),
    ("au-abn", "83 914 571 673", "99 999 999 999"),
    ("au-acn", "004 085 616", "999 999 999"),
    ("au-medicare", "2123 45670 1", "2123 45671 1"),
    ("au-medicare", "2428778132", "7428778132"),
    ("bech32", "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr", "bc1p5cyxnuxmeuwuvkwfem96"),
    ("bech32", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdp"),
    ("bg-egn", "8032056031", "8032056032"),
    ("br-cnpj", "16.727.230/0001-97", "16.727.230/0001-98"),
    ("card-other", "122000000000003", "4111111111111111"),
    ("card-other", "1220 0000 0000 003", "122000000000004"),
    ("cl-rut", "12.531.909-2", "12.531.909-3"),
    ("cn-ric", "360426199101010071", "360426199101010072"),
    ("co-nit", "213.123.432-1", "213.123.432-5"),
    ("coordinates", "52.520008, 13.404954", "95.1234, 13.4049"),
    ("coordinates", "-33.8568, 151.2153", "1.5, 2.5"),
    ("crypto-btc", "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr", "bc1p5cyxnuxmeuwuvkwfem96"),
    ("cz-rc", "710319/2745", "710319/2746"),
    ("de-id-card", "T220001293", "T220001294"),
    ("de-id-card", "L01X00T471", "C000500021"),
    ("de-idnr", "86095742719", "86095742718"),
    ("tax-digits", "36574261809", "12345678903"),
    ("tax-digits", "51824753556", "52824753556"),
    ("tax-digits", "00743110157", "00743110158"),
    ("de-vat", "DE123456789", "de 136 695 977"),
    ("de-vat", "de 136 695 976", "de 123 456 789"),
    ("de-kvnr", "A123456780", "A123456781"),
    ("de-rvnr", "65 170839 J 003", "65 170839 J 004"),
    ("ee-ik", "36805280109", "36805280108"),
    ("es-cif", "J99216582", "J99216583"),
    ("fi-hetu", "020594X903P", "020594X903M"),
    ("gr-amka", "01013099997", "01013099999"),
    ("hr-oib", "33392005961", "33392005962"),
    ("iban", "gb82west12345698765432", "Gb82West12345698765432"),
    ("id-nik", "3171011708450001", "9971011708450001"),
    ("il-idnr", "3933742-3", "3933742-2"),
    ("in-aadhaar", "2341:2341:2346", "2341:2341:2347"),
    ("ip-private", "10.42.7.19", "8.8.8.8"),
    ("ip-private", "::1", "2606:4700:4700::1111"),
    ("ip-private", "255.255.255.0", "0.0.0.0"),
    ("ip-private", "2001:db8::1/32", "2001::db8::1"),
    ("it-codicefiscale-form", "RCCMNL83S18D969K", "RCCMNL83S18D969H"),
    ("it-codicefiscale-form", "RCCMNL83S58D969K", "RCCMNL83S40D969K"),
    ("it-iva", "00743110157", "00743110158"),
    ("jp-my-number", "123456789018", "123456789012"),
    ("kr-brn", "116-82-00276", "116-82-0027"),
    ("kr-brn-check", "104-86-56659", "104-86-56658"),
    ("kr-brn-check", "1048656659", "000-00-00000"),
    ("kr-resident-digits", "9001011234567", "8001015009087"),
    ("kr-resident", "971013-9019902", "971313-9019902"),
    ("kr-resident", "900101-1234567", "970231-1019902"),
    (
        "mrz",
        "P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<< L898902C36UTO7408122F1204159ZE184226B<<<<<10",
        "P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<< L898902C35UTO7408122F1204159ZE184226B<<<<<10",
    ),
    ("mx-curp", "BOXW310820HNERXN09", "BOXW310820HNERXN08"),
    ("mx-rfc", "GODE 561231 GR8", "GODE 569931 GR8"),
    ("my-nric", "770305-02-1234", "770305-17-1234"),
    ("nz-ird", "49-098-576", "136410133"),
    ("phone", "+46 (0)179 459 33", "+46 17"),
    ("phone-digits", "3732695155", "+1 415 555 2671"),
    ("phone-digits", "(895)164-4839x7918", "020 7946 0958"),
    ("phone-digits", "416 60 039", "05321234567"),
    ("phone-digits", "138 1234 5678", "13812345678"),
    ("phone-mobile", "13812345678", "12012345678"),
    ("phone-mobile", "19912345678", "13333333333"),
    ("phone-mobile", "09171234567", "0123"),
    ("phone-mobile", "05321234567", "0000000000"),
    ("phone-national", "01.42.68.53.00", "0123 4567 8907"),
    ("phone-national", "(030) 901820", "415-555-2671"),
    ("phone-national", "01-42-68-53-00", "01-42-68-53-00-AB"),
    ("phone-national", "0 532 123 45 67", "0961 23 45 67 60"),
    ("phone-us", "345-899-3560x4587", "943 476 5919"),
    ("phone-us", "+14155552671", "+442079460958"),
    ("pl-pesel-digits", "44051401359", "02070803628"),
    ("plate", "B AB 1234", "WAS HOT"),
    ("plate", "APP-456CV", "1234"),
    ("pk-cnic", "34201-0891231-8", "84201-0891231-8"),
    ("pl-nip", "8567346215", "8567346216"),
    ("pt-nif", "501 964 843", "501 964 842"),
    ("ro-cnp", "1630615123457", "1630615123458"),
    ("ru-inn", "123456789047", "123456789037"),
    ("se-long", "198803200016", "198803200017"),
    ("se-orgnr", "556703-7485", "556703-7486"),
    ("se-short", "8803200016", "8813200016"),
    ("sg-nric", "S1234567D", "S1234567A"),
    ("sg-nric", "T1234567J", "T1234567Z"),
    ("sg-nric", "G1234567X", "G1234567N"),
    ("sg-nric", "M1234567K", "M1234567L"),
    ("sg-uen", "197401143C", "197401143A"),
    ("si-emso", "0101006500006", "0101006500007"),
    ("ua-rntrc", "1759013776", "1759013770"),
    ("uk-postcode", "SW1A 1AA", "QA1 1AA"),
    ("uk-postcode", "M1 1AE", "M1 1CA"),
    ("uk-licence", "MORGA657054SM9IJ", "MORGA699054SM9IJ"),
    ("uk-utr", "1955839661", "2955839661"),
    ("url-data", "https://a.io/?q=the+whole+secret+plan+is", "https://a.io/?q=plan"),
    ("url-data-long", "https://a.io/" + "x" * 200, "https://a.io/" + "x" * 199),
    ("us-dea", "AB1234563", "AB1234564"),
    ("us-ein", "91-1144442", "07-1144442"),
    ("us-itin", "911-64-1234", "911-66-1234"),
    ("us-npi", "1234567893", "1234567890"),
    ("us-routing", "3222-7162-7", "3222-7162-8"),
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


@given(number=st.text("0123456789", min_size=1, max_size=24), separators=st.text(" -./", max_size=4))
def test_luhn_agrees_with_the_library(number: str, separators: str) -> None:
    span = separators.join(number) if len(separators) < 2 else separators + number
    assert VALIDATORS["luhn"](span.encode()) == (len(set(number)) > 1 and luhn.is_valid(number))


@pytest.mark.parametrize("form", ["{}{}{}", "+1 {} {} {}", "({}) {}-{}", "1-{}-{}-{}", "+1{}{}{}"])
@given(area=st.integers(200, 999), middle=st.integers(100, 999), last=st.integers(1000, 9999))
def test_north_american_numbers_are_those_of_the_library(form: str, area: int, middle: int, last: int) -> None:
    text = form.format(area, middle, last)
    number = phonenumbers.parse(text, "US")
    assert is_nanp_number(text.encode()) == (number.country_code == 1 and phonenumbers.is_valid_number(number))
