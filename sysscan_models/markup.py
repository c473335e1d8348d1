"""HTML made so that an escape cannot be forgotten: elements escape every text that is not markup itself.

What is invisible or steers (changes of direction, control characters) is spelt out, see `spelling`. A page has its style
inside, loads nothing and runs nothing; should an escape ever fail, its own Content-Security-Policy forbids every script,
request, form and style but this one stylesheet, by its hash. Nothing here knows what a page tells.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib import resources

from sysscan_models.spelling import visible


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


NOTHING = Html("")
_VOID = frozenset({"meta", "br"})


def escaped(text: str) -> Html:
    """Return text as markup; markup stays as it is."""
    return text if isinstance(text, Html) else Html(escape(visible(text)))


def joined(parts: Iterable[str], between: str = "\n") -> Html:
    """Return the parts one after the other, each escaped that is no markup."""
    return Html(between.join(map(escaped, parts)))


def element(name: str, /, *content: str, **attributes: str | float | bool) -> Html:
    """Return an element. `class_` and `for_` lose their line, other lines become hyphens; True gives a bare attribute.

    `viewBox` and the like keep their capitals, as SVG asks for them.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{joined(content, '')}</{name}>")


def _attribute(name: str, value: str | float | bool) -> str:
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{escape(visible(value)) if isinstance(value, str) else f"{value:.6g}"}"'


def page(title: str, body: Html, css: str) -> str:
    """Return a whole page in English. `css` is the look of this page; the look that all share comes before it."""
    style = f"{shared_look()}\n{css}"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = joined(
        [
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            Html('<meta name="color-scheme" content="light dark">'),
            Html('<meta name="referrer" content="no-referrer">'),
            Html('<meta name="generator" content="sysscan-models">'),
            element("title", title),
            Html(f"<style>{style}</style>"),
        ]
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def shared_look() -> str:
    """Return the stylesheet that all pages begin with: colours for light, dark and paper, text, cards, tables, figures."""
    return stylesheet("sysscan_models", "markup.css")


def stylesheet(package: str, name: str) -> str:
    """Return a stylesheet that comes with a package."""
    return (resources.files(package) / name).read_text(encoding="utf-8")
