"""Result files of most exciting stimuli.

units.csv         a row for each unit and kind of stimulus: responses and reference responses
stimuli.npz       stimuli and responses during the ascent as arrays
stimuli.png       a figure of the stimuli of some units
unit_ID.gif       the video of a unit
unit_ID.png       the image of a unit
agreement.json    correlations with the true filters; only with --against a simulated session
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vivit.evaluation.neurons.result_files import write_csv
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.evaluation.stimuli.agreement import Agreement, nearest_filters
from ssl_vivit.evaluation.stimuli.ascent import Ascent
from ssl_vivit.evaluation.stimuli.figure import draw_sheet, write_pictures
from ssl_vivit.evaluation.stimuli.presentation import Kind
from ssl_vivit.evaluation.stimuli.references import References
from ssl_vivit.files import without_nan, write_json


@dataclass(frozen=True)
class Found:
    """Stimuli of one kind for n units, with their responses and references.

    Attributes:
        ascent: the stimuli and their responses.
        references: responses to grey and random stimuli.
        movies: (windows, n), responses to recorded movies, or None.
        agreement: agreement with the true filters, or None.
    """

    ascent: Ascent
    references: References
    movies: np.ndarray | None = None
    agreement: Agreement | None = None

    @property
    def responses(self) -> np.ndarray:
        """Responses (n,) to the stimuli found by the ascent."""
        return self.ascent.responses[:, -1].double().numpy()


def write_results(
    folder: Path,
    found: Mapping[Kind, Found],
    unit_ids: Sequence[int],
    grey: float,
    frames_per_second: float,
    truth: Mapping[str, np.ndarray] | None,
    *,
    draw: int,
) -> list[str]:
    """Write all files and return a summary as lines of text.

    Args:
        folder: an empty folder.
        found: kind → stimuli; all kinds must have the same units.
        unit_ids: ids of the units.
        grey: grey level of the screen.
        frames_per_second: frame rate of the videos.
        truth: tensors of a simulated session for these units, or None.
        draw: number of units in the figure. Those with the largest responses above grey to the
            first kind of stimulus are drawn.
    """
    arrays: dict[str, Any] = {
        "unit": np.array(unit_ids), "grey": np.array(grey),
        "frames_per_second": np.array(frames_per_second),
    }  # fmt: skip
    table: dict[str, list[Any]] = {}
    for kind, each in found.items():
        # Rounding of the sum may exceed the range from 0 to 255.
        pixels = (each.ascent.deviations.numpy() + np.float32(grey)).clip(0, 255)
        arrays[kind] = pixels if kind == "video" else pixels[:, 0]
        arrays[f"{kind}_responses"] = each.ascent.responses.numpy()
        for name, values in _columns(kind, each, unit_ids).items():
            table.setdefault(name, []).extend(values)
        ending = "gif" if kind == "video" else "png"
        for unit, stimulus in zip(unit_ids, pixels, strict=True):
            write_pictures(stimulus, frames_per_second, folder / f"unit_{unit}.{ending}")
    write_csv(folder / "units.csv", table)
    np.savez(folder / "stimuli.npz", **arrays)
    first = next(iter(found.values()))
    rows = np.argsort(first.references.grey - first.responses, kind="stable")[:draw]
    shown: list[tuple[str, dict[Kind, np.ndarray]]] = []
    for row in rows.tolist():
        own = {kind: each.ascent.deviations[row].numpy() for kind, each in found.items()}
        shown.append((f"unit {unit_ids[row]}", own))
        if truth is not None:
            its = {name: values[row : row + 1] for name, values in truth.items()}
            near = {kind: nearest_filters(each[None], its)[0] for kind, each in own.items()}
            shown.append(("truth", near))
    draw_sheet(shown, grey, frames_per_second, folder / "stimuli.png")
    agreed = {
        kind: each.agreement.to_json() for kind, each in found.items() if each.agreement is not None
    }
    if agreed:
        write_json(folder / "agreement.json", without_nan(agreed), indent=1)
    return [*_response_lines(found), *_truth_lines(agreed)]


def _columns(kind: Kind, found: Found, unit_ids: Sequence[int]) -> dict[str, list[Any]]:
    responses, references, count = found.responses, found.references, len(unit_ids)
    nothing = [np.nan] * count
    columns: dict[str, Any] = {
        "unit": list(unit_ids),
        "kind": [kind] * count,
        "response": responses,
        "grey": references.grey,
        "random_best": references.random.max(0),
        "random_percentile": _percentiles(responses, references.random),
    }
    if found.movies is not None and len(found.movies):
        columns["movies_best"] = found.movies.max(0)
        columns["movies_percentile"] = _percentiles(responses, found.movies)
    if found.agreement is not None:
        columns["space_correlation"] = found.agreement.space
        drive = found.agreement.drive
        columns["drive_correlation"] = nothing if drive is None else drive
    return {
        name: values if isinstance(values, list) else values.tolist()
        for name, values in columns.items()
    }


def _percentiles(responses: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the percentage of each unit's reference responses (k, n) below its response (n,)."""
    return 100 * (others < responses).mean(0)


def _response_lines(found: Mapping[Kind, Found]) -> list[str]:
    """Return lines of text with responses, as medians over units."""
    rows = [["medians over units", *(f"{kind}s" for kind in found)]]
    measured = [_columns(kind, each, range(len(each.responses))) for kind, each in found.items()]
    for name, label in {
        "response": "response to the most exciting stimulus",
        "grey": "response to grey",
        "random_best": "best of the random stimuli of this contrast",
        "random_percentile": "percentile among the random stimuli",
        "movies_best": "best of the recorded movies, as shown",
        "movies_percentile": "percentile among the recorded movies",
    }.items():
        if name in measured[0]:
            rows.append([label, *(f"{np.median(each[name]):.3g}" for each in measured)])
    still = [int((~each.ascent.raised).sum()) for each in found.values()]
    if any(still):
        rows.append(["units whose response the ascent did not raise", *map(str, still)])
    return text_table(rows).splitlines()


def _truth_lines(agreed: Mapping[Kind, Mapping[str, Any]]) -> list[str]:
    lines = []
    for kind, each in agreed.items():
        for name, own in each.items():
            lines.append(
                f"{kind}, {name}: median r = {own['median']:.3f} with the true filter over "
                f"{own['units']} units; controls: {own['other_units']:.3f} with filters of other units"
                + (f", {own['shuffled']:.3f} with frames shuffled" if "shuffled" in own else "")
            )
    return lines
