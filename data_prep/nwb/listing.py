"""List the contents of an NWB file, for the choice of options."""

from __future__ import annotations

import numpy as np

from data_prep.nwb.file import NwbFile
from data_prep.nwb.frame_clock import frame_rate
from data_prep.nwb.stimuli import Stimuli
from ssl_vivit.errors import DataError


def listing(file: NwbFile) -> list[str]:
    """Return lines on the neurons, stimuli, templates, series and tables of a file.

    The line of a series that cannot be used contains the reason.
    """
    stimuli = Stimuli(file)
    table = file.units_table
    columns = "" if table is None else f" ({', '.join(table.colnames)})"
    lines = [f"units     {0 if table is None else len(table)}{columns}"]
    rois = file.roi_names()
    groups = {
        "responses": rois,
        "stimuli": stimuli.names(),
        "templates": stimuli.templates(),
        "series": [name for name in file.signal_names() if name not in rois],
    }
    for heading, names in groups.items():
        lines.append(heading)
        lines += [f"  {name}  {_described(file, name)}" for name in names]
    lines.append("trials")
    for name, rows in file.tables().items():
        lines.append(f"  {name}  {len(rows)} rows: {', '.join(rows.colnames)}")
    return lines


def _described(file: NwbFile, path: str) -> str:
    if path in file.images:
        return f"{len(file.images[path].images)} images"
    if path not in file.series:
        return "a table, see below"
    series = file.series[path]
    if (movies := getattr(series, "external_file", None)) is not None:
        return f"in {', '.join(map(str, movies[:]))}, see --external-movies"
    text = "×".join(map(str, np.shape(series.data)))
    if isinstance(series, file.kinds.image.IndexSeries):
        target = series.indexed_timeseries or series.indexed_images
        text += f" of template {target.name}" if target is not None else " of no template"
    if path.startswith("stimulus/templates/"):
        return text
    try:
        times = file.times(path)
        file.check_times(path, times, repeats=not path.startswith("stimulus/"))
        if len(times) > 1:
            text += f", {frame_rate(times):.4g} Hz, {times[0]:.3f} to {times[-1]:.3f} s"
    except DataError as error:
        text += f", {str(error).removeprefix(f'{file.path}: {path}').lstrip(': ')}"
    return f"{text}, {series.unit}" if series.unit else text
