"""Numbers with nouns in the singular or plural, for printed lines."""

from __future__ import annotations


def quantity(number: int, noun: str) -> str:
    """Return the number and the noun in the singular or plural: ``1 shard``, ``2 shards``.

    Args:
        number: the number.
        noun: the noun in the singular; its plural must end in s.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
