"""The quantizer `gguf`: a model in Hugging Face layout becomes one GGUF model of any llama.cpp file type.

Options and hook only; the way from one to the other begins in conversion.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from sysscan_models.artifacts import BaseCheckpoint, MergedCheckpoint, QuantizedModel, sha256_file
from sysscan_models.errors import MissingExtra, UserError, unknown_name
from sysscan_models.hookspecs import hookimpl
from sysscan_models.interfaces import Quantizer
from sysscan_models.progress import Progress

if TYPE_CHECKING:
    from sysscan_models.roles import ModelRole

UNQUANTIZED = ("F32", "F16", "BF16")
NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
"""Types that llama.cpp refuses to make, or makes useless, without an importance matrix."""
TYPES = (
    *UNQUANTIZED,
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q1_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_M", "TQ2_0", "TQ1_0", "MXFP4_MOE"),
    *NEED_IMATRIX,
)
"""llama.cpp's file types, by its names."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class GGUF(Quantizer):
    """Converts with a streaming converter of our own, quantizes with llama.cpp, reads the result back."""

    name: ClassVar[str] = "gguf"

    type: str = "Q4_K_M"
    """File type by llama.cpp's name, such as Q4_K_M, Q8_0, BF16."""
    max_shard_size: str = ""
    """Largest file, such as 4GB or 500MiB (bytes with a unit); empty for one file however large."""
    imatrix: Path | None = None
    """Importance matrix that llama-imatrix wrote; some types of 3 bits and less need one."""
    threads: int = Field(default=0, ge=0, json_schema_extra={"affects_result": False})
    """Threads that llama.cpp quantizes with; 0 for all cores."""

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if value.upper() not in TYPES:
            raise ValueError(unknown_name("GGUF type", value.upper(), TYPES))
        return value.upper()

    @field_validator("max_shard_size")
    @classmethod
    def _readable_size(cls, value: str) -> str:
        if value and not size_in_bytes(value):
            raise ValueError(
                f"max_shard_size {value!r} is not a size above 0; expected a number with a unit, such as 4GB or 500MiB"
            )
        return value

    @model_validator(mode="after")
    def _imatrix_where_needed(self) -> GGUF:
        if self.type in NEED_IMATRIX and self.imatrix is None:
            raise ValueError(
                f"type {self.type} needs an importance matrix; set imatrix to a file that llama-imatrix made, or take Q3_K_M"
            )
        return self

    def keyed(self) -> dict[str, Any]:
        """Return the options that affect the result, with the importance matrix by its contents, not its path."""
        options = super().keyed()
        if self.imatrix is not None:
            if not self.imatrix.is_file():
                raise UserError(
                    f"imatrix {str(self.imatrix)!r} does not exist; make one with llama-imatrix, or remove the option"
                )
            options["imatrix"] = sha256_file(self.imatrix)
        return options

    def quantize(self, merged: MergedCheckpoint, out: Path, role: ModelRole | None = None) -> QuantizedModel:
        """Write the merged model to `out` and return its (unsaved) record; nothing is left under that name on failure."""
        conversion = _conversion()
        about = conversion.About()
        if role is not None:
            extra = {"sysscan.role": role.name, "sysscan.merged": merged.digest}
            about = conversion.About(name=f"Sys-Scan-Graph {role.name}", extra=extra)
        with Progress(f"export {out.name}", total=100, unit="%") as bar:
            made: QuantizedModel = conversion.convert(
                merged.root, out, self, about, progress=lambda done, total: bar.update(100 * done // total)
            )
        if role is None:
            return made
        return made.model_copy(update={"role": role.name, "inputs": {"merged": merged.digest}}).at(out.parent)

    def check(self, base: BaseCheckpoint) -> None:
        """Convert the tokenizer, try it against llama.cpp, and check architecture and tensor shapes; reads no weights."""
        _conversion().check(base.root, self)

    def file_name(self, role: ModelRole) -> str:
        """Return ROLE_model_TYPE.gguf, the type in small letters without underscores."""
        return f"{role.name}_model_{self.type.lower().replace('_', '')}.gguf"


def size_in_bytes(text: str) -> int:
    """Return the bytes of a size such as 4GB (10^9) or 4GiB (2^30); 0 when it is not one."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        return 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def _conversion() -> Any:
    try:
        from sysscan_plugins.gguf_export import conversion
    except ModuleNotFoundError as error:
        raise MissingExtra("exporting to GGUF", str(error.name), "gguf") from error
    return conversion


@hookimpl
def sysscan_register_quantizers() -> Sequence[type[Quantizer]]:
    """Return the quantizer `gguf`."""
    return [GGUF]
