"""Convert NWB recordings to sessions: ``python -m data_prep.nwb``."""

from ssl_vivit.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "NwbReport": "data_prep.nwb.session",
        "convert": "data_prep.nwb.session",
    },
)
