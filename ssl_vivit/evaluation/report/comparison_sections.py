"""Section of a comparison of models of neurons: scores by model and number of training trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.neurons.comparison import LABELS
from ssl_vivit.evaluation.report.page import Section, paragraph, picture, table


def comparison(found: dict[str, Any], path: Path) -> Section:
    """Return the section of a comparison.json, with a table for each tier.

    Args:
        found: content of a comparison.json from recipes/compare_neural.py.
        path: path of the file, for messages and the chart in its folder.

    Raises:
        DataError: if the file has another format.
    """
    try:
        results, metric = found["results"], found["metric"]
        unit = "trials" if results and "trials" in results[0] else "share"
        shares = sorted({each[unit] for each in results})
        rows: dict[str, dict[str, dict[float, str]]] = {}
        for each in results:
            by_share = rows.setdefault(each["tier"], {}).setdefault(each["row"], {})
            by_share[each[unit]] = _cell(each["mean"], each["standard_error"])
        for each in found["references"]:
            by_share = rows.setdefault(each["tier"], {}).setdefault(each["name"], {})
            by_share[each[unit]] = _cell(each["score"], None)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no comparison.json of recipes/compare_neural.py ({error}); give such a file"
        ) from None
    told = [f"{share:.0%}" if unit == "share" else f"{share:g} trials" for share in shares]
    body = paragraph(f"{LABELS.get(metric, metric)}, mean ± standard error over seeds.")
    for tier, by_row in rows.items():
        cells = [[row, *(own.get(share) for share in shares)] for row, own in by_row.items()]
        body += table(["model", *told], cells, caption=tier)
    chart = path.with_name("comparison.png")
    if chart.is_file():
        body += picture(chart, "scores by the number of training trials")
    return Section("Comparison", body)


def _cell(mean: float | None, error: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"
