"""Earlier name of :mod:`ssl_vivit.data.sessions.files`, kept for existing code."""

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session

__all__ = ["Session", "SessionFacts"]
