"""Checks of the types and lower limits of settings."""

from __future__ import annotations

import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that does not have the declared type.

    Args:
        name: name of the setting.
        value: value of the setting.
        hint: declared type: a ``Literal``, bool, int or float, or a union of one of them with None.
            Other types are not checked.

    Raises:
        ValueError: if the type is wrong; the message names the setting and the allowed values. True
            and False are not accepted as numbers.
    """
    allowed = _literals(hint)
    if allowed and value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; choose one of {listed(allowed)}")
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return
    if bool in kinds and type(value) is not bool:
        raise ValueError(f"{name} {value!r} must be True or False")
    if int in kinds and type(value) is not int:
        raise ValueError(f"{name} {value!r} must be a whole number")
    if float in kinds and (isinstance(value, bool) or not isinstance(value, int | float)):
        mend = ""
        if isinstance(value, str) and "e" in value.lower() and "." not in value:
            mend = "; YAML reads 1e-6 as text, so write 1.0e-6"
        raise ValueError(f"{name} {value!r} must be a number{mend}")
    if float in kinds and isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError(f"{name} is above the largest number, 1.8e+308; give a smaller number")


def check_least(config: Any, group: str = "", /, **least: float) -> None:
    """Refuse settings below their lower limit.

    Args:
        config: object with the settings as attributes.
        group: prefix of the settings' names on the command line, such as ``probe.``.
        least: smallest allowed value of each setting, as keyword arguments.

    Raises:
        ValueError: if a value is too small; the message names the setting, its value and the limit.
    """
    for name, value in least.items():
        if (found := getattr(config, name)) < value:
            raise ValueError(f"--{group}{name} is {found}; it must be at least {value}")


def check_types(config: object, prefix: str = "") -> None:
    """Check that every setting of a config dataclass has its declared type.

    Args:
        config: instance of the dataclass.
        prefix: prefix of the settings' names in messages, such as "objective.".

    Raises:
        ValueError: for the first setting that :func:`check_type` refuses.
    """
    for name, hint in get_type_hints(type(config)).items():
        check_type(f"{prefix}{name}", getattr(config, name), hint)


def _literals(hint: Any) -> list[Any]:
    """Return the values of a ``Literal`` type, also within a union; [] for other types."""
    if type(hint) is type(Literal["a"]):
        return list(get_args(hint))
    inner = get_args(hint)
    allowed = [value for part in inner for value in _literals(part)]
    return [*allowed, None] if allowed and type(None) in inner else allowed


def listed(names: Any) -> str:
    """Return names as one text, separated by commas."""
    return ", ".join(map(str, names))
