"""Render videos of moving solids: ``python -m data_prep.synthetic_clevrer``."""

from ssl_vivit.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "contact_sheet": "data_prep.synthetic_clevrer.videos",
        "render": "data_prep.synthetic_clevrer.videos",
    },
)
