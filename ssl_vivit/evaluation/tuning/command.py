"""Tuning curves of a model of neurons; only the model's directory is needed.

python -m ssl_vivit.evaluation.tuning runs/neurons
python -m ssl_vivit.evaluation.tuning runs/neurons --units 3 17 --spatial_frequencies 0.05 0.1 0.2
python -m ssl_vivit.evaluation.tuning runs/neurons --against sessions/a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_vivit import training
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.result_folder import new_folder
from ssl_vivit.settings import check_least

if TYPE_CHECKING:
    import numpy as np

    from ssl_vivit.evaluation.chosen_units import ChosenUnits


@dataclass
class TuningCommand:
    """Measure tuning curves of a model of neurons from drifting gratings.

    Args:
        model: directory of a run or an exported model; may be given as the first argument.
        out: folder for the results, which must be new or empty.
        session: session of the neurons; null if the model has only one.
        units: ids of the neurons; null takes all neurons of the session.
        against: folder of the session's recording. Predicted responses to its movies are compared
            with recorded responses. If the session is simulated, tuning is compared with the true
            tuning.
        tiers: tiers of trials of --against; null takes all tiers not used for training.
        position: x and y of the patches of the size curve; −1 and 1 are the edges of the frame;
            null takes the receptive-field centre of each unit's readout.
        directions: number of directions; must be a multiple of 4 and at least 8.
        spatial_frequencies: spatial frequencies in cycles per pixel; null chooses them by the
            frame's width.
        temporal_frequencies: temporal frequencies in Hz; null chooses them by the frame rate.
        contrasts: contrasts of the contrast curve; null takes seven values from 0.05 to 1,
            [] omits the curve.
        sizes: diameters in pixels; null chooses them by the frame's height, [] omits the curve.
        contrast: contrast of gratings in the other curves; 1 is the largest that fits around the
            grey level.
        grey: grey level of the background, above 0 and below 255; null takes the mean of the
            training stimuli.
        lead: seconds of grey before each grating.
        seconds: duration of each grating in seconds.
        transient: seconds at the start of each grating that are excluded from the response.
        fits: whether to fit descriptive functions to the curves; needs SciPy.
        draw: number of units in the figures.
        shuffles: number of random shuffles for each control in the comparison with --against.
        seed: seed of the shuffles.
        batch_size: number of trials in a batch.
    """

    model: str = "runs/finetune_neural"
    out: str = "runs/tuning"
    session: str | None = None
    units: int | list[int] | None = None
    against: str | None = None
    tiers: str | list[str] | None = None
    position: list[float] | None = None
    directions: int = 12
    spatial_frequencies: float | list[float] | None = None
    temporal_frequencies: float | list[float] | None = None
    contrasts: float | list[float] | None = None
    sizes: float | list[float] | None = None
    contrast: float = 0.8
    grey: float | None = None
    lead: float = 1.0
    seconds: float = 2.5
    transient: float = 0.5
    fits: bool = True
    draw: int = 6
    shuffles: int = 1000
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_least(self, draw=1, shuffles=1, batch_size=1)
        if self.position is not None and not (
            len(self.position) == 2 and all(-1 <= place <= 1 for place in self.position)
        ):
            raise NeuralModelError(
                f"--position {self.position} must be x and y from -1 to 1, such as --position 0 0"
            )
        if self.tiers is not None and self.against is None:
            raise NeuralModelError("--tiers needs --against SESSION; give both or neither")


# Settings that accept one number or a list.
_SERIES = ("spatial_frequencies", "temporal_frequencies", "contrasts", "sizes")


def main() -> None:
    """Load the model, measure tuning curves, and write the results atomically."""
    config = training.parse(TuningCommand, first="model")
    # Imported here to keep --help fast; these modules load encoders.
    from ssl_vivit.evaluation.chosen_units import choose_units
    from ssl_vivit.evaluation.tuning.against import read_against
    from ssl_vivit.evaluation.tuning.curves import measure_curves
    from ssl_vivit.evaluation.tuning.fits import check_scipy, fit_all
    from ssl_vivit.evaluation.tuning.gratings import Protocol
    from ssl_vivit.evaluation.tuning.result_files import write_results
    from ssl_vivit.evaluation.tuning.stimuli import default_stimuli
    from ssl_vivit.evaluation.tuning.units import measure_units
    from ssl_vivit.files import replaced_directory

    out = new_folder(config.out, "--out", "tuning curves")
    if config.fits:
        check_scipy()
    chosen = choose_units(config.model, config.session, config.units)
    facts = chosen.facts
    protocol = Protocol(
        facts.frame_size,
        facts.frames_per_second,
        255 * facts.video_mean if config.grey is None else config.grey,
        config.lead,
        config.seconds,
        config.transient,
    )
    stimuli = default_stimuli(
        facts.frame_size,
        facts.frames_per_second,
        directions=config.directions,
        contrast=config.contrast,
        **{name: _as_list(getattr(config, name)) for name in _SERIES},
    )
    known = None
    if config.against is not None:
        known = read_against(
            chosen, config.against, _as_list(config.tiers), config.shuffles, config.seed
        )
    curves = measure_curves(
        chosen.rates, protocol, stimuli, chosen.places,
        _centres(config, chosen) if stimuli.sizes else None,
        batch_size=config.batch_size, progress=True,
    )  # fmt: skip
    fits = fit_all(curves.values, curves.responses) if config.fits else None
    table = measure_units(curves, chosen.unit_ids, fits)
    with replaced_directory(out) as folder:
        told = write_results(folder, curves, fits, table, known, draw=config.draw)
    print("\n".join([*told, f"results  {out}"]))


def _as_list(given: Any) -> Any:
    """Return a setting as a list; a single value becomes a list with one value, None stays None."""
    return given if given is None or isinstance(given, list) else [given]


def _centres(config: TuningCommand, chosen: ChosenUnits) -> np.ndarray:
    """Return the centres (n, 2) of each unit's patches, (x, y) in [−1, 1]."""
    import numpy as np

    if config.position is not None:
        return np.tile(config.position, (len(chosen.places), 1))
    centres = chosen.centres()
    if centres is None:
        raise NeuralModelError(
            f"{config.model}: the size curve needs positions, which the readout does not have; "
            "give --position X Y, or --sizes [] to omit the curve"
        )
    return centres
