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
"""Pixels from 0 to 255 → rates of all neurons in every frame, each clip by itself; differentiable."""


@dataclass(frozen=True)
class AscentConfig:
    """Settings of the ascent.

    Args:
        steps: of the ascent.
        step_size: length of the first step as a share of the stimulus' norm; later steps are
            shorter, down to nothing.
        jitter: pixels by which each step moves the stimulus at most, up, down and to the sides.
        seed: of the movements.
    """

    steps: int = 25
    step_size: float = 0.3
    jitter: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Ascent:
    """Stimuli that were found for n units.

    Attributes:
        deviations: (n, T, H, W), from grey.
        responses: (n, steps + 1), before each step, with its movement, and of the stimulus itself.
        raised: (n,), False for a unit whose response no ascent raised, as it has no gradient or sees
            nothing but what jitter and smoothing take away; its stimulus is the start.
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
    """Change stimuli until the responses of their units are as large as can be.

    A step goes along the smoothed gradient, whatever its length, and back to the contrast and the
    range of pixels (projected gradient ascent, as Walker et al. 2019, Nat. Neurosci. 22:2060). Units
    of a batch do not see each other.

    Args:
        rates: the model.
        presentation: how a stimulus is shown.
        constraints: on the stimulus.
        starts: deviations from grey, one for each unit.
        units: places of the neurons among those that are predicted.
        config: settings.
        batch_size: units at once.
        progress: whether to show a bar.
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
                # A rate that is at its floor, and every unit where it saturates, has no gradient.
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
    """Move stimuli by whole pixels down and to the right; grey comes in at the edges."""
    down, right = shift
    # Padding by a negative number cuts off.
    return F.pad(deviations, (right, -right, down, -down))
