"""Most exciting videos and images of a model's neurons; only the model's directory is needed.

python -m ssl_vivit.evaluation.stimuli runs/neurons
python -m ssl_vivit.evaluation.stimuli runs/neurons --units 3 17 --kind video --seconds 1
python -m ssl_vivit.evaluation.stimuli runs/neurons --against sessions/a
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssl_vivit import training
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.result_folder import new_folder
from ssl_vivit.settings import check_least

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from ssl_vivit.data.sessions.facts import SessionFacts
    from ssl_vivit.evaluation.chosen_units import ChosenUnits
    from ssl_vivit.evaluation.stimuli.constraints import Constraints
    from ssl_vivit.evaluation.stimuli.presentation import Kind, Presentation
    from ssl_vivit.evaluation.stimuli.result_files import Found


@dataclass
class StimuliCommand:
    """Find the most exciting videos and images of a model's neurons by gradient ascent.

    Args:
        model: directory of a run or an exported model; may be given as the first argument.
        out: folder for the results, which must be new or empty.
        session: session of the neurons; null if the model has only one.
        units: ids of the neurons; null takes all neurons of the session.
        kind: video, image, or both.
        against: folder of the session's recording. Responses are compared with those to its movies,
            and stimuli with the true filters if the session is simulated.
        seconds: duration of a stimulus in seconds.
        response: seconds at the end of the stimulus over which the rate is averaged; null takes the
            last frame of a video and all frames of an image.
        lead: seconds of grey before the stimulus.
        contrast: root mean square of the deviations from grey over all frames and pixels, as a
            fraction of the training stimuli's standard deviation.
        grey: grey level of the screen, above 0 and below 255; null takes the mean of the training
            stimuli.
        blur: standard deviation of the smoothing over space, in pixels; 0 for none.
        time_blur: standard deviation of the smoothing over time, in frames; 0 for none.
        jitter: largest random shift of the stimulus in each step, in pixels; 0 for none.
        steps: number of steps of the ascent.
        step_size: length of the first step as a fraction of the stimulus' norm.
        random: number of random stimuli. The ascent of a unit starts at the random stimulus with
            the largest response.
        draw: number of units in the figure stimuli.png.
        seed: seed of random stimuli and jitter.
        batch_size: number of units in a batch.
    """

    model: str = "runs/finetune_neural"
    out: str = "runs/stimuli"
    session: str | None = None
    units: int | list[int] | None = None
    kind: Literal["both", "video", "image"] = "both"
    against: str | None = None
    seconds: float = 0.5
    response: float | None = None
    lead: float = 0.5
    contrast: float = 0.15
    grey: float | None = None
    blur: float = 1.0
    time_blur: float = 1.0
    jitter: int = 1
    steps: int = 25
    step_size: float = 0.3
    random: int = 100
    draw: int = 6
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_least(
            self, lead=0, blur=0, time_blur=0, jitter=0, steps=1, random=1, draw=1, seed=0,
            batch_size=1
        )  # fmt: skip
        for name in ("seconds", "response", "contrast", "step_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise NeuralModelError(f"--{name} {value:g} must be finite and above 0")


def main() -> None:
    """Load the model, find the stimuli, and write the results atomically."""
    config = training.parse(StimuliCommand, first="model")
    # Imported here to keep --help fast; these modules load encoders.
    from ssl_vivit.evaluation.chosen_units import choose_units
    from ssl_vivit.evaluation.neurons.receptive_fields import true_fields
    from ssl_vivit.evaluation.stimuli.references import movie_rates
    from ssl_vivit.evaluation.stimuli.result_files import write_results
    from ssl_vivit.files import replaced_directory

    out = new_folder(config.out, "--out", "most exciting stimuli")
    chosen = choose_units(config.model, config.session, config.units)
    facts = chosen.facts
    if config.jitter >= min(facts.frame_size):
        raise NeuralModelError(
            f"--jitter {config.jitter} must be below {min(facts.frame_size)}, the shorter side of "
            "the frame in pixels"
        )
    kinds: tuple[Kind, ...] = ("video", "image") if config.kind == "both" else (config.kind,)
    shown = [_shown(config, facts, kind) for kind in kinds]
    sessions = None if config.against is None else chosen.opened(config.against)
    truth = None if sessions is None else true_fields(sessions.sessions[0])
    movies = [] if sessions is None else movie_rates(chosen, sessions)
    found = {
        presentation.kind: _found(config, chosen, presentation, constraints, movies, truth)
        for presentation, constraints in shown
    }
    own = list(chosen.places)
    own_truth = None if truth is None else {name: values[own] for name, values in truth.items()}
    with replaced_directory(out) as folder:
        told = write_results(
            folder, found, chosen.unit_ids, shown[0][0].grey, facts.frames_per_second, own_truth,
            draw=config.draw,
        )  # fmt: skip
    print("\n".join([*told, f"results  {out}"]))


def _shown(
    config: StimuliCommand, facts: SessionFacts, kind: Kind
) -> tuple[Presentation, Constraints]:
    """Return how a kind of stimulus (video or image) is shown, and its constraints."""
    from ssl_vivit.evaluation.stimuli.constraints import Constraints
    from ssl_vivit.evaluation.stimuli.presentation import Presentation

    grey = 255 * facts.video_mean if config.grey is None else config.grey
    frames = max(1, round(config.seconds * facts.frames_per_second))
    response = frames if kind == "image" else 1
    if config.response is not None:
        response = max(1, round(config.response * facts.frames_per_second))
    lead = round(config.lead * facts.frames_per_second)
    presentation = Presentation(kind, facts.frame_size, grey, lead, frames, response)
    contrast = config.contrast * 255 * facts.video_std
    return presentation, Constraints(
        presentation.shape, grey, contrast, blur=config.blur, time_blur=config.time_blur
    )


def _found(
    config: StimuliCommand,
    chosen: ChosenUnits,
    presentation: Presentation,
    constraints: Constraints,
    movies: Sequence[Tensor],
    truth: Mapping[str, np.ndarray] | None,
) -> Found:
    """Find stimuli of one kind, and measure responses to reference stimuli."""
    from ssl_vivit.evaluation.stimuli.agreement import agree
    from ssl_vivit.evaluation.stimuli.ascent import AscentConfig, ascend
    from ssl_vivit.evaluation.stimuli.references import measure_references, movie_responses
    from ssl_vivit.evaluation.stimuli.result_files import Found

    references = measure_references(
        chosen.rates, presentation, constraints, chosen.places,
        count=config.random, seed=config.seed, batch_size=config.batch_size, progress=True,
    )  # fmt: skip
    ascent = ascend(
        chosen.differentiable_rates, presentation, constraints, references.best, chosen.places,
        AscentConfig(config.steps, config.step_size, config.jitter, config.seed),
        batch_size=config.batch_size, progress=True,
    )  # fmt: skip
    response = presentation.response
    agreement = None
    if truth is not None:
        agreement = agree(
            presentation.kind,
            ascent.deviations.numpy(),
            truth,
            chosen.places,
            response,
            config.seed,
        )
    return Found(
        ascent, references, movie_responses(movies, response) if movies else None, agreement
    )
