"""The licences that base models come under, and what each obliges a distributor of a tuned model to do.

Summaries for a model card, not legal advice; a licence that is not listed here is named as its source states it, and nothing is
claimed about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """A licence: its identifier on the Hugging Face hub, its name, where its text is, its duties in one sentence each."""

    id: str
    name: str
    link: str = ""
    duties: tuple[str, ...] = ()


def _llama(version: str, link: str, built_with: str, prefix: str, *, trains_others: bool) -> Licence:
    improving = (
        "A model that is trained on its output and distributed is bound by the same naming."
        if trains_others
        else "Neither the model nor its output may be used to improve a large language model that is not a Llama 3."
    )
    return Licence(
        id=f"llama{version}",
        name=f"Meta Llama {version} Community License" if version == "3" else f"Llama {version} Community License",
        link=link,
        duties=(
            "It is not an open source licence and not Apache: it is Meta's own agreement.",
            "Whoever distributes this model passes on a copy of the agreement, and a NOTICE file with Meta's attribution line.",
            f'Show "{built_with}" prominently, and begin the name of a distributed model with "{prefix}".',
            "Use follows Meta's Acceptable Use Policy.",
            improving,
            "Companies with more than 700 million monthly users at its release need a licence of their own from Meta.",
        ),
    )


_LICENCES = (
    _llama("3", "https://llama.meta.com/llama3/license/", "Built with Meta Llama 3", "Llama 3", trains_others=False),
    _llama("3.1", "https://www.llama.com/llama3_1/license/", "Built with Llama", "Llama", trains_others=True),
    _llama("3.2", "https://www.llama.com/llama3_2/license/", "Built with Llama", "Llama", trains_others=True),
    _llama("3.3", "https://www.llama.com/llama3_3/license/", "Built with Llama", "Llama", trains_others=True),
    Licence(
        "apache-2.0",
        "Apache License 2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        (
            "Whoever distributes this model passes on the licence text and the base model's copyright and NOTICE statements.",
            "A changed model says that it was changed; this one was, by fine-tuning and quantization.",
            "It grants a patent licence and no right to trademarks.",
        ),
    ),
    Licence(
        "mit",
        "MIT License",
        "https://opensource.org/license/mit",
        ("Whoever distributes this model passes on the copyright statement and the licence text of the base model.",),
    ),
)
LICENCES = {licence.id: licence for licence in _LICENCES}

_KNOWN_MODELS = (
    (re.compile(r"^meta-llama/Meta-Llama-3-(8|70)B(-Instruct)?$", re.IGNORECASE), "llama3"),
    (re.compile(r"^mistralai/Mixtral-8x(7|22)B(-Instruct)?-v0\.1$", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"^(HuggingFaceTB/|embedded:)SmolLM2-(135M|360M|1\.7B)(-Instruct)?$", re.IGNORECASE), "apache-2.0"),
)


def licence_of(reference: str, stated: str) -> Licence:
    """Return the licence of a base model: what is known of that very model goes before what its source or the user stated."""
    known = next((found for pattern, found in _KNOWN_MODELS if pattern.match(reference)), "")
    identifier = known or stated.strip() or UNKNOWN
    if identifier.lower() in LICENCES:
        return LICENCES[identifier.lower()]
    if identifier.lower() == UNKNOWN:
        return Licence(
            UNKNOWN, UNKNOWN, duties=("Nobody stated a licence: find out under which terms the base model may be used.",)
        )
    return Licence(
        identifier, identifier, duties=("Read its text before distributing this model; nothing is summarized here.",)
    )
