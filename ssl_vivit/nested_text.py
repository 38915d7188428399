"""Read JSON and YAML of unknown origin in bounded time and memory."""

from __future__ import annotations

import json
from typing import Any

import yaml

# Deepest allowed nesting; no file of this project needs more.
_DEEPEST = 50

# Longest YAML text in bytes or characters. A thousand settings take half of it.
LONGEST_YAML = 100_000

# Prefer the loader of libyaml: pure Python takes seconds for a text of this length.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_json_text(text: str | bytes) -> Any:
    """Parse a JSON text and return its content.

    Raises:
        ValueError: if the text is not valid JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml_text(text: str) -> Any:
    """Parse a YAML text and return its content; Python objects are never constructed.

    Raises:
        ValueError: if the text is not valid YAML, has more than 100,000 characters, is nested more
            than 50 levels deep, or has an alias inside a node that other aliases refer to. Nested
            aliases could expand a few lines to billions. The message does not repeat the text.
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
            raise ValueError(f"the alias *{event.anchor} is inside a node with an anchor")
