"""Access to the fields of an annotation with type checks, so that errors name the field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ssl_vivit.errors import AnnotationError

# Largest absolute value of a number. Valid numbers of frames, objects and coordinates are far
# smaller.
_LARGEST = 1e6


@dataclass(frozen=True)
class Field:
    """A JSON value with its path in the annotation.

    Attributes:
        value: the JSON value.
        path: path of the field, such as ``motion_trajectory[3].frame_id``; empty for the root.
    """

    value: Any
    path: str = ""

    def __getitem__(self, name: str) -> Field:
        """Return the field ``name`` of the value, which must be a JSON object.

        Raises:
            AnnotationError: if the value is not an object, or lacks the field. The methods
                ``items``, ``number``, ``whole``, ``flag`` and ``word`` raise the same error if the
                value does not have the required type.
        """
        self.check(isinstance(self.value, dict), "an object")
        path = f"{self.path}.{name}" if self.path else name
        if name not in self.value:
            raise AnnotationError(f"{path} is missing")
        return Field(self.value[name], path)

    def items(self) -> list[Field]:
        """Return the elements of the value, which must be a list, each as a :class:`Field`."""
        self.check(isinstance(self.value, list), "a list")
        return [Field(entry, f"{self.path}[{i}]") for i, entry in enumerate(self.value)]

    def number(self) -> float:
        """Return the value, which must be a number with an absolute value of at most 1e6."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        holds = is_number and abs(self.value) <= _LARGEST  # NaN is not
        self.check(holds, f"a finite number of at most {_LARGEST:,.0f}")
        return float(self.value)

    def whole(self) -> int:
        """Return the value, which must be a whole number."""
        number = self.number()
        self.check(number.is_integer(), "a whole number")
        return int(number)

    def flag(self) -> bool:
        """Return the value, which must be a boolean."""
        self.check(isinstance(self.value, bool), "true or false")
        return self.value

    def word(self) -> str:
        """Return the value, which must be a string."""
        self.check(isinstance(self.value, str), "a string")
        return self.value

    def check(self, holds: bool, expected: str) -> None:
        """Raise an error with the field's path unless a condition holds.

        Args:
            holds: whether the condition holds.
            expected: description of valid values, for the message.

        Raises:
            AnnotationError: if the condition is false.
        """
        if not holds:
            raise AnnotationError(
                f"{self.path or 'the whole annotation'} is {_shown(self.value)}, not {expected}"
            )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)[:40]
