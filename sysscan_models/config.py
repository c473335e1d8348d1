"""The configuration of a run: TOML in, frozen plugin objects out. Unknown keys are refused and all faults are told at once.

A table that chooses a backend names it (`name = "lora"`); its other keys are that backend's own options. Relative paths start
from the folder of the file. There is no inheritance between files and nothing is evaluated.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sysscan_models.errors import ConfigError, UserError, unknown_name
from sysscan_models.interfaces import Evaluator, Options, Quantizer, Reader, Router, Trainer
from sysscan_models.plugins import Registry, plugin_manager
from sysscan_models.roles import ModelRole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "sysscan-models.toml"
"""Where every command looks for its configuration, in the current folder."""
DEVICES = "sysscan_models.devices"
"""Entry point group of devices that other packages offer: name -> what opens it."""
_DEVICES = ("auto", "cpu", "cuda", "tpu")


def _usable_path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"expected a path; got {text!r}")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text!r} names the home of a user whom this machine does not know; give the whole path") from None
    return text


PathText = Annotated[str, AfterValidator(_usable_path)]
"""A path as it is written in the configuration; it need not exist."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class QualityOptions(_Table):
    """What a document must be like to be learnt from; others are set aside with the reason."""

    min_chars: int = Field(8, ge=0)
    """Characters that a document must say at least."""
    max_chars: int = Field(1_000_000, gt=0)
    """Characters that a document may say at most."""
    min_text_share: float = Field(0.5, ge=0, le=1)
    """Share of the characters that must be letters, digits, blanks or common punctuation of any script."""
    max_encoded_share: float = Field(0.5, ge=0, le=1)
    """Share of the characters that long runs of base64 or hexadecimal digits may take."""
    max_repeated_share: float = Field(0.5, ge=0, le=1)
    """Share of the characters that copies of one line may take."""


class DataOptions(_Table):
    """What is read and how it is divided."""

    archive: PathText = "massive_datasets.tar.gz"
    """Tar archive (also .gz, .bz2, .xz), folder, .json or .jsonl file; `sample` is the corpus that comes with the package."""
    readers: tuple[str, ...] = ("scan-report", "synthetic", "json", "jsonl")
    """Names of the readers that are asked, in this order, whether they read a member."""
    valid_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Share of the documents (or families) held out to watch training."""
    test_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Share of the documents (or families) that training never sees."""
    quality: QualityOptions = QualityOptions()
    """Limits of what is learnt from, a table."""
    family_key: str = Field("family", min_length=1)
    """Key of a record whose value names its origin: records of equal origin are never divided between splits."""
    near_copies: float = Field(0.8, gt=0, le=1)
    """Estimated Jaccard similarity of two documents' word sequences from which only one of them is kept; 1 for exact copies."""
    kept_together: float = Field(0.5, gt=0, le=1)
    """The same, from which two documents come into the same split and the same role; at most `near_copies`."""
    held_out: tuple[PathText, ...] = ()
    """Benchmarks and other held-out data (as `archive`): a document that shares a sequence of words with them is set aside."""
    held_out_words: int = Field(13, ge=3, le=100)
    """Length of such a sequence; a shorter document is compared whole."""
    redact_public_ips: bool = False
    """Replace public IP addresses too; private, loopback and documentation addresses always stay."""
    workers: int = Field(0, ge=0)
    """Processes that prepare documents beside the one that reads the archive; 0 for as many as there are cores."""
    max_member_bytes: int = Field(512 * 2**20, gt=0)
    """Larger members are set aside."""
    max_record_bytes: int = Field(16 * 2**20, gt=0)
    """Larger records are set aside."""
    max_total_bytes: int = Field(1 << 40, gt=0)
    """Unpacked size at which the archive is refused."""
    max_members: int = Field(20_000_000, gt=0)
    """Number of members at which the archive is refused."""
    max_ratio: int = Field(1000, gt=1)
    """Unpacked to packed size at which the archive is refused as a bomb (beyond the first 64 MiB)."""

    @model_validator(mode="after")
    def _together(self) -> DataOptions:
        if self.kept_together > self.near_copies:
            raise ValueError(
                f"kept_together is {self.kept_together}, above near_copies, {self.near_copies}: what is so alike that only "
                f"one is kept would not be kept together"
            )
        return self


class PackageOptions(_Table):
    """What the package says about itself."""

    title: str = "Sys-Scan-Graph models"
    """Heading of the model card."""
    sample_findings: int = Field(3, ge=0)
    """Findings of the sample report that `run` asks the base and the tuned models about; 0 for none."""


class RoleConfig(_Table):
    """One role of a run: where its base comes from, who trains it and who quantizes it."""

    role: ModelRole
    base: str
    revision: str = ""
    licence: str = ""
    trainer: Trainer
    quantizer: Quantizer

    model_config = ConfigDict(arbitrary_types_allowed=True)


class RunConfig(_Table):
    """A resolved configuration: everything is chosen and checked."""

    models_dir: Path
    seed: int
    device: str
    offline: bool
    data: DataOptions
    router: Router
    readers: tuple[Reader, ...]
    roles: dict[str, RoleConfig]
    evaluators: tuple[Evaluator, ...]
    package: PackageOptions
    folder: Path
    """Folder that relative paths of the file start from."""

    def role(self, name: str) -> RoleConfig:
        """Return one role's part; raise UserError with the valid names."""
        if name not in self.roles:
            raise UserError(unknown_name("role", name, self.roles))
        return self.roles[name]

    def path(self, text: str) -> Path:
        """Return a path of the configuration, relative to its file's folder."""
        return self.folder / Path(text).expanduser()

    def held_out(self) -> tuple[Path, ...]:
        """Return the held-out data that documents must not repeat."""
        return tuple(map(self.path, self.data.held_out))

    def table(self) -> dict[str, Any]:
        """Return the resolved configuration as TOML tables, every default filled in."""
        return {
            "models_dir": str(self.models_dir),
            "seed": self.seed,
            "device": self.device,
            "offline": self.offline,
            "data": self.data.model_dump(mode="json"),
            "router": _options_table(self.router),
            "readers": {reader.name: reader.model_dump(mode="json", exclude_none=True) for reader in self.readers},
            "package": self.package.model_dump(mode="json"),
            "evaluators": [_options_table(evaluator) for evaluator in self.evaluators],
            "roles": {
                name: {
                    **part.model_dump(mode="json", include={"base", "revision", "licence"}),
                    "trainer": _options_table(part.trainer),
                    "quantizer": _options_table(part.quantizer),
                }
                for name, part in self.roles.items()
            },
        }


class _RoleTables(_Table):
    base: PathText
    """Base model: a folder, `embedded:NAME`, or a hub id, which asks the network."""
    revision: str = ""
    """Branch, tag or commit of a hub model."""
    licence: str = ""
    """Licence of the base model where its source does not state it."""
    trainer: dict[str, Any]
    """`name` of the trainer and its options."""
    quantizer: dict[str, Any] = {"name": "gguf"}
    """`name` of the quantizer and its options."""


def device_choices() -> str:
    """Return what a device may be called, those of installed packages last."""
    return ", ".join([*_DEVICES, "cuda:N", *sorted(point.name for point in metadata.entry_points(group=DEVICES))])


def _device(name: str) -> str:
    kind, _, number = name.partition(":")
    ours = name in _DEVICES or (kind == "cuda" and number.isdecimal())
    if not ours and kind not in {point.name for point in metadata.entry_points(group=DEVICES)}:
        raise ValueError(f"unknown device {name!r}; valid choices: {device_choices()}")
    return name


class _Tables(_Table):
    models_dir: PathText = "models"
    """Folder of all results."""
    seed: int = Field(17, ge=0, lt=2**31)
    """Seed of everything that is drawn by chance."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `tpu`, or one that another package offers (entry points `sysscan_models.devices`)."""
    offline: bool = False
    """Forbid the network altogether."""
    data: DataOptions = DataOptions()
    router: dict[str, Any] = {"name": "linear"}
    """`name` of the router and its options."""
    readers: dict[str, dict[str, Any]] = {}
    """Options of readers, a table each."""
    roles: dict[str, _RoleTables] = Field(min_length=1)
    """The roles to train, a table each."""
    evaluators: list[dict[str, Any]] = []
    """`name` and options of each evaluator."""
    package: PackageOptions = PackageOptions()


def recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("sysscan_models") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """Return a shipped recipe; raise UserError with the valid names."""
    if name not in recipes():
        raise UserError(unknown_name("recipe", name, recipes()))
    return (resources.files("sysscan_models") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def load_config(
    path: Path | None = None, *, recipe: str = "", overrides: Sequence[str] = (), registry: Registry | None = None
) -> RunConfig:
    """Read a configuration file, or a shipped recipe, apply `KEY.KEY=VALUE` overrides, and resolve every backend.

    Raises ConfigError with all faults at once, and UserError when there is no such file or recipe.
    """
    if recipe:
        text, source, folder = recipe_text(recipe), f"recipe {recipe!r}", Path.cwd()
    else:
        path = Path(path or FILE_NAME)
        source, folder = str(path), path.resolve().parent
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        except OSError as error:
            raise UserError(
                f"no configuration at {path} ({error.strerror}). `sysscan-models init` writes one; "
                f"`--recipe NAME` uses a shipped one: {', '.join(recipes())}"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError([f"it is not UTF-8 text ({error})"], source) from error
    return parse_config(text, source=source, folder=folder, overrides=overrides, registry=registry)


def parse_config(
    text: str, *, source: str, folder: Path, overrides: Sequence[str] = (), registry: Registry | None = None
) -> RunConfig:
    """Resolve configuration text; see `load_config`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"it is not valid TOML: {error}"], source) from error
    for override in overrides:
        _apply_override(raw, override)
    resolver = _Resolver(registry or plugin_manager(), _line_numbers(text))
    tables = resolver.structure(raw)
    config = resolver.resolve(tables, folder) if tables else None
    if resolver.faults or config is None:
        raise ConfigError(resolver.faults, source)
    return config


def plain_config(overrides: Sequence[str]) -> RunConfig:
    """Return every default but what `--set` changes, for what needs no models: both built-in roles, nothing to train."""
    return parse_config(_PLAIN, source="--set", folder=Path.cwd(), overrides=overrides)


_PLAIN = """
roles.specialist = { base = "none", trainer.name = "full_finetune" }
roles.generalist = { base = "none", trainer.name = "lora" }
"""


def json_schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return the JSON schema of the configuration, with the options of every registered backend."""
    registry = registry or plugin_manager()
    schema = _Tables.model_json_schema()
    role = schema["$defs"]["_RoleTables"]["properties"]
    role["trainer"] = _choice_schema(registry, "trainers")
    role["quantizer"] = _choice_schema(registry, "quantizers")
    properties = schema["properties"]
    properties["router"] = _choice_schema(registry, "routers")
    properties["evaluators"] = {"type": "array", "items": _choice_schema(registry, "evaluators")}
    readers = {name: registry.get("readers", name).model_json_schema() for name in registry.names("readers")}
    properties["readers"] = {"type": "object", "properties": readers, "additionalProperties": False}
    properties["roles"]["propertyNames"] = {"enum": registry.names("roles")}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sysscan-models configuration", **schema}


def _choice_schema(registry: Registry, kind: str) -> dict[str, Any]:
    choices = []
    for name in registry.names(kind):
        schema = registry.get(kind, name).model_json_schema()
        schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["name", *schema.get("required", [])]
        choices.append(schema)
    return {"oneOf": choices} if choices else {"not": {}}


class _Resolver:
    """Turns tables into options and collects every fault on the way."""

    def __init__(self, registry: Registry, lines: Mapping[tuple[str, ...], int]) -> None:
        self.registry, self.lines, self.faults = registry, lines, list[str]()

    def structure(self, raw: dict[str, Any]) -> _Tables | None:
        try:
            return _Tables.model_validate(raw)
        except ValidationError as error:
            self._tell(error, (), _Tables)
            return self._without_faults(raw, error)

    def _without_faults(self, raw: dict[str, Any], error: ValidationError) -> _Tables | None:
        """Drop what is wrong and go on, so that the faults of the backends are told in the same message."""
        for fault in error.errors():
            *parents, last = fault["loc"]
            if fault["type"] == "missing" and last != "base":
                *parents, last = parents or [last]  # without its trainer there is no role
            table: Any = raw
            for parent in parents:
                table = _item(table, parent)
            if isinstance(table, dict) and parents[:1] == ["roles"] and last == "base":
                table[last] = "wrong or missing"  # nothing is fetched, and the role's other faults are told
            elif isinstance(table, dict):
                table.pop(last, None)
        try:
            return _Tables.model_validate(raw)
        except ValidationError:
            return None

    def resolve(self, tables: _Tables, folder: Path) -> RunConfig | None:
        router = self.choose("routers", tables.router, ("router",))
        readers = [
            self.choose("readers", {"name": name, **tables.readers.get(name, {})}, ("readers", name))
            for name in tables.data.readers
        ]
        for name in tables.readers.keys() - set(tables.data.readers):
            self.fault(("readers", name), unknown_name("reader", name, tables.data.readers))
        evaluators = [self.choose("evaluators", table, ("evaluators",)) for table in tables.evaluators]
        roles = {name: self.role(name, part) for name, part in tables.roles.items()}
        if tables.data.valid_fraction + tables.data.test_fraction >= 0.9:
            self.fault(("data",), "valid_fraction and test_fraction leave less than a tenth of the data for training")
        if self.faults:
            return None
        return RunConfig(
            models_dir=folder / Path(tables.models_dir).expanduser(),
            seed=tables.seed,
            device=tables.device,
            offline=tables.offline,
            data=tables.data,
            router=cast(Router, router),
            readers=cast("tuple[Reader, ...]", tuple(readers)),
            roles={name: part for name, part in roles.items() if part is not None},
            evaluators=cast("tuple[Evaluator, ...]", tuple(evaluators)),
            package=tables.package,
            folder=folder,
        )

    def role(self, name: str, part: _RoleTables) -> RoleConfig | None:
        where = ("roles", name)
        trainer = self.choose("trainers", part.trainer, (*where, "trainer"))
        quantizer = self.choose("quantizers", part.quantizer, (*where, "quantizer"))
        try:
            role = self.registry.get("roles", name)
        except UserError as error:
            self.fault(where, str(error))
            return None
        if not isinstance(trainer, Trainer) or not isinstance(quantizer, Quantizer):
            return None
        return RoleConfig.model_construct(
            role=role, base=part.base, revision=part.revision, licence=part.licence, trainer=trainer, quantizer=quantizer
        )

    def choose(self, kind: str, table: Mapping[str, Any], where: tuple[str, ...]) -> Options | None:
        """Return the options object that a table names, or None after noting what is wrong."""
        options = dict(table)
        name = options.pop("name", None)
        if not isinstance(name, str):
            choices = ", ".join(self.registry.names(kind)) or "none are registered"
            self.fault(where, f"`name` of the {kind.removesuffix('s')} is missing. Valid choices: {choices}")
            return None
        try:
            backend: type[Options] = self.registry.get(kind, name)
        except UserError as error:
            self.fault((*where, "name"), str(error))
            return None
        try:
            return backend.model_validate(options)
        except ValidationError as error:
            self._tell(error, where, backend)
            return None

    def fault(self, where: tuple[str, ...], message: str) -> None:
        line = next((self.lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in self.lines), None)
        place = ".".join(where)
        self.faults.append(f"line {line}: {place}: {message}" if line else f"{place}: {message}" if place else message)

    def _tell(self, error: ValidationError, where: tuple[str, ...], model: type[BaseModel]) -> None:
        for fault in error.errors():
            place = (*where, *(str(part) for part in fault["loc"]))
            self.fault(place, in_words(fault, model))


def in_words(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return what is wrong, of one of pydantic's faults (an item of `ValidationError.errors()`), for a user of TOML."""
    if fault["type"] == "extra_forbidden":
        return unknown_name("key", str(fault["loc"][-1]), _fields_at(model, fault["loc"][:-1]))
    if fault["type"] == "missing":
        return "it is missing and has no default"
    if fault["type"] in ("dict_type", "model_type"):
        return f"expected a table; got {fault['input']!r}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return message if fault["type"] == "value_error" else f"{message}; got {fault['input']!r}"


def _fields_at(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """Return the valid keys at a place of the structure, following nested models and dicts of models."""
    current: Any = model
    for part in loc:
        info = current.model_fields.get(str(part)) if isinstance(current, type) and issubclass(current, BaseModel) else None
        annotation = info.annotation if info else None
        if annotation is not None:
            current = annotation
        else:
            arguments = getattr(current, "__args__", ())
            current = arguments[-1] if arguments else None
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _item(table: Any, key: str | int) -> Any:
    if isinstance(table, dict):
        return table.get(key)
    return table[key] if isinstance(table, list) and isinstance(key, int) and key < len(table) else None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override!r}: expected KEY.KEY=VALUE, such as roles.specialist.trainer.max_steps=10")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    *parents, last = key.strip().split(".")
    table: Any = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override!r}: {parent!r} is not a table of the configuration")
    table[last] = parsed


_HEADER = re.compile(r"^\s*\[{1,2}\s*([^\[\]#]+?)\s*\]{1,2}")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


def _line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """Map the path of every table and key to its line: tomllib does not tell, and an error without a line is a search."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _split_key(header[1])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_split_key(key[1])), number)
    return lines


def _split_key(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _options_table(options: Options) -> dict[str, Any]:
    return {"name": options.name, **options.model_dump(mode="json", exclude_none=True)}
