"""Fields of an annotation, checked where they are read, so that errors name the field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ssl_vivit.errors import AnnotationError

# Frames and objects are far fewer; scenes are some ten units wide.
_LARGEST = 1e6


@dataclass(frozen=True)
class Field:
    """A JSON value and its place.

    Attributes:
        value: as the JSON holds it.
        path: of the field, as in ``motion_trajectory[3].frame_id``; empty for the whole.
    """

    value: Any
    path: str = ""

    def __getitem__(self, name: str) -> Field:
        """A field of an object.

        Raises:
            AnnotationError: if this is no object or lacks it; likewise below, for other types.
        """
        self.check(isinstance(self.value, dict), "an object")
        path = f"{self.path}.{name}" if self.path else name
        if name not in self.value:
            raise AnnotationError(f"{path} is missing")
        return Field(self.value[name], path)

    def items(self) -> list[Field]:
        """The entries of a list."""
        self.check(isinstance(self.value, list), "a list")
        return [Field(entry, f"{self.path}[{i}]") for i, entry in enumerate(self.value)]

    def number(self) -> float:
        """A finite number of at most 1e6."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        holds = is_number and abs(self.value) <= _LARGEST  # NaN is not
        self.check(holds, f"a finite number of at most {_LARGEST:,.0f}")
        return float(self.value)

    def whole(self) -> int:
        """A whole number."""
        number = self.number()
        self.check(number.is_integer(), "a whole number")
        return int(number)

    def flag(self) -> bool:
        """True or false."""
        self.check(isinstance(self.value, bool), "true or false")
        return self.value

    def word(self) -> str:
        """A string."""
        self.check(isinstance(self.value, str), "a string")
        return self.value

    def check(self, holds: bool, expected: str) -> None:
        """Refuse a value.

        Args:
            holds: whether it is fine.
            expected: what it should be.

        Raises:
            AnnotationError: if it is not.
        """
        if not holds:
            raise AnnotationError(
                f"{self.path or 'the whole'} is {_shown(self.value)}, not {expected}"
            )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)[:40]
