"""Pack CLEVRER videos into shards: ``python -m data_prep.clevrer``."""

from ssl_vivit.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PackReport": "data_prep.clevrer.packing",
        "channel_statistics": "data_prep.clevrer.inspection",
        "contact_sheet": "data_prep.clevrer.inspection",
        "download": "data_prep.clevrer.downloading",
        "index": "data_prep.clevrer.indexing",
        "info": "data_prep.clevrer.inspection",
        "pack": "data_prep.clevrer.packing",
        "verify": "data_prep.clevrer.inspection",
    },
)
