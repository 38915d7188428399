"""Modulators: modules that change an encoder's tokens by behaviour, at each time step.

- ConvGRU: a recurrent state on the token grid, driven by tokens and behaviour
- FiLM: a gain and an offset for each channel, computed from current behaviour

Both take behaviour at the encoder's frame rate. With a stride of s frames from one token to the
next, token i gets the concatenated behaviour of frames i·s to (i + 1)·s − 1. A new modulator is the
identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.settings import check_least, check_type

ModulatorKind = Literal["convgru", "film", "none"]


@dataclass(frozen=True)
class ModulatorConfig:
    """Settings of the modulator between encoder and readouts.

    Args:
        kind: ``convgru``, ``film`` or ``none``. With ``none``, behaviour is ignored.
        hidden: channels of the ConvGRU's state. None means the width of the encoder's tokens.
        kernel: width of the ConvGRU's kernels in tokens; must be odd.
        embedding: width of the embedding of behaviour.
        gain: whether the ConvGRU's state also scales the channels of the tokens, as FiLM does. If
            false, it is only added to the tokens.
    """

    kind: ModulatorKind = "convgru"
    hidden: int | None = None
    kernel: int = 3
    embedding: int = 64
    gain: bool = False

    def __post_init__(self) -> None:
        check_type("modulator.kind", self.kind, ModulatorKind)
        if self.hidden is not None and self.hidden < 1:
            raise NeuralModelError(f"modulator.hidden {self.hidden} must be at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise NeuralModelError(f"modulator.kernel {self.kernel} must be odd and positive")
        check_least(self, "model.modulator.", embedding=1)


class BehaviourEmbedding(nn.Module):
    """Embedding of the behaviour during each token's frames, one vector for each token.

    Args:
        channels: number of behaviour channels.
        stride: frames from one token to the next.
        width: width of the vector.
    """

    def __init__(self, channels: int, stride: int, width: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(stride * channels, width)

    def forward(self, behaviour: Float[Tensor, "b T k"]) -> Float[Tensor, "b t e"]:
        """Return one vector for each token; frames of an incomplete last token are ignored."""
        whole = behaviour.shape[1] // self.stride * self.stride
        windows = rearrange(behaviour[:, :whole], "b (t s) k -> b t (s k)", s=self.stride)
        return F.gelu(self.linear(windows))


class ConvGRU(nn.Module):
    """Convolutional GRU that modulates tokens (Ballas et al. 2016, arXiv 1511.06432).

    With x the tokens, b the embedded behaviour and ∗ a convolution over space,

        r, z = σ(W ∗ x + V b + U ∗ h)
        n = tanh(W ∗ x + V b + r · (U ∗ h))
        h ← (1 − z) · n + z · h

    The reset gate is applied after the convolution, as in cuDNN's GRU, so one convolution per step
    serves all three gates. The input convolutions of all time steps are computed in one call before
    the recurrence. A projection of h gives each channel of a token an offset and, with ``gain``, a
    factor. The projection starts at zero. The state is at least float32, also under autocast. If it
    were rounded to bfloat16 at every step, it would drift by several percent over a clip.

    Args:
        channels: width of the tokens.
        behaviour_channels: number of behaviour channels; 0 for none.
        stride: frames from one token to the next.
        hidden: channels of the state. None means ``channels``.
        kernel: width of the convolutions in tokens; must be odd.
        embedding: width of the embedding of behaviour.
        gain: whether the state also scales the tokens. If false, it is only added to them.
    """

    def __init__(
        self,
        channels: int,
        behaviour_channels: int = 0,
        stride: int = 1,
        *,
        hidden: int | None = None,
        kernel: int = 3,
        embedding: int = 64,
        gain: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden or channels
        self.behaviour_channels, self.stride, self.hidden = behaviour_channels, stride, hidden
        self.settings = {
            "channels": channels, "behaviour_channels": behaviour_channels, "stride": stride,
            "hidden": hidden, "kernel": kernel, "embedding": embedding, "gain": gain,
        }  # fmt: skip
        self.gain = gain
        self._step: Callable[..., Tensor] = _step
        self.input = nn.Conv2d(channels, 3 * hidden, kernel, padding=kernel // 2)
        self.recurrent = nn.Conv2d(hidden, 3 * hidden, kernel, padding=kernel // 2)
        self.project = nn.Conv2d(hidden, 2 * channels if gain else channels, 1)
        self.behaviour: BehaviourEmbedding | None = None
        self.of_behaviour: nn.Linear | None = None
        if behaviour_channels:
            self.behaviour = BehaviourEmbedding(behaviour_channels, stride, embedding)
            self.of_behaviour = nn.Linear(embedding, 3 * hidden, bias=False)
        for layer in (self.input, self.recurrent):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(
        self,
        map: Float[Tensor, "b d t h w"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        state: Float[Tensor, "b e h w"] | None = None,
    ) -> tuple[Float[Tensor, "b d t h w"], Float[Tensor, "b e h w"]]:
        """Modulate the tokens of a clip.

        Args:
            map: tokens.
            behaviour: standardised, at least ``stride`` frames for each token. None means the mean,
                which is zero.
            state: state that an earlier call returned for the preceding tokens. None starts at
                zero.

        Returns:
            The modulated tokens, and the state after the last of them.
        """
        drive = self.drive(map, behaviour)
        if state is None:
            wide = torch.promote_types(drive.dtype, torch.float32)
            shape = (map.shape[0], self.hidden, *map.shape[3:])
            state = drive.new_zeros(shape, dtype=wide)
        with torch.autocast(map.device.type, enabled=False):
            states = _recurrence(self._step, drive, state, self.recurrent)
        seen = rearrange(states, "t b e h w -> (t b) e h w")
        change = self.project(seen.to(drive.dtype))
        change = rearrange(change, "(t b) d h w -> b d t h w", b=len(map))
        if self.gain:
            factor, change = change.chunk(2, dim=1)
            map = map * (1 + factor)
        return map + change, states[-1]

    def drive(
        self, map: Float[Tensor, "b d t h w"], behaviour: Float[Tensor, "b T k"] | None
    ) -> Float[Tensor, "t b gates h w"]:
        """Return the input from tokens and behaviour to the three gates at all time steps.

        The result is (t, b, 3 · hidden, h, w).
        """
        frames = rearrange(map, "b d t h w -> (t b) d h w")
        drive = rearrange(self.input(frames), "(t b) g h w -> t b g h w", b=len(map))
        if self.behaviour is None or self.of_behaviour is None:
            return drive
        if behaviour is None:
            behaviour = map.new_zeros(len(map), map.shape[2] * self.stride, self.behaviour_channels)
        gates = self.of_behaviour(self.behaviour(behaviour))
        return drive + rearrange(gates, "b t g -> t b g 1 1")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile one step of the recurrence. A compiled loop over steps would be unrolled.

        Args:
            args: arguments of ``torch.compile``.
            kwargs: keyword arguments of ``torch.compile``.
        """
        self._step = torch.compile(_step, *args, **kwargs)

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {"kind": "convgru", **self.settings}


@torch.compiler.disable(recursive=False)
def _recurrence(
    step: Callable[..., Tensor],
    drive: Float[Tensor, "t b gates h w"],
    state: Float[Tensor, "b e h w"],
    recurrent: nn.Conv2d,
) -> Float[Tensor, "t b e h w"]:
    """Return the states of the GRU at all time steps, in the precision of ``state``.

    Convolutions are computed in the precision of ``drive``.
    """
    assert recurrent.bias is not None
    weight, bias = recurrent.weight.to(drive.dtype), recurrent.bias.to(drive.dtype)
    states = []
    for each in drive.to(state.dtype):
        state = step(each, state, weight, bias)
        states.append(state)
    return torch.stack(states)


def _step(
    drive: Float[Tensor, "b gates h w"],
    state: Float[Tensor, "b e h w"],
    weight: Float[Tensor, "gates e k k"],
    bias: Float[Tensor, " gates"],
) -> Float[Tensor, "b e h w"]:
    sent = F.conv2d(state.to(weight.dtype), weight, bias, padding=weight.shape[-1] // 2)
    return gru_step(drive, sent, state)


def gru_step(
    drive: Float[Tensor, "b gates h w"],
    recurrent: Float[Tensor, "b gates h w"],
    state: Float[Tensor, "b e h w"],
) -> Float[Tensor, "b e h w"]:
    """Return the next state of the GRU.

    Channels of the inputs are in the order reset gate, update gate, candidate state.

    Args:
        drive: input from tokens and behaviour to the gates.
        recurrent: input from the previous state to the gates.
        state: the previous state.
    """
    e = state.shape[1]
    reset, update = torch.sigmoid(drive[:, : 2 * e] + recurrent[:, : 2 * e]).chunk(2, dim=1)
    candidate = torch.tanh(torch.addcmul(drive[:, 2 * e :], reset, recurrent[:, 2 * e :]))
    return torch.lerp(candidate, state, update)


class FiLM(nn.Module):
    """Gain and offset of each channel by behaviour (FiLM; Perez et al. 2018, arXiv 1709.07871).

    For the arguments see :class:`ConvGRU`.

    Raises:
        NeuralModelError: if ``behaviour_channels`` is 0.
    """

    def __init__(
        self, channels: int, behaviour_channels: int, stride: int = 1, *, embedding: int = 64
    ) -> None:
        super().__init__()
        if not behaviour_channels:
            raise NeuralModelError(
                "modulator.kind 'film' needs behaviour, but the sessions contain no behaviour; set "
                "it to 'convgru' or 'none'"
            )
        self.behaviour_channels, self.stride = behaviour_channels, stride
        self.settings = {
            "channels": channels, "behaviour_channels": behaviour_channels, "stride": stride,
            "embedding": embedding,
        }  # fmt: skip
        self.behaviour = BehaviourEmbedding(behaviour_channels, stride, embedding)
        self.project = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self,
        map: Float[Tensor, "b d t h w"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        state: None = None,
    ) -> tuple[Float[Tensor, "b d t h w"], None]:
        """Return modulated tokens and None in place of a state; see :meth:`ConvGRU.forward`."""
        if behaviour is None:
            behaviour = map.new_zeros(len(map), map.shape[2] * self.stride, self.behaviour_channels)
        changes = rearrange(self.project(self.behaviour(behaviour)), "b t d -> b d t 1 1")
        gain, offset = changes.chunk(2, dim=1)
        return map * (1 + gain) + offset, None

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {"kind": "film", **self.settings}


def build_modulator(
    config: ModulatorConfig, channels: int, behaviour_channels: int, stride: int
) -> ConvGRU | FiLM | None:
    """Build the modulator that a config describes. Return None if the kind is ``none``.

    Args:
        config: the settings.
        channels: width of the encoder's tokens.
        behaviour_channels: number of behaviour channels; 0 for none.
        stride: frames from one token to the next.

    Raises:
        NeuralModelError: for FiLM without behaviour.
    """
    if config.kind == "convgru":
        return ConvGRU(
            channels, behaviour_channels, stride,
            hidden=config.hidden, kernel=config.kernel, embedding=config.embedding,
            gain=config.gain,
        )  # fmt: skip
    if config.kind == "film":
        return FiLM(channels, behaviour_channels, stride, embedding=config.embedding)
    return None
