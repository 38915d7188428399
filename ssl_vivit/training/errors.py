"""The one error a run ends with when a person can mend it."""

from __future__ import annotations


class RunError(RuntimeError):
    """A run cannot start or cannot go on; the message is one line and says what to do."""
