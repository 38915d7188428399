"""Checks of settings: their types, and their least values."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value of another type than declared.

    Args:
        name: the setting.
        value: its value.
        hint: its type: a ``Literal``, bool, int or float, or a union of one of them with None;
            other types are not looked at.

    Raises:
        ValueError: naming the setting and what it may be. True and False are no numbers.
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
            mend = "; YAML reads 1e-6 as text and 1.0e-6 as a number"
        raise ValueError(f"{name} {value!r} must be a number{mend}")


def check_least(config: Any, group: str = "", /, **least: float) -> None:
    """Refuse settings below their least value.

    Args:
        config: has the settings as attributes.
        group: what stands before their names on the command line, such as ``probe.``.
        least: setting → least value.

    Raises:
        ValueError: naming the setting, its value and the least.
    """
    for name, value in least.items():
        if (found := getattr(config, name)) < value:
            raise ValueError(f"--{group}{name} is {found}; it must be at least {value}")


def check_types(config: object, prefix: str = "") -> None:
    """Refuse a config dataclass whose settings are of other types than declared.

    Args:
        config: the dataclass.
        prefix: of the settings' names in messages, "objective." for one.

    Raises:
        ValueError: as :func:`check_type`, for the first such setting.
    """
    for name, hint in get_type_hints(type(config)).items():
        check_type(f"{prefix}{name}", getattr(config, name), hint)


def _literals(hint: Any) -> list[Any]:
    """Allowed values of a ``Literal`` type, also inside a union with None; [] for other types."""
    if type(hint) is type(Literal["a"]):
        return list(get_args(hint))
    inner = get_args(hint)
    allowed = [value for part in inner for value in _literals(part)]
    return [*allowed, None] if allowed and type(None) in inner else allowed


def listed(names: Any) -> str:
    """Names as a line of text."""
    return ", ".join(map(str, names))
