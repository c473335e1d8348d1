"""The bases that most tests of this folder begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_lora import save_base


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_base(tmp_path / "llama")


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    return save_base(tmp_path / "mixtral", "mixtral")
