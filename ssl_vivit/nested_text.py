"""JSON and YAML of unknown origin, in bounded time and memory."""

from __future__ import annotations

import json
from typing import Any

import yaml

# More than any file of this project needs.
_DEEPEST = 50

# Bytes, or characters, of YAML. A thousand settings have half of it.
LONGEST_YAML = 100_000

# Of libyaml, where it is there: pure Python takes seconds for so much.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_json_text(text: str | bytes) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: if it is none, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml_text(text: str) -> Any:
    """Return the content of a YAML text, without objects of Python.

    Raises:
        ValueError: if it is none, is longer than 100,000 characters, is nested more than 50 levels
            deep, or has aliases within what other aliases stand for, by which a few lines may stand
            for billions. The message does not repeat the text.
    """
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has more than {LONGEST_YAML:,} characters")
    try:
        _check_events(text)
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{' '.join(str(error.problem).split())}{place}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check_events(text: str) -> None:
    depth, anchored = 0, 0  # depth of the outermost collection with an anchor, or 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
            if event.anchor is not None and not anchored:
                anchored = depth
        elif isinstance(event, yaml.CollectionEndEvent):
            if depth == anchored:
                anchored = 0
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and anchored:
            raise ValueError(f"the alias *{event.anchor} is part of what another alias stands for")
