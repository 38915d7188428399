"""Earlier name of :mod:`ssl_vivit.data.sessions.files`, kept for existing code."""

from ssl_vivit.data.sessions.files import Session, SessionFacts

__all__ = ["Session", "SessionFacts"]
