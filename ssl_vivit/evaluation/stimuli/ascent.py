"""Gradient ascent on the pixels of a stimulus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.stimuli.constraints import Constraints
from ssl_vivit.evaluation.stimuli.presentation import Presentation

Rates = Callable[[Float[Tensor, "b T H W"]], Float[Tensor, "b T N"]]
"""Differentiable function from pixels (0 to 255) to rates of all neurons in every frame."""


@dataclass(frozen=True)
class AscentConfig:
    """Settings of the ascent.

    Args:
        steps: number of steps.
        step_size: length of the first step as a fraction of the stimulus' norm. It decreases
            linearly to 0 over the steps.
        jitter: largest random shift of the stimulus in each step, along each axis, in pixels.
        seed: seed of the shifts.
    """

    steps: int = 25
    step_size: float = 0.3
    jitter: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Ascent:
    """Stimuli found by the ascent for n units.

    Attributes:
        deviations: (n, T, H, W), the stimuli as deviations from grey.
        responses: (n, steps + 1), responses to the shifted stimulus before each step; the last
            entry is the response to the stimulus in ``deviations``.
        raised: (n,), whether the ascent raised the unit's response. If not, the result is the
            initial stimulus. Reasons are a gradient of zero, or a gradient removed by jitter and
            smoothing.
    """

    deviations: Float[Tensor, "n T H W"]
    responses: Float[Tensor, "n steps"]
    raised: Bool[Tensor, " n"]


def ascend(
    rates: Rates,
    presentation: Presentation,
    constraints: Constraints,
    starts: Float[Tensor, "n T H W"],
    units: Sequence[int],
    config: AscentConfig,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> Ascent:
    """Maximise the responses of units to their stimuli by projected gradient ascent.

    A step follows the direction of the smoothed gradient and is then projected to the contrast and
    the range of pixels (as in Walker et al. 2019, Nat. Neurosci. 22:2060). The stimulus of a unit
    does not depend on the other units of the batch.

    Args:
        rates: the model, a differentiable function from pixels (b, T, H, W), 0 to 255, to rates
            (b, T, neurons).
        presentation: how a stimulus is shown.
        constraints: constraints on the stimulus.
        starts: initial stimuli as deviations from grey, one for each unit.
        units: indices of the units among the neurons that ``rates`` predicts.
        config: settings.
        batch_size: number of units in a batch.
        progress: whether to show a progress bar.
    """
    draw = named_generator(config.seed, "jitter")
    shifts = draw.integers(-config.jitter, config.jitter + 1, (config.steps, 2)).tolist()
    stimuli, courses, raised = [], [], []
    total = config.steps * len(units)
    with tqdm(total=total, desc=f"{presentation.kind}s", unit="step", disable=not progress) as bar:
        for first in range(0, len(units), batch_size):
            own = torch.as_tensor(units[first : first + batch_size])
            now = constraints.projected(starts[first : first + batch_size])
            norm = constraints.contrast * now[0].numel() ** 0.5
            start, course = now, []

            def response(deviations: Tensor, own: Tensor = own) -> Tensor:
                shown = rates(presentation.clips(deviations))
                return presentation.responses(shown).cpu()[torch.arange(len(own)), own]

            for step, shift in enumerate(shifts):
                with torch.enable_grad():
                    seen = now.detach().requires_grad_(True)
                    reached = response(shifted(seen, shift))
                    (gradient,) = torch.autograd.grad(reached.sum(), seen)
                direction = constraints.smoothed(gradient)
                length = direction.flatten(1).norm(dim=1)[:, None, None, None]
                # The gradient is zero if a rate is at its floor or saturated.
                steep = torch.isfinite(length) & (length > 0)
                stride = config.step_size * (1 - step / config.steps) * norm
                change = torch.where(steep, stride * direction / length.clamp(min=1e-38), 0)
                now = constraints.projected(now + change)
                course.append(reached.detach())
                bar.update(len(own))
            with torch.no_grad():
                before, after = response(start), response(now)
            higher = after > before
            stimuli.append(torch.where(higher[:, None, None, None], now, start))
            course.append(torch.where(higher, after, before))
            courses.append(torch.stack(course, 1))
            raised.append(higher)
    return Ascent(torch.cat(stimuli), torch.cat(courses), torch.cat(raised))


def shifted(deviations: Float[Tensor, "b T H W"], shift: Sequence[int]) -> Float[Tensor, "b T H W"]:
    """Shift stimuli by whole pixels down and to the right; grey fills the edges."""
    down, right = shift
    # Padding by a negative number crops.
    return F.pad(deviations, (right, -right, down, -down))
