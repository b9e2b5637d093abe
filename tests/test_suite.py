"""What the tests themselves keep to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
FILES: Final = sorted(path.relative_to(HERE) for path in HERE.rglob("*.py"))
# In what a program is given as a string, too.
OF_TESTS: Final = re.compile(
    r"(?:from|import)\s+tests[\w.]*\.(?:test_\w+|conftest)\b"
    r"|from\s+tests[\w.]*\s+import\s+\(?[^)\n]*\b(?:test_\w+|conftest)\b"
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_imported_from_a_test_module(path: Path) -> None:
    """What two share is in a plain module; a fixture is in a conftest.py or a plugin."""
    assert OF_TESTS.findall((HERE / path).read_text()) == []
