"""NeuralModel: predicts the rate of every neuron in every frame from video and behaviour.

    video ─ adapter ─▶ encoder ─▶ tokens ─ modulator ─▶ last per frame ─▶ + ─ readout ─▶ rates
               │                               ▲                          ▲
               │                           behaviour                      │
               └──────────────────────▶ frame stream ─────────────────────┘

- The model is causal: the rate at frame t does not depend on later frames or later behaviour.
- Frame t reads the last token whose frames end by t, and the frame stream, which includes frame t.
- For an encoder that was trained at another frame rate, the stimulus is resampled to that rate.
- Each session has its own readout. All parts before the readouts are shared.
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
        encoder: a causal :class:`ViViT`, or another module that follows the protocol
            :class:`ssl_vivit.neural.cores.vivit_core.Core`.
        adapter: resampling of the stimulus before all other parts. None leaves it unchanged.
        modulator: :class:`ConvGRU`, :class:`FiLM` or None. Without a modulator behaviour is
            ignored.
        readouts: session → linear module with ``forward(map, pupil_centre) → (b, t, neurons)``. A
            readout that needs the maps of earlier frames must set ``looks_back = True`` and accept
            ``past``, as :class:`LinearReadout` does.
        nonlinearity: function from drive to rate: ``softplus``, or ``elu``, which means ELU + 1.
        frame_stream: add a convolution at full frame rate to the tokens of a ViViT. Without it, a
            rate depends only on frames up to the end of the last complete tubelet.
        stream_filters: number of space-time filters of the frame stream.
        stream_frames: number of recorded frames that the frame stream sees. None means the longest
            time between two tokens in any session.
        frame_rates: session → resampling of its stimulus for the encoder
            (:func:`ssl_vivit.neural.cores.frame_rates.match_fps`). Sessions without an entry, or
            with None, are not resampled.
        layers: blocks of a ViViT whose tokens are read. None means the last block. A number selects
            one block; negative numbers count from the end. Several numbers, or ``all``, select
            blocks whose tokens are summed with learned weights.

    Attributes:
        sessions: names of the sessions, in the order of their readouts.
        block_reader: reads blocks of the encoder. None if only the last block is read.
        cache: stores the output of a frozen encoder, or the whole feature map if modulator and
            frame stream are frozen as well. None, the default, disables caching.

    Raises:
        NeuralModelError: if parts do not fit each other, or the encoder is not causal.
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
                f"model.layers {layers} names blocks of a ViViT, but the core is a "
                f"{type(encoder).__name__}; set model.layers to null, or use --core vivit"
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
                f"{type(encoder).__name__} has temporal_stride {core.temporal_stride}; cores other "
                "than ViViT must return one step of the map for each frame (temporal_stride 1)"
            )

    def set_readouts(
        self,
        readouts: Mapping[str, nn.Module],
        frame_rates: Mapping[str, FrameRates | None] | None = None,
    ) -> None:
        """Replace all readouts, and with them the sessions; other parts of the model are unchanged.

        Args:
            readouts: see the constructor.
            frame_rates: see the constructor.

        Raises:
            NeuralModelError: if ``readouts`` is empty, or ``frame_rates`` names a session without
                readout.
        """
        if not readouts:
            raise NeuralModelError("readouts is empty; give a readout for each session")
        self.sessions = tuple(readouts)
        # A ModuleDict does not accept names with dots.
        self.session_readouts = nn.ModuleList(readouts.values())
        given = dict(frame_rates or {})
        unknown = [name for name in given if name not in self.sessions]
        if unknown:
            raise NeuralModelError(
                f"frame_rates has unknown sessions {', '.join(unknown)}; the readouts are for "
                f"{', '.join(self.sessions)}"
            )
        self.frame_rates = {name: given.get(name) for name in self.sessions}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the encoder and the step of a :class:`ConvGRU`.

        Other parts are not compiled, since they differ between sessions.

        Args:
            args: arguments of ``torch.compile``.
            kwargs: keyword arguments of ``torch.compile``.
        """
        self.encoder.compile(*args, **kwargs)
        if isinstance(self.modulator, ConvGRU):
            self.modulator.compile(*args, **kwargs)

    def _stream_for(self, core: ViViTCore, filters: int, frames: int | None) -> FrameStream:
        config = core.encoder.config
        stride = core.temporal_stride
        # The longest time between two tokens, in recorded frames.
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
        """Readout modules by name of the session."""
        return dict(zip(self.sessions, self.session_readouts, strict=True))

    @property
    def behaviour_channels(self) -> int:
        """Number of behaviour channels that the model uses; 0 without a modulator."""
        return getattr(self.modulator, "behaviour_channels", 0)

    def forward(
        self,
        video: Float[Tensor, "b c T H W"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        session: str | None = None,
        pupil_centre: Float[Tensor, "b T 2"] | None = None,
    ) -> Float[Tensor, "b T neurons"]:
        """Return the expected response of each neuron in every frame.

        Args:
            video: standardised with the mean and standard deviation of the session's facts.
            behaviour: standardised. None means the session's mean in all frames. Ignored without a
                modulator.
            session: name of the session whose neurons are predicted. None if the model has one
                session.
            pupil_centre: standardised, for a readout that shifts with the pupil.

        Raises:
            NeuralModelError: if the session is unknown, or behaviour has the wrong shape.
        """
        # Refuse an unknown session before the encoder runs.
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
        """Return the feature map of every frame.

        The map depends on the session only by the session's frame rate.

        Args:
            video: see :meth:`forward`.
            behaviour: see :meth:`forward`.
            session: name of the session whose resampling of the stimulus applies. None if all
                sessions have equal resampling.
            clips: for each clip of ``behaviour`` and of the result, the index of its movie in
                ``video``. Several clips may use one movie, which is then encoded once. None means
                one clip for each movie.
            patch_draw: random numbers for the patch dropout of a ViViT, one row for each movie; see
                :meth:`ViViT.forward`. None draws them from torch's generator.

        Raises:
            NeuralModelError: for the errors of :meth:`forward`, or if ``session`` is None and frame
                rates differ between sessions.
        """
        shown = None if clips is None else to_device(torch.as_tensor(clips), video.device)
        behaviour = self._checked(behaviour, video, len(video) if shown is None else len(shown))
        rates = self._rates_of(session)
        parts = [part for name, part in self.named_children() if name != "session_readouts"]
        # If nothing follows the tokens, cache the tokens, which take less memory than the map.
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
        """Compute the feature map; a frozen encoder's output is taken from ``cache`` if stored."""
        if self.adapter is not None:
            video = self.adapter(video)
        tokens, seen = self.tokens(video, behaviour, rates, shown, patch_draw, cache)
        # Index 0 is for frames before the end of the first token.
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
        """Return modulated tokens, and for each frame the number of their time steps ended by then.

        The adapter must already have been applied to ``video``. The output of a frozen encoder is
        taken from ``cache`` if it is stored there. ``rates`` is the resampling of the stimulus. For
        the other arguments see :meth:`core`.
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
        """Return the expected response in the next frame of a stream.

        The response equals the last frame of what :meth:`forward` returns for all frames so far.

        Args:
            frame: the next frame; for the other arguments see :meth:`forward`.
            past: state after the previous frames; a new :class:`Past` for the first frame.

        Raises:
            NeuralModelError: for the errors of :meth:`forward`, for a core without ``step``, and
                for a frame beyond the encoder's learned positions in time.
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
        """Return the modulated tokens of the last time step that ends by the given frame.

        Before the end of the first time step the tokens are zeros.
        """
        core: Any = core_of(self.encoder, self.block_reader)
        before, shown = past.frames, past.frames + 1
        if rates is not None:
            before, shown = rates.resampled(before), rates.resampled(shown)
        if isinstance(core, ViViTCore):
            core.check_length(shown // core.temporal_stride)
        elif not hasattr(core, "step"):
            raise NeuralModelError(
                f"{type(self.encoder).__name__} has no method step(frame, past), so it cannot be "
                "streamed; add this method"
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
        """Within the ``with`` block, limit a ViViT's attention to the last ``steps`` time steps.

        Cached features were computed with attention to all steps, so the cache is disabled within
        the ``with`` block.

        Args:
            steps: see :meth:`ViViT.attention_window`. None changes nothing. Ignored for other
                cores, which have no attention.
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
        """Return the rates of one session's neurons from the feature map of one or more frames.

        Args:
            map: feature map, as returned by :meth:`core`, or one of its frames.
            session: see :meth:`forward`.
            pupil_centre: see :meth:`forward`.
            noise: standard normal numbers from which a :class:`GaussianReadout` draws positions in
                training. None draws them from torch's generator. Other readouts do not accept
                noise.
            past: state after the previous frames, if the map belongs to a stream.
        """
        readout = self.readout(session)
        given: dict[str, Any] = {} if noise is None else {"noise": noise}
        if past is not None and getattr(readout, "looks_back", False):
            given["past"] = past
        drive = readout(map, pupil_centre, **given)
        # Half precision has too few digits for the exponential tail of the nonlinearity.
        drive = drive.float() if drive.dtype in (torch.float16, torch.bfloat16) else drive
        return rate_of(drive, self.nonlinearity)

    def readout(self, session: str | None = None) -> nn.Module:
        """Return the readout of a session."""
        return self.readouts[self.session_named(session)]

    def session_named(self, session: str | None) -> str:
        """Return ``session``, or the name of the only session if ``session`` is None.

        Raises:
            NeuralModelError: if the session is unknown, or is None in a model of several sessions.
        """
        if session is None and len(self.sessions) == 1:
            return self.sessions[0]
        if session not in self.sessions:
            asked = "session is None" if session is None else f"session {session!r} is unknown"
            raise NeuralModelError(
                f"{asked}; give one of the model's sessions: {', '.join(self.sessions)}"
            )
        return session

    def _rates_of(self, session: str | None) -> FrameRates | None:
        if session is not None:
            return self.frame_rates[self.session_named(session)]
        different = set(self.frame_rates.values())
        if len(different) > 1:
            raise NeuralModelError(
                "sessions of this model have different frame rates; give the argument session"
            )
        return different.pop()

    def _checked(self, behaviour: Tensor | None, video: Tensor, clips: int) -> Tensor | None:
        if not self.behaviour_channels:
            return None
        expected = (clips, video.shape[2], self.behaviour_channels)
        if behaviour is None:
            # Use zeros, since DistributedDataParallel expects a gradient for every parameter.
            return video.new_zeros(expected)
        if behaviour.shape != expected:
            raise NeuralModelError(
                f"behaviour has shape {tuple(behaviour.shape)}; it must be (B, T, channels) = "
                f"{expected}"
            )
        return behaviour
