"""Unpack, check and reuse Sensorium sessions: ``python -m data_prep.sensorium``."""

from ssl_vivit.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SessionCheck": "data_prep.sensorium.checking",
        "WrittenMovies": "data_prep.sensorium.movies",
        "check": "data_prep.sensorium.checking",
        "convert": "data_prep.sensorium.archive",
        "sheet": "data_prep.sensorium.checking",
        "write_movies": "data_prep.sensorium.movies",
    },
)
