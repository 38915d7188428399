"""The errors for a user's data mistakes."""


class DataError(ValueError):
    """Data that cannot be used as given; the message is one line that names the mend."""


class SessionError(DataError):
    """A recording that cannot be used as given; the message is one line that names the mend."""
