"""The model card of an export: README.md in the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_card(title: str, tags: Sequence[str], rows: Mapping[str, Any], body: str) -> str:
    """Return the text of a model card.

    Args:
        title: heading of the card.
        tags: tags for the hub's search.
        rows: rows of a table: a name (left column) and a value (right column) for each.
        body: Markdown text after the table.
    """
    table = "\n".join(f"| {name} | {_in_words(value)} |" for name, value in rows.items())
    return f"""---
library_name: ssl_vivit
tags: [{", ".join(tags)}]
---

# {title}

| | |
|---|---|
{table}

{body}"""


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        # Lists are left out; they are in config.json.
        rows = {name: part for name, part in value.items() if not isinstance(part, list)}
        return ", ".join(
            f"{name} ({_in_words(part)})" if isinstance(part, Mapping) else f"{name} {part}"
            for name, part in rows.items()
        )
    return str(value)
