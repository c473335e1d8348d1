"""Reports to make data pages of, written by hand: an ordinary one, an empty one, and one in which every text is hostile."""

from __future__ import annotations

from typing import Any

HOSTILE = (
    "</title><script>document.title='OWNED'</script>",
    "<img src=x onerror=\"document.title='OWNED'\">",
    '"><svg onload=alert(1)>',
    "</style><style>body{display:none}</style>",
    "<link rel=stylesheet href=http://127.0.0.1:9/y>",
    "javascript:alert(1)",
    "\u202etxe.exe\u2066 \x1b[31mred\x1b[0m \x07",
    "W" * 5000,
    "{{ 7 * 7 }} %s %(x)s ${x} {0}",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645 123 (abc)",
    "line one\nline two\u2028line three",
    "https://example.com/a?b=c&d=<e>",
)


def role(train: int = 90, valid: int = 5, test: int = 5) -> dict[str, Any]:
    total = train + valid + test
    scores = [0] * 20
    scores[1], scores[19] = total // 10, total - total // 10
    return {
        "train": train,
        "valid": valid,
        "test": test,
        "kinds": {"answer": total - total // 4, "text": total // 4},
        "characters": 700 * total,
        "lengths": {"64": total // 4, "512": total // 4, "2048": total - 2 * (total // 4)},
        "scores": scores,
    }


def sample(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"d{number}",
        "source": f"part.jsonl:{number}",
        "title": f"Document number {number}",
        "role": "specialist",
        "score": 0.83,
        "reasons": ["sudo", "umask"],
        **fields,
    }


def ordinary(**changes: Any) -> dict[str, Any]:
    """Return the report of an archive in which everything happened once at least."""
    routing = {
        name: {
            "documents": 150,
            "terms": {f"{name} word {n}": 40 - n for n in range(15)},
            "samples": [sample(n) for n in range(6)],
        }
        for name in ("generalist", "specialist")
    }
    return {
        "archive": "massive_datasets.tar.gz",
        "archive_sha256": "3f" * 32,
        "seed": 17,
        "read": 330,
        "kept": 200,
        "duplicates": 60,
        "duplicate_examples": [{"kept": "part.jsonl:1", "dropped": "part.jsonl:7"}],
        "near_copies": 30,
        "near_copy_examples": [{"kept": "part.jsonl:2", "dropped": "part.jsonl:9", "similarity": 0.93}],
        "other_role": 2,
        "held_out": {"benchmark.jsonl": 8},
        "redacted": 12,
        "redactions": {"EMAIL": 9, "HF_TOKEN": 4},
        "set_aside": {
            "too short": {"count": 20, "examples": [{"source": "part.jsonl:3", "detail": "4 characters, from [EMAIL]"}]},
            "symbolic link": {"count": 1, "examples": [{"source": "latest"}]},
        },
        "roles": {"specialist": role(), "generalist": role()},
        "role_not_configured": {"auditor": 9},
        "routing": {**routing, "auditor": {"documents": 9, "terms": {"label: role": 9}, "samples": []}},
        "review": 20,
        "review_below": 0.2,
        "review_samples": [sample(n, score=0.04) for n in range(6)],
        "notes": [],
        **changes,
    }


def empty() -> dict[str, Any]:
    """Return the report of an archive without any document."""
    none = {"specialist": role(0, 0, 0), "generalist": role(0, 0, 0)}
    for one in none.values():
        one.update(kinds={}, lengths={})
    return ordinary(
        read=0, kept=0, duplicates=0, duplicate_examples=[], near_copies=0, near_copy_examples=[], other_role=0, held_out={},
        redacted=0, redactions={}, set_aside={}, roles=none, role_not_configured={}, routing={}, review=0,
        review_below=0.2, review_samples=[],
    )  # fmt: skip


def hostile() -> dict[str, Any]:
    """Return a report in which every text that data can choose is hostile, and there is much of everything."""
    names = {text[:300]: role() for text in HOSTILE}
    samples = [sample(n, title=text, source=text, id=text, role=text, reasons=list(HOSTILE)) for n, text in enumerate(HOSTILE)]
    reasons = {
        f"{n} {text}": {"count": 1 + n % 7, "examples": [{"source": text, "detail": text}] * 5}
        for n, text in enumerate(HOSTILE * 17)
    }
    return ordinary(
        archive=HOSTILE[0] + HOSTILE[6],
        kept=100 * len(names),
        duplicate_examples=[{"kept": text, "dropped": text} for text in HOSTILE],
        near_copy_examples=[{"kept": text, "dropped": text, "similarity": 0.9} for text in HOSTILE],
        held_out=dict.fromkeys(HOSTILE, 3),
        redactions={**dict.fromkeys(HOSTILE, 2), "EMAIL": 1},
        set_aside=reasons,
        roles=names,
        role_not_configured=dict.fromkeys(HOSTILE, 1),
        routing={text: {"documents": 5, "terms": dict.fromkeys(HOSTILE, 3), "samples": samples} for text in names},
        review_samples=samples,
        notes=list(HOSTILE),
    )
