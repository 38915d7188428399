"""Files of neurons' scores (CSV and Parquet) and of predictions (Parquet).

units.csv, units.parquet     session, tier, unit, held_out, and a column for each score
predictions.parquet          session, tier, trial, frame, unit, predicted, recorded: a row for each
                             neuron and frame, a row group for each trial
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float

from ssl_vivit.errors import DataError
from ssl_vivit.neural.scoring.scores import LEAST_EXPLAINABLE, OF_EXPLAINABLE, NeuralScores

Columns = dict[str, list[Any]]


def check_parquet() -> None:
    """Check that pyarrow is installed.

    Raises:
        DataError: if pyarrow is missing; the message says how to install it.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"writing Parquet files needs {error.name or 'pyarrow'}; run "
            "`pip install 'ssl_vivit[neural]'`, or set --parquet false"
        ) from None


def unit_columns(scores: Mapping[str, NeuralScores]) -> Columns:
    """Return a table (column → values) with a row for each neuron and tier.

    The table has a column for each score, with NaN where the score is undefined. FEVE and CC_norm
    are NaN for neurons whose fraction of explainable variance is below 0.15. Means over neurons
    also leave these neurons out.

    Args:
        scores: tier → scores.
    """
    rows: list[dict[str, Any]] = []
    for tier, own in scores.items():
        for session, fact in own.facts.items():
            values = own.neurons(session)
            if not values["poisson"].isfinite().any():
                continue
            if "fev" in values:
                able = values["fev"] >= LEAST_EXPLAINABLE
                values |= {
                    name: values[name].masked_fill(~able, torch.nan) for name in OF_EXPLAINABLE
                }
            held_out = set(fact.held_out_units)
            for place, unit in enumerate(fact.unit_ids):
                told = {"session": session, "tier": tier, "unit": unit}
                numbers = {name: float(each[place]) for name, each in values.items()}
                rows.append({**told, "held_out": unit in held_out, **numbers})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def write_csv(path: Path, columns: Columns) -> None:
    """Write a table as CSV; NaN becomes an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(["" if _is_nan(value) else value for value in row])


def write_parquet(path: Path, columns: Columns) -> None:
    """Write a table as Parquet; NaN becomes a missing value."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            name: pyarrow.array([None if _is_nan(value) else value for value in values])
            for name, values in columns.items()
        }
    )
    pyarrow.parquet.write_table(table, path, compression="zstd")


class PredictionFile:
    """Writer of predictions.parquet, trial by trial; a context manager that closes the file.

    Args:
        path: path of the file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        name = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        self._schema = pyarrow.schema(
            [
                ("session", name), ("tier", name), ("trial", pyarrow.int32()),
                ("frame", pyarrow.int32()), ("unit", pyarrow.int64()),
                ("predicted", pyarrow.float32()), ("recorded", pyarrow.float32()),
            ]
        )  # fmt: skip
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def add(
        self,
        session: str,
        tier: str,
        trial: int,
        units: Sequence[int],
        predicted: Float[np.ndarray, "T neurons"],
        recorded: Float[np.ndarray, "T neurons"],
    ) -> None:
        """Write one trial.

        Args:
            session: name of the session.
            tier: tier of the trial.
            trial: number of the trial.
            units: ids of the neurons.
            predicted: predicted mean responses per frame.
            recorded: recorded responses per frame; NaN (unknown) becomes a missing value.
        """
        frames, neurons = predicted.shape
        rows = frames * neurons
        values = {
            "session": self._same(session, rows),
            "tier": self._same(tier, rows),
            "trial": np.full(rows, trial, dtype=np.int32),
            "frame": np.repeat(np.arange(frames, dtype=np.int32), neurons),
            "unit": np.tile(np.asarray(units, dtype=np.int64), frames),
            "predicted": predicted.astype(np.float32).reshape(-1),
            "recorded": self._arrow.array(
                recorded.astype(np.float32).reshape(-1), from_pandas=True
            ),
        }
        self._writer.write_table(self._arrow.table(values, schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def _same(self, name: str, rows: int) -> Any:
        codes = self._arrow.array(np.zeros(rows, dtype=np.int32))
        return self._arrow.DictionaryArray.from_arrays(codes, [name])


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
