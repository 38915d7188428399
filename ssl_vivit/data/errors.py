"""The error for a user's data mistake."""


class DataError(ValueError):
    """Data that cannot be used as given; the message is one line that names the mend."""
