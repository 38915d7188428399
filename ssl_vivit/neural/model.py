"""NeuralModel: video and behaviour → the rate of every neuron in every frame.

    video ─ adapter ─▶ encoder ─▶ tokens ─ modulator ─▶ held to frames ─▶ + ─ readout ─▶ rates
               │                               ▲                          ▲
               │                           behaviour                      │
               └──────────────────────▶ frame stream ─────────────────────┘

- causal exactly: the rate at frame t has no gradient to any later frame or later behaviour
- frame t reads the last token that ended by then, and the frame stream, which ends at t itself
- an encoder that was trained at another frame rate gets the stimulus resampled to its own
- one readout for each session; everything before it is shared
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.data.to_device import to_device
from ssl_vivit.encoders import ViViT
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.block_reader import BlockReader, block_reader
from ssl_vivit.neural.cores.feature_cache import FeatureCache, is_fixed
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.frame_stream import FrameStream
from ssl_vivit.neural.cores.past import Past, after_past
from ssl_vivit.neural.cores.vivit_core import ViViTCore, core_of
from ssl_vivit.neural.modulators import ConvGRU
from ssl_vivit.neural.nonlinearity import Nonlinearity, rate_of
from ssl_vivit.settings import check_type


class NeuralModel(nn.Module):
    """A causal model of recorded neurons.

    Args:
        encoder: a causal :class:`ViViT`, or another module with the protocol of
            :class:`ssl_vivit.neural.cores.vivit_core.Core`.
        adapter: resampling of the stimulus before all else; None for none.
        modulator: :class:`ConvGRU`, :class:`FiLM` or None. Without one, behaviour is left out.
        readouts: session → a module with ``forward(map, pupil_centre) → (b, t, neurons)``, linear.
            One that reads more than a frame's own map has ``looks_back = True`` and takes ``past``,
            as :class:`LinearReadout` does.
        nonlinearity: from drive to rate: ``softplus``, or ``elu``, which is ELU + 1.
        frame_stream: add a convolution at full frame rate to the tokens of a ViViT. Without it a
            rate depends on frames up to the end of the last whole tubelet alone.
        stream_filters: space-time filters of the frame stream.
        stream_frames: frames that the frame stream sees; None for as many as a token's step takes,
            at the lowest of the sessions' rates.
        frame_rates: session → its rate and the encoder's, where the stimulus is resampled for the
            encoder (:func:`ssl_vivit.neural.cores.frame_rates.match_fps`); other sessions are not.
        layers: blocks of a ViViT whose tokens are read: None for the last; the number of one,
            negative from the end; several, or ``all``, for a sum with learned weights.

    Attributes:
        sessions: names, in the order of their readouts.
        block_reader: reads blocks of the encoder; None where the last one alone is read.
        cache: keeps what a frozen encoder returns, or the whole map where modulator and frame stream
            are frozen as well; None, the default, keeps nothing.

    Raises:
        NeuralModelError: for parts that do not fit each other, and an encoder that is not causal.
    """

    def __init__(
        self,
        encoder: nn.Module,
        adapter: nn.Module | None = None,
        modulator: nn.Module | None = None,
        readouts: Mapping[str, nn.Module] | None = None,
        *,
        nonlinearity: Nonlinearity = "softplus",
        frame_stream: bool = True,
        stream_filters: int = 64,
        stream_frames: int | None = None,
        frame_rates: Mapping[str, FrameRates | None] | None = None,
        layers: int | Sequence[int] | Literal["all"] | None = None,
    ) -> None:
        super().__init__()
        check_type("nonlinearity", nonlinearity, Nonlinearity)
        core = core_of(encoder)
        self.encoder = encoder
        self.cache: FeatureCache | None = None
        self.block_reader: BlockReader | None = None
        if isinstance(core, ViViTCore):
            self.block_reader = block_reader(core.encoder, layers)
        elif layers is not None:
            raise NeuralModelError(
                f"model.layers {layers} names blocks of a ViViT, and the core is a "
                f"{type(encoder).__name__}; leave it at null, or take --core vivit"
            )
        self.adapter = adapter
        self.modulator = modulator
        self.nonlinearity: Nonlinearity = nonlinearity
        self.set_readouts(readouts or {}, frame_rates)
        self.frame_stream: FrameStream | None = None
        if isinstance(core, ViViTCore):
            if frame_stream:
                self.frame_stream = self._stream_for(core, stream_filters, stream_frames)
        elif core.temporal_stride != 1:
            raise NeuralModelError(
                f"{type(encoder).__name__} has temporal_stride {core.temporal_stride}; cores "
                "beside ViViT must give one step of the map for each frame"
            )

    def set_readouts(
        self,
        readouts: Mapping[str, nn.Module],
        frame_rates: Mapping[str, FrameRates | None] | None = None,
    ) -> None:
        """Read the neurons of these sessions and no others; all before the readouts stays as it is.

        Args:
            readouts: as of the constructor.
            frame_rates: as of the constructor.

        Raises:
            NeuralModelError: for no readouts, or rates of other sessions.
        """
        if not readouts:
            raise NeuralModelError("readouts is empty; give one for each session")
        self.sessions = tuple(readouts)
        # A ModuleDict takes no names with dots.
        self.session_readouts = nn.ModuleList(readouts.values())
        given = dict(frame_rates or {})
        unknown = [name for name in given if name not in self.sessions]
        if unknown:
            raise NeuralModelError(
                f"frame_rates names {', '.join(unknown)}; the readouts are of "
                f"{', '.join(self.sessions)}"
            )
        self.frame_rates = {name: given.get(name) for name in self.sessions}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the encoder, and the step of a :class:`ConvGRU`; other parts vary with the session.

        Args:
            args: as of ``torch.compile``.
            kwargs: as of ``torch.compile``.
        """
        self.encoder.compile(*args, **kwargs)
        if isinstance(self.modulator, ConvGRU):
            self.modulator.compile(*args, **kwargs)

    def _stream_for(self, core: ViViTCore, filters: int, frames: int | None) -> FrameStream:
        config = core.encoder.config
        stride = core.temporal_stride
        # As long as the encoder may be silent, in recorded frames.
        span = frames or max(
            stride if rates is None else rates.span(stride) for rates in self.frame_rates.values()
        )
        return FrameStream(
            config.in_channels,
            core.channels,
            (span, *config.kernel_size[1:]),
            config.kernel_stride[1:],
            padding=config.padding_of(config.num_frames, *config.image_size)[1:],
            hidden=filters,
            behaviour_channels=self.behaviour_channels,
        )

    @property
    def readouts(self) -> dict[str, nn.Module]:
        """Session → its readout."""
        return dict(zip(self.sessions, self.session_readouts, strict=True))

    @property
    def behaviour_channels(self) -> int:
        """Channels of behaviour that the model takes; 0 where it takes none."""
        return getattr(self.modulator, "behaviour_channels", 0)

    def forward(
        self,
        video: Float[Tensor, "b c T H W"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        session: str | None = None,
        pupil_centre: Float[Tensor, "b T 2"] | None = None,
    ) -> Float[Tensor, "b T neurons"]:
        """Expected response in every frame.

        Args:
            video: standardised as the session's facts say.
            behaviour: standardised; None stands for its mean. Not used without a modulator.
            session: whose neurons; None where there is one session.
            pupil_centre: standardised, where the readout shifts with it.

        Raises:
            NeuralModelError: for an unknown session, or behaviour of another shape.
        """
        # An unknown session is refused before the encoder has worked.
        session = self.session_named(session)
        return self.read(self.core(video, behaviour, session), session, pupil_centre)

    def core(
        self,
        video: Float[Tensor, "b c T H W"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        session: str | None = None,
        clips: Sequence[int] | None = None,
        patch_draw: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b d T h w"]:
        """The feature map in every frame, shared by all sessions of one frame rate.

        Args:
            video: as of :meth:`forward`.
            behaviour: as of :meth:`forward`.
            session: any whose ``frame_rates`` hold; None where all have the same.
            clips: for each row of behaviour and of what is returned the place of its movie in
                ``video``, where several show one movie, which is then encoded once; None is one
                row for each movie.
            patch_draw: random numbers for the patch dropout of a ViViT, a row for each movie, as of
                :meth:`ViViT.forward`; None draws them from torch's generator.

        Raises:
            NeuralModelError: as of :meth:`forward`, and for no session where rates differ.
        """
        shown = None if clips is None else to_device(torch.as_tensor(clips), video.device)
        behaviour = self._checked(behaviour, video, len(video) if shown is None else len(shown))
        rates = self._rates_of(session)
        parts = [part for name, part in self.named_children() if name != "session_readouts"]
        # Where nothing follows the tokens, they are kept, which take less memory than the map.
        follows = self.modulator is not None or self.frame_stream is not None
        if self.cache is None or not follows or not is_fixed(parts):
            return self._map(video, behaviour, rates, shown, patch_draw, self.cache)
        return self.cache.features(
            parts,
            partial(self._map, rates=rates),
            video if shown is None else video[shown],
            behaviour,
            about=rates,
        )

    def _map(
        self,
        video: Float[Tensor, "b c T H W"],
        behaviour: Float[Tensor, "b T k"] | None,
        rates: FrameRates | None,
        shown: Int[Tensor, " clips"] | None = None,
        patch_draw: Float[Tensor, "b n"] | None = None,
        cache: FeatureCache | None = None,
    ) -> Float[Tensor, "b d T h w"]:
        """Compute the feature map, from cached tokens where there are any."""
        if self.adapter is not None:
            video = self.adapter(video)
        tokens, seen = self.tokens(video, behaviour, rates, shown, patch_draw, cache)
        # Slot 0 is for frames before the first token has ended.
        held = F.pad(tokens, (0, 0, 0, 0, 1, 0)).index_select(2, seen)
        if self.frame_stream is None:
            return held
        return held + self.frame_stream(video if shown is None else video[shown], behaviour)

    def tokens(
        self,
        video: Float[Tensor, "b c T H W"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        rates: FrameRates | None = None,
        clips: Int[Tensor, " clips"] | None = None,
        patch_draw: Float[Tensor, "b n"] | None = None,
        cache: FeatureCache | None = None,
    ) -> tuple[Float[Tensor, "b d t h w"], Tensor]:
        """Modulated tokens of adapted video, and how many of them have ended by each frame.

        What a frozen encoder gives is taken from ``cache`` where it is known.
        """
        core = core_of(self.encoder, self.block_reader)
        frames = video.shape[2]
        ended = torch.arange(1, frames + 1, device=video.device)
        if rates is not None:
            shown = rates.shown(frames, video.device)
            ended = rates.seen(frames, video.device)
            video = video[:, :, shown]
            behaviour = None if behaviour is None else behaviour[:, shown]
        compute: Callable[..., Tensor] = core.dense
        if isinstance(core, ViViTCore):
            compute = partial(core.maps, patch_draw=patch_draw)
        tokens = compute(video) if cache is None else cache.features([self.encoder], compute, video)
        if isinstance(core, ViViTCore):
            tokens = core.mixed(tokens)
        if clips is not None:
            tokens = tokens[clips]
        if self.modulator is not None and tokens.shape[2]:
            tokens, _ = self.modulator(tokens, behaviour)
        return tokens, ended // core.temporal_stride

    @torch.no_grad()
    def step(
        self,
        frame: Float[Tensor, "b c 1 H W"],
        past: Past,
        behaviour: Float[Tensor, "b 1 k"] | None = None,
        session: str | None = None,
        pupil_centre: Float[Tensor, "b 1 2"] | None = None,
    ) -> Float[Tensor, "b 1 neurons"]:
        """Expected response in the next frame of a stream, as :meth:`forward` gives for the whole.

        Args:
            frame: the next one; other arguments as of :meth:`forward`.
            past: of the frames before it; a new one for the first frame.

        Raises:
            NeuralModelError: as of :meth:`forward`, for a core that has no step, and beyond the end
                of learned positions in time.
        """
        session = self.session_named(session)
        behaviour = self._checked(behaviour, frame, len(frame))
        if self.adapter is not None:
            frame = self.adapter(frame)
        map = self._newest_tokens(frame, behaviour, self.frame_rates[session], past)
        if self.frame_stream is not None:
            map = map + self.frame_stream(frame, behaviour, past)
        past.frames += 1
        return self.read(map, session, pupil_centre, past=past)

    def _newest_tokens(
        self,
        frame: Float[Tensor, "b c 1 H W"],
        behaviour: Float[Tensor, "b 1 k"] | None,
        rates: FrameRates | None,
        past: Past,
    ) -> Float[Tensor, "b d 1 h w"]:
        """The last modulated tokens that have ended by a frame; zeros where none have."""
        core: Any = core_of(self.encoder, self.block_reader)
        before, shown = past.frames, past.frames + 1
        if rates is not None:
            before, shown = rates.resampled(before), rates.resampled(shown)
        if isinstance(core, ViViTCore):
            core.check_length(shown // core.temporal_stride)
        elif not hasattr(core, "step"):
            raise NeuralModelError(
                f"{type(self.encoder).__name__} cannot be streamed; give it step(frame, past)"
            )
        newest = past.kept.get((self, "tokens"))
        for _ in range(shown - before):
            tokens = core.step(frame, past)
            signals = None
            if behaviour is not None:
                earlier, key = core.temporal_stride - 1, (self, "behaviour")
                signals = after_past(behaviour.mT, earlier, key, past).mT
            if tokens is not None and self.modulator is not None:
                state = past.kept.get(self.modulator)
                tokens, past.kept[self.modulator] = self.modulator(tokens, signals, state)
            newest = newest if tokens is None else tokens
        if newest is None:
            newest = F.pad(core.dense(frame[:, :, :0]), (0, 0, 0, 0, 1, 0))
        past.kept[self, "tokens"] = newest
        return newest

    @contextmanager
    def attention_window(self, steps: int | None) -> Iterator[None]:
        """Within the block, tokens of a ViViT attend to the last so many time steps alone.

        Features that are kept in the cache are of all steps, so it is not used.

        Args:
            steps: as of :meth:`ViViT.attention_window`; None changes nothing. Other cores have no
                attention.
        """
        if steps is None or not isinstance(self.encoder, ViViT):
            yield
            return
        cache, self.cache = self.cache, None
        try:
            with self.encoder.attention_window(steps):
                yield
        finally:
            self.cache = cache

    def read(
        self,
        map: Float[Tensor, "b d T h w"] | Float[Tensor, "b d h w"],
        session: str | None = None,
        pupil_centre: Float[Tensor, "b T 2"] | Float[Tensor, "b 2"] | None = None,
        noise: Float[Tensor, "b neurons 2"] | None = None,
        past: Past | None = None,
    ) -> Float[Tensor, "b T neurons"] | Float[Tensor, "b neurons"]:
        """Rates of one session's neurons from a feature map, of all frames or of one.

        Args:
            map: as of :meth:`core`.
            session: as of :meth:`forward`.
            pupil_centre: as of :meth:`forward`.
            noise: for a :class:`GaussianReadout`, which draws positions in training by it; other
                readouts take none.
            past: of the frames before, in a stream.
        """
        readout = self.readout(session)
        given: dict[str, Any] = {} if noise is None else {"noise": noise}
        if past is not None and getattr(readout, "looks_back", False):
            given["past"] = past
        drive = readout(map, pupil_centre, **given)
        # The exponential tail has few digits in half precision.
        drive = drive.float() if drive.dtype in (torch.float16, torch.bfloat16) else drive
        return rate_of(drive, self.nonlinearity)

    def readout(self, session: str | None = None) -> nn.Module:
        """The readout of a session."""
        return self.readouts[self.session_named(session)]

    def session_named(self, session: str | None) -> str:
        """A session's name, None being the only one.

        Raises:
            NeuralModelError: for a name that the model does not have, or None among several.
        """
        if session is None and len(self.sessions) == 1:
            return self.sessions[0]
        if session not in self.sessions:
            asked = "no session is named" if session is None else f"session {session!r} is unknown"
            raise NeuralModelError(f"{asked}; the model has {', '.join(self.sessions)}")
        return session

    def _rates_of(self, session: str | None) -> FrameRates | None:
        if session is not None:
            return self.frame_rates[self.session_named(session)]
        different = set(self.frame_rates.values())
        if len(different) > 1:
            raise NeuralModelError(
                "sessions of this model have different frame rates; say which session it is"
            )
        return different.pop()

    def _checked(self, behaviour: Tensor | None, video: Tensor, clips: int) -> Tensor | None:
        if not self.behaviour_channels:
            return None
        expected = (clips, video.shape[2], self.behaviour_channels)
        if behaviour is None:
            # Zeros, not nothing: DistributedDataParallel wants a gradient for every parameter.
            return video.new_zeros(expected)
        if behaviour.shape != expected:
            raise NeuralModelError(
                f"behaviour of shape {tuple(behaviour.shape)} is not (B, T, channels) = {expected}"
            )
        return behaviour
