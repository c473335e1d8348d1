"""README.md of a package: the model card, written from the manifest alone.

It says what is recorded and says plainly what is not. Nothing here reads a file or the clock, so the same manifest gives the
same card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from sysscan_models.packaging.licences import Licence, licence_of
from sysscan_models.packaging.manifest import CARD, MANIFEST, RoleEntry
from sysscan_models.roles import ModelRole

NOT_RECORDED = "not recorded"


def model_card(title: str, entries: Mapping[str, RoleEntry], roles: Mapping[str, ModelRole]) -> str:
    """Return the card of a package, Markdown with YAML front matter."""
    sections = [
        _front_matter(entries),
        f"# {_line(title)}",
        "Models of Sys-Scan-Graph, fine-tuned and quantized for llama.cpp. They run in process and offline. "
        f"`{MANIFEST}` records how each was made; `sysscan-models verify .` checks every file against it.",
        _overview(entries),
        *(_role_section(name, entry) for name, entry in entries.items()),
        _limitations(entries),
        "## Loading the models",
        "With `llama-cpp-python`, from this folder:",
        *(_llama_cpp_snippet(name, entry, roles[name]) for name, entry in entries.items()),
        "A base model's chat template may have no system turn and refuse one. Put the system prompt at the start of the user's "
        "turn then, with an empty line after it: that is how such a model was trained.",
        "With this library, which checks the files first and sends the same prompts as training did:",
        _library_snippet(next(iter(entries))),
        _licences(entries),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(entries: Mapping[str, RoleEntry]) -> str:
    licences = list(dict.fromkeys(_licence(entry).id for entry in entries.values()))
    bases = dict.fromkeys(entry.base.reference for entry in entries.values() if entry.base)
    known = [reference for reference in bases if re.fullmatch(r"[\w.-]+/[\w.-]+", reference)]
    if len(licences) == 1:
        facts: dict[str, object] = {"license": licences[0]}
    else:
        facts = {"license": "other", "license_name": "-and-".join(licences), "license_link": CARD}
    facts |= {"base_model": known} if known else {}
    facts |= {
        "language": ["en"],
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "security", "sys-scan-graph"],
    }
    return "\n".join(["---", *(f"{key}: {_yaml(value)}" for key, value in facts.items()), "---"])


def _yaml(value: object) -> str:
    """JSON is YAML; only words that need no quotes go without them."""
    return value if isinstance(value, str) and re.fullmatch(r"[a-z][\w.+-]*", value) else json.dumps(value)


def _overview(entries: Mapping[str, RoleEntry]) -> str:
    rows = [
        (
            name,
            _line(entry.purpose),
            f"`{entry.file}`" + (f" and {len(entry.files) - 1} more" if len(entry.files) > 1 else ""),
            entry.quantization.type,
            _bytes(sum(record.size for record in entry.files.values())),
            _count(entry.quantization.parameters),
        )
        for name, entry in entries.items()
    ]
    return _table(("Role", "What it is for", "File", "Type", "Size", "Parameters"), rows)


def _role_section(name: str, entry: RoleEntry) -> str:
    parts = [f"## {name.capitalize()}", f"{_line(entry.purpose)}."]
    if entry.provenance == "unknown":
        parts.append(
            "**Its provenance is unknown**: the file came without a record, so base model, licence, training data and training "
            "are not known to this package."
        )
    elif entry.provenance == "partly recorded":
        parts.append(
            "**Its provenance is only partly known**: it was packaged from its GGUF file and that file's record, without the "
            "records of what was trained, on what data and from which base model."
        )
    parts.append(_table(("", ""), [*_base_rows(entry), *_data_rows(entry), *_training_rows(entry), *_quantization_rows(entry)]))
    notes = [*(entry.base.notes if entry.base else ()), *entry.quantization.notes]
    if notes:
        parts.append("Notes: " + "; ".join(_line(note) for note in notes) + ".")
    parts.append(_evaluation(entry))
    return "\n\n".join(parts)


def _base_rows(entry: RoleEntry) -> list[tuple[str, str]]:
    base = entry.base
    if not base:
        return [("Base model", NOT_RECORDED)]
    return [
        ("Base model", f"`{_line(base.reference)}`" + (f", revision `{_line(base.revision)}`" if base.revision else "")),
        ("Licence of the base model", _licence(entry).name),
    ]


def _data_rows(entry: RoleEntry) -> list[tuple[str, str]]:
    data = entry.data
    if not data:
        return [("Training data", NOT_RECORDED)]
    return [
        ("Examples", _join(f"{split} {data.counts[split]:,}" for split in _ordered(data.counts))),
        ("Kinds of examples", _join(f"{kind} {count:,}" for kind, count in sorted(data.kinds.items()))),
        ("Dataset", f"SHA-256 `{data.dataset_digest}`" if data.dataset_digest else NOT_RECORDED),
    ]


def _ordered(counts: Mapping[str, int]) -> list[str]:
    return sorted(
        counts, key=lambda split: (["train", "valid", "test"].index(split) if split in ("train", "valid", "test") else 3, split)
    )


def _training_rows(entry: RoleEntry) -> list[tuple[str, str]]:
    training = entry.training
    if not training:
        return [("Training", NOT_RECORDED)]
    method = "LoRA or another adapter, merged into the base model" if training.kind == "adapter" else "full fine-tuning"
    options = _join(f"{key} {_value(value)}" for key, value in training.options.items() if not isinstance(value, (dict, list)))
    return [
        ("Method", method),
        ("Options", options),
        ("Optimizer steps", f"{training.steps:,}"),
        ("Tokens", f"{training.train_tokens:,} seen, {training.supervised_tokens:,} of them supervised"),
        ("Training loss", _losses(training.first_train_loss, training.final_train_loss)),
        ("Validation loss", _losses(training.first_valid_loss, training.final_valid_loss)),
    ]


def _quantization_rows(entry: RoleEntry) -> list[tuple[str, str]]:
    model = entry.quantization
    shares = {kind: weights / model.parameters for kind, weights in model.weights_by_type.items()} if model.parameters else {}
    return [
        ("Architecture", model.architecture or NOT_RECORDED),
        ("Quantization", model.type),
        (
            "Weights by type",
            _join(f"{kind} {share:.1%}" for kind, share in sorted(shares.items(), key=lambda item: (-item[1], item[0]))),
        ),
        ("Context length", f"{entry.context_length:,} tokens, as it is served"),
    ]


def _evaluation(entry: RoleEntry) -> str:
    if entry.evaluation.state == "not evaluated":
        return "Evaluation: **not evaluated.** Nothing is known about how well it answers or what quantization cost."
    lines = []
    for name, result in entry.evaluation.results.items():
        gates = _join(f"{gate} {'passed' if passed else '**failed**'}" for gate, passed in sorted(result.gates.items()))
        figures = [
            (_line(key), _value(value)) for key, value in sorted(result.figures.items()) if not isinstance(value, (dict, list))
        ]
        lines += [
            f"Evaluation by `{_line(name)}`; gates: {gates}.",
            *([_table(("Figure", "Value"), figures)] if figures else []),
        ]
    return "\n\n".join(lines)


def _limitations(entries: Mapping[str, RoleEntry]) -> str:
    points = [
        "They advise an analyst and decide nothing: severity, technique and control must be checked against the evidence.",
        "They can state what the evidence does not support, and a finding may hold text that an attacker wrote.",
        "They know nothing after their training data, and nothing about a host but what the finding says.",
        "Quantization loses some precision.",
    ]
    unproven = [name for name, entry in entries.items() if entry.evaluation.state == "not evaluated"]
    if unproven:
        points.append(f"No evaluation was run for: {', '.join(unproven)}.")
    return "## Limitations\n\n" + "\n".join(f"- {point}" for point in points)


def _llama_cpp_snippet(name: str, entry: RoleEntry, role: ModelRole) -> str:
    sampling = role.sampling
    return f'''```python
from llama_cpp import Llama

# Load {name.capitalize()} model
{name} = Llama(
    model_path="{entry.file}",
    n_ctx={entry.context_length},
    n_threads=8
)

{name.upper()}_SYSTEM_PROMPT = {json.dumps(entry.system_prompt, ensure_ascii=False)}

answer = {name}.create_chat_completion(
    messages=[
        {{"role": "system", "content": {name.upper()}_SYSTEM_PROMPT}},
        {{"role": "user", "content": "SUID binary in /tmp\\n\\npath: /tmp/.x/bash\\nowner: root"}},
    ],
    temperature={sampling.temperature},
    max_tokens={sampling.max_tokens},
)
print(answer["choices"][0]["message"]["content"])
```'''


def _library_snippet(name: str) -> str:
    return f'''```python
from sysscan_models import plugin_manager
from sysscan_models.documents import Document
from sysscan_models.interfaces import GenerationRequest
from sysscan_models.packaging import load_package
from sysscan_models.prompts import conversation

model = load_package(".", check="hash")["{name}"]
finding = Document(id="1", title="SUID binary in /tmp", description="path: /tmp/.x/bash\\nowner: root")
backend = plugin_manager().get("backends", "llama_cpp")()
with backend.open(model) as session:
    for event in session.generate([GenerationRequest("1", tuple(conversation(model.role, finding)))]):
        print(event.text, end="", flush=True)
```

or on the command line: `sysscan-models ask {name} "SUID binary in /tmp" --package .`'''


def _licences(entries: Mapping[str, RoleEntry]) -> str:
    sections = ["## Licences", "A tuned model stays under the licence of its base model."]
    for licence in dict.fromkeys(map(_licence, entries.values())):
        names = ", ".join(name for name, entry in entries.items() if _licence(entry) == licence)
        heading = f"**{names}**: {licence.name}" + (f" (`{licence.id}`, {licence.link})" if licence.link else "")
        sections.append("\n".join([heading, "", *(f"- {duty}" for duty in licence.duties)]))
    return "\n\n".join(sections)


def _licence(entry: RoleEntry) -> Licence:
    return licence_of(entry.base.reference, entry.base.licence) if entry.base else licence_of("", "")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in cells[0]) + " |", *lines[1:]])


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def _join(parts: Iterable[str]) -> str:
    return ", ".join(parts) or NOT_RECORDED


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else _line(str(value))


def _losses(*values: float | None) -> str:
    known = [value for value in values if value is not None]
    return " → ".join("?" if value is None else f"{value:.3f}" for value in values) if known else NOT_RECORDED


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _count(number: int) -> str:
    if not number:
        return NOT_RECORDED
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"
