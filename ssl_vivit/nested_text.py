"""JSON and YAML of unknown origin, in bounded time and memory."""

from __future__ import annotations

import json
from typing import Any

import yaml

# More than any file of this project needs.
_DEEPEST = 50


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
        ValueError: if it is none, is nested more than 50 levels deep, or has aliases within what
            other aliases stand for, by which a few lines may stand for billions.
    """
    try:
        _check_events(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _check_events(text: str) -> None:
    depth, anchored = 0, 0  # depth of the outermost collection with an anchor, or 0
    for event in yaml.parse(text, yaml.SafeLoader):
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
