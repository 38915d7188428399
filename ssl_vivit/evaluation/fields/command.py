"""Receptive fields of a model of neurons; only the model's directory is needed.

python -m ssl_vivit.evaluation.fields runs/neurons
python -m ssl_vivit.evaluation.fields runs/neurons --units 3 17 --around sessions/a
python -m ssl_vivit.evaluation.fields runs/neurons --against sessions/a
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ssl_vivit import training
from ssl_vivit.errors import NeuralModelError, SessionError
from ssl_vivit.evaluation.result_folder import new_folder
from ssl_vivit.settings import check_least

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_vivit.evaluation.chosen_units import ChosenUnits
    from ssl_vivit.evaluation.fields.white_noise import WhiteNoise


@dataclass
class FieldsCommand:
    """Measure receptive fields of a model of neurons by readout positions, gradients and white noise.

    Args:
        model: directory of a run or an exported model; may be given as the first argument.
        out: folder for the results, which must be new or empty.
        session: session of the neurons; null if the model has only one.
        units: ids of the neurons; null takes all neurons of the session.
        around: stimuli at which gradients are computed: noise, grey, or the folder of the session's
            recording, whose movies are used.
        against: folder of a simulated session; its true receptive fields are also compared.
        past: duration of receptive fields: seconds into the past of a response; above 0 and at most
            10.
        check: side of the squares of white noise in pixels.
        hold: number of frames for which a pattern of white noise is shown.
        contrast: contrast of white noise; 1 is the largest that fits around the grey level.
        frames: number of frames of white noise.
        clips: number of clips for gradients, which are computed at the last frame of each clip.
        grey: grey level, above 0 and below 255; null takes the mean of the training stimuli.
        draw: number of units in the figure of maps and time courses.
        seed: seed of white noise.
        batch_size: number of clips in a batch.
    """

    model: str = "runs/finetune_neural"
    out: str = "runs/fields"
    session: str | None = None
    units: int | list[int] | None = None
    around: str = "noise"
    against: str | None = None
    past: float = 0.5
    check: int = 4
    hold: int = 1
    contrast: float = 1.0
    frames: int = 18000
    clips: int = 32
    grey: float | None = None
    draw: int = 4
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_least(self, frames=1, clips=1, draw=1, batch_size=1, seed=0)
        if not 0 < self.past <= 10:
            raise NeuralModelError(f"--past {self.past:g} must be above 0 and at most 10 seconds")
        if self.grey is not None and not 0 < self.grey < 255:
            raise NeuralModelError(f"--grey {self.grey:g} must be above 0 and below 255")


def main() -> None:
    """Load the model, measure receptive fields, and write the results atomically."""
    config = training.parse(FieldsCommand, first="model")
    # Imported here to keep --help fast; these modules load encoders.
    from ssl_vivit.evaluation.chosen_units import choose_units
    from ssl_vivit.evaluation.fields.methods import by_gradient, by_noise, by_position
    from ssl_vivit.evaluation.fields.result_files import write_results
    from ssl_vivit.evaluation.fields.white_noise import WhiteNoise, reverse_correlation
    from ssl_vivit.evaluation.neurons.receptive_fields import true_fields
    from ssl_vivit.files import replaced_directory

    out = new_folder(config.out, "--out", "receptive fields")
    chosen = choose_units(config.model, config.session, config.units)
    facts = chosen.facts
    lags = max(2, round(config.past * facts.frames_per_second))
    grey = 255 * facts.video_mean if config.grey is None else config.grey
    noise = WhiteNoise(
        facts.frame_size, config.check, config.hold, config.contrast, grey, config.seed
    )
    if config.hold >= lags:
        raise NeuralModelError(
            f"--hold {config.hold} must be below {lags}, the number of frames in --past "
            f"{config.past:g}"
        )
    truth = None
    if config.against is not None:
        truth = true_fields(chosen.opened(config.against).sessions[0])
        if truth is None:
            raise SessionError(
                f"--against {config.against} is a recording, whose true receptive fields are "
                "unknown; give a simulated session or omit --against"
            )
        truth = {name: values[list(chosen.places)] for name, values in truth.items()}
    clips = _clips(config, chosen, noise, 2 * lags)
    fields = {
        "position": by_position(chosen),
        "gradient": by_gradient(
            chosen, clips, lags=lags, batch_size=config.batch_size, progress=True
        ),
    }
    shown = reverse_correlation(
        chosen.rates, noise, list(chosen.places), lags=lags, frames=config.frames,
        clip=max(120, 4 * lags), batch_size=config.batch_size, progress=True,
    )  # fmt: skip
    fields["noise"] = by_noise(shown, noise)
    known = {name: each for name, each in fields.items() if each is not None}
    with replaced_directory(out) as folder:
        told = write_results(folder, known, facts, chosen.unit_ids, truth, draw=config.draw)
    print("\n".join([*told, f"results  {out}"]))


def _clips(config: FieldsCommand, chosen: ChosenUnits, noise: WhiteNoise, frames: int) -> Tensor:
    """Return clips for gradients, which are computed at the last frame of each clip."""
    import torch

    from ssl_vivit.evaluation.fields.methods import clips_of_movies, clips_of_noise

    if config.around == "noise":
        # Squares of reverse correlation may be as large as the encoder's tubelets, which would then
        # be uniform. This is rare in other videos, so gradients use squares of half the size.
        fine = replace(noise, check=max(1, noise.check // 2))
        return clips_of_noise(fine, config.clips, frames)
    if config.around == "grey":
        return torch.full((1, frames, *chosen.facts.frame_size), noise.grey)
    session = chosen.opened(config.around).sessions[0]
    first = {int(session.contents[trial]): trial for trial in reversed(sorted(session.trials))}
    clips = clips_of_movies(
        [session.video(trial) for trial in list(first.values())[: config.clips]],
        config.clips,
        frames,
    )
    if clips is None:
        raise SessionError(
            f"--around {config.around}: no movie has {frames} frames, twice --past {config.past:g}; "
            "reduce --past"
        )
    return clips
