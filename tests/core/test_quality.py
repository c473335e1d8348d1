"""What is fit to be learnt from: every reason, its limits, and all that must not be taken for a fault."""

from __future__ import annotations

import base64
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysscan_models.config import QualityOptions
from sysscan_models.documents import Document
from sysscan_models.splits.quality import ENCODED, NOT_TEXT, REASONS, REPEATED, TOO_LONG, TOO_SHORT, fault

BYTES = random.Random(1).randbytes(3000)
BASE64 = base64.b64encode(BYTES).decode()
PROSE = "\n".join(
    f"Paragraph {number} tells the administrator of {word} what a service needs, and why nothing else may be opened."
    for number, word in enumerate(["mail", "web", "backup", "login", "time", "name", "print", "file", "chat", "build"] * 3)
)


def wrapped(text: str, width: int) -> str:
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


def pem(size: int) -> str:
    body = wrapped(base64.b64encode(BYTES[:size]).decode(), 64)
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----"


def reason(text: str = "", *, options: QualityOptions | None = None, **fields: Any) -> str:
    found = fault(Document(id="1", content=text, **fields), options or QualityOptions())
    assert found is None or found[0] in REASONS
    return found[0] if found else ""


def chat(*turns: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns))


HEX_DUMP = "\n".join(
    f"{at:08x}  " + " ".join(f"{byte:02x}" for byte in BYTES[at : at + 16]) + "  |" + "." * 16 + "|" for at in range(0, 512, 16)
)
XXD = "\n".join(f"{at:08x}: " + BYTES[at : at + 16].hex(" ", 2) for at in range(0, 512, 16))
GOOD = {
    "prose": PROSE,
    "title alone": "Disable SSH root login",
    "hindi": "सुरक्षा के लिए रूट लॉगिन बंद करें और केवल कुंजी से प्रवेश की अनुमति दें।",
    "thai": "ปิดการเข้าสู่ระบบด้วยผู้ใช้รูทผ่านเครือข่ายเพื่อความปลอดภัย",
    "arabic": "عطّل تسجيل الدخول المباشر إلى حساب الجذر عبر الشبكة.",
    "persian with joiners": "این سرویس نمی‌تواند به پرونده‌ها دسترسی داشته باشد",  # noqa: RUF001 - as it is written
    "russian": "Запретите вход суперпользователя по сети без ключа.",
    "chinese": "禁止超级用户通过网络登录，只允许使用密钥。",  # noqa: RUF001 - as it is written
    "short chinese": "禁止超级用户登录系统",
    "japanese": "スーパーユーザーのリモートログインを無効にする。",
    "korean": "네트워크를 통한 루트 로그인을 비활성화하십시오.",
    "table": "| name | mode |\n|------|------|\n| /etc/shadow | 0640 |\n| /etc/passwd | 0644 |\n" + "+------+------+\n" * 2,
    "box": "┌────────────┬──────┐\n│ /etc/shadow│ 0640 │\n├────────────┼──────┤\n│ /etc/passwd│ 0644 │\n└────────────┴──────┘",
    "numbers": "\n".join(",".join(str(number * column) for column in range(1, 9)) for number in range(40)),
    "code": "for (i = 0; i < n; i++) {\n\tif (a[i] != b[i]) { return -1; }\n}\n" * 2,
    "dense code": 'a={"b":[{"c":1},{"d":[{}]}]};f=(x)=>{return(!x||x["y"]&&(z^=~x))};{[(<>)]}',
    "shell": 'awk -F: \'($2 == "" ) { print $1 }\' /etc/shadow | sort -u >> "$OUT" 2>&1 || exit $?',
    "drawing": r"""
      .--.        /\_/\
     |o_o |      ( o.o )
     |:_/ |       > ^ <
    //   \ \     /|   |\
   (|     | )   (_|   |_)
  /'\_   _/`\
  \___)=(___/
""",
    "banner": "##   ##  ######\n###  ##  ##\n## # ##  ####\n##  ###  ##\n##   ##  ######\n",
    "hex dump": HEX_DUMP,
    "xxd": XXD,
    "certificate in a document": PROSE + "\n" + pem(900),
    "log": "\n".join(
        f"Nov {day} 10:{day:02}:07 host sshd[{day}77]: Failed password for root from 192.0.2.{day} port {day}22 ssh2"
        for day in range(1, 29)
    ),
    "log with colours": "\n".join(f"\x1b[32mINFO\x1b[0m unit {name} has been started" for name in ("ssh", "cron", "nginx")),
    "log within the limit": "connection refused by peer\n" * 10 + PROSE,
    "paths": "\n".join(f"/usr/lib/python3/dist-packages/Crypto{n}/Cipher/Algorithms/Hashes/sha256_module" for n in range(20)),
    "identifiers": "\n".join(f"xccdf_org.ssgproject.content_rule_file_permissions_etc_Shadow{n}_and_backup" for n in range(20)),
    "a hash": BYTES[:32].hex(),
    "checksums": "\n".join(f"{BYTES[at : at + 32].hex()}  file{at}" for at in range(0, 640, 32)),
    "uuids": "\n".join(f"550e8400-e29b-41d4-a716-4466554400{n:02}" for n in range(20)),
    "rules": "Heading\n" + "=" * 70 + "\nText that says something.\n" + "-" * 70 + "\nMore of it, and different.\n",
    "said twice": "Set a mask for new files\nSet a mask for new files",
    "emoji among words": "Back up your keys 🔑 and lock the screen 🔒 before you leave the desk",
    "windows line ends": PROSE.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_people_write_has_no_fault(name: str) -> None:
    assert fault(Document(id="1", content=GOOD[name]), QualityOptions()) is None


BAD = {
    "blanks": (" \n\t " * 50, TOO_SHORT),
    "few characters": ("short", TOO_SHORT),
    "too few ideographs": ("禁止", TOO_SHORT),
    "binary as latin-1": (BYTES.decode("latin-1"), NOT_TEXT),
    "binary with replacements": (BYTES.decode("utf-8", "replace"), NOT_TEXT),
    "utf-16 as bytes": (PROSE.encode("utf-16-le").decode("latin-1"), NOT_TEXT),
    "nothing but nulls": ("\0" * 500, NOT_TEXT),
    "line noise": ("".join(random.Random(1).choices("!@#$%^&*()_+-=[]{};:,.<>/?|~`", k=900)), NOT_TEXT),
    "emoji": ("🔑🔒🔓🗝🛡" * 40, NOT_TEXT),
    "private use": ("\ue000\ue001\ue002 \uf8ff" * 40, NOT_TEXT),
    "lone surrogates": ("\ud800\udc80 \udfff" * 40, NOT_TEXT),
    "base64 in one line": (BASE64, ENCODED),
    "base64 in lines": (wrapped(BASE64, 76), ENCODED),
    "base64 for urls": (base64.urlsafe_b64encode(BYTES).decode(), ENCODED),
    "hexadecimal in one line": (BYTES.hex(), ENCODED),
    "hexadecimal in lines": (wrapped(BYTES.hex(), 60), ENCODED),
    "hexadecimal in lines as long as a hash": (wrapped(BYTES.hex(), 64), ENCODED),
    "upper hexadecimal": (wrapped(BYTES.hex().upper(), 128), ENCODED),
    "certificate": (pem(2000), ENCODED),
    "base64 with a title": ("Decoded below\n" + BASE64, ENCODED),
    "data url": (f"see data:image/png;base64,{BASE64}", ENCODED),
    "an endless word": ("acgtgcatgcta" * 40, ENCODED),
    "a line again and again": ("buy now and save a lot\n" * 30, REPEATED),
    "a line with other blanks": ("".join(" " * (n % 5) + "buy now and save a lot\r\n" for n in range(30)), REPEATED),
    "a long line with other blanks": (
        "".join(
            " " * (number % 5) + "every morning the machine asks each of its many users whether anything strange "
            "has happened during the long and quiet night before they begin with work\r\n"
            for number in range(9)
        ),
        REPEATED,
    ),
    "mostly one line": ("connection refused by peer\n" * 400 + PROSE, REPEATED),
    "a phrase again and again": ("buy now and save a lot " * 30, REPEATED),
    "a syllable again and again": ("哈哈" * 300, REPEATED),
    "one mark": ("=" * 1000, REPEATED),
}


@pytest.mark.parametrize("name", BAD)
def test_what_nobody_learns_from_is_set_aside_with_its_reason(name: str) -> None:
    text, expected = BAD[name]
    assert reason(text) == expected


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("x" * 9 + " y", {"min_chars": 11}, None),
        ("x" * 9 + " y", {"min_chars": 12}, (TOO_SHORT, "11 characters; at least 12")),
        ("word " * 3, {"min_chars": 0, "max_chars": 14}, None),
        ("word " * 300, {"max_chars": 1498}, (TOO_LONG, "1,499 characters; at most 1,498")),
        ("", {}, (TOO_SHORT, "0 characters; at least 8")),
        ("", {"min_chars": 0}, None),
        ("🔑" * 60 + "a" * 40, {"min_text_share": 0.4}, None),
        ("🔑" * 60 + "a" * 40, {}, (NOT_TEXT, "40% of 100 characters are text; at least 50%")),
        (
            "some words come before " + BYTES[:50].hex() + "1 ",
            {},
            (ENCODED, "81% of 125 characters are long runs of base64 or hexadecimal digits; at most 50%"),
        ),
        ("some words come before " + BYTES[:50].hex() + "1 ", {"max_encoded_share": 0.81}, None),
        ("a b c\n" * 10 + "d\n", {"min_chars": 1}, (REPEATED, "copies of it are 86% of 62 characters; at most 50%")),
        ("a b c\n" * 10 + "d\n", {"max_repeated_share": 0.9}, None),
        ("buy now " * 100, {"max_repeated_share": 1}, None),
    ],
)
def test_the_limits_are_those_of_the_options_and_the_detail_names_them(
    text: str, options: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    assert fault(Document(id="1", content=text), QualityOptions(**options)) == expected


@pytest.mark.parametrize("field", ["title", "description", "content", "findings"])
def test_every_field_counts(field: str) -> None:
    fields: dict[str, Any] = {field: (BASE64,) if field == "findings" else BASE64}
    assert fault(Document(id="1", **fields), QualityOptions()) is not None
    long_enough: dict[str, Any] = {field: ("Disable root login",) if field == "findings" else "Disable root login"}
    assert fault(Document(id="1", **long_enough), QualityOptions()) is None


def test_every_answer_counts_by_itself() -> None:
    for bad, expected in ((BASE64, ENCODED), ("no! never\n" * 20, REPEATED), ("\0\1\2" * 20, NOT_TEXT)):
        turns = chat(PROSE + PROSE, "Use keys, not passwords.", PROSE, bad)
        assert fault(Document(id="1", messages=turns), QualityOptions()) is not None
        found = fault(Document(id="1", messages=chat(PROSE * 2, "Use keys.", PROSE * 9, bad)), QualityOptions())
        assert found is not None
        assert found[0] == expected
        assert found[1].startswith("turn 4: ")


def test_answers_may_be_short_and_questions_may_hold_data() -> None:
    assert reason(messages=chat("Is root login over the network safe?", "No.")) == ""
    assert reason(messages=chat(f"What is this? {BASE64[:400]}", PROSE)) == ""
    assert reason(messages=chat("Which digest has the empty file in SHA-256?", BYTES[:32].hex())) == ""
    assert reason(messages=chat("Hi?", "Yes")) == TOO_SHORT
    assert reason(messages=chat("Say nothing at all, please", "")) == ""


def test_the_detail_holds_nothing_of_the_document() -> None:
    for text, _ in BAD.values():
        found = fault(Document(id="1", content=text), QualityOptions())
        assert found is not None
        assert found[1].isascii()
        assert found[1].isprintable()
        assert len(found[1]) < 120


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_is_judged(question: str, answer: str) -> None:
    reason(question, messages=chat(question, answer))


@given(st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=16, max_size=200))
def test_letters_of_any_script_are_text(text: str) -> None:
    assert reason("x" * 16 + text) in ("", REPEATED, ENCODED) or not any(map(str.isalpha, text))


@pytest.mark.parametrize(
    "piece", ["A" * 47 + ".", "A" * 47 + " ", "-" * 7, "!@#$%^", "a\n", "\u0301\u0316", "\x1b[", "0", "/a", "=\n", "\ufdfa"]
)
def test_a_million_hostile_characters_are_judged(piece: str) -> None:
    """What takes more than linear time would run into the suite's time limit."""
    assert reason(piece * (1_000_000 // len(piece))) in REASONS
