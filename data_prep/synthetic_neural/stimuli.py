"""Grey movies for simulated neurons: a moving window over videos, and moving textures.

- Videos: CLEVRER's scenes have a busy middle and mostly empty ground at the border, where receptive
  fields would have no stimulus. So a window of 50 to 90 % of the frame's height pans and zooms over
  each clip, as gaze and walking move an animal's view.
- A video of another frame rate is resampled by showing its latest frame at each time.
- Each movie's grey levels are rescaled to one mean and contrast (by a factor of at most four).
- Textures: drifting band-passed noise, "motion clouds" (Leon et al. 2012), two of them in patches
  side by side. Directions, speeds, grain sizes and patches change about every second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from data_prep.synthetic_neural.settings import StimulusKind
from ssl_vivit.data.randomness import named_generator, permutation
from ssl_vivit.data.video.frame_times import covered_steps, frames_at
from ssl_vivit.data.video.resampling import resize_matrices
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.errors import DataError

_MEAN, _CONTRAST, _MOST_GAIN = 127.5, 50.0, 4.0
_PIXELS_FOR_ONE = 4
_GREY_OF_RGB = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Movie:
    """A movie that is shown in a trial.

    Attributes:
        number: number of the movie in its session.
        clips: numbers of the videos in the shards that the movie shows, in order; empty for a
            texture.
    """

    number: int
    clips: tuple[int, ...] = ()


class Screen:
    """Plans and draws the movies of a session; a movie depends only on the seed and its number.

    Args:
        size: (H, W) in pixels.
        frames: number of frames of a movie.
        frames_per_second: frame rate of a movie.
        seed: seed of the path of the window over videos, and of textures.
        videos: source of the clips; None if all movies are textures.
    """

    def __init__(
        self,
        size: tuple[int, int],
        frames: int,
        frames_per_second: float,
        *,
        seed: int = 0,
        videos: ShardSet | None = None,
    ) -> None:
        self.size = size
        self.frames = frames
        self.rate = frames_per_second
        self.seed = seed
        self.videos = videos

    def plan(
        self, kind: StimulusKind, train: int, held_out: int
    ) -> tuple[list[Movie], list[Movie]]:
        """Choose the movies of a session.

        With the kind ``mix``, every second movie is a texture. Other movies show videos of the
        shards. A held-out movie shares no video with any other movie. Training movies use the
        remaining videos, repeatedly if necessary.

        Args:
            kind: ``videos``, ``textures`` or ``mix``.
            train: number of movies for training.
            held_out: number of movies for validation and test.

        Returns:
            Movies for training, and held-out movies.

        Raises:
            DataError: if there are too few videos.
        """
        fresh = self._fresh_clips(kind, held_out)

        def movie(number: int, clips: _Clips) -> Movie:
            texture = kind == "textures" or (kind == "mix" and number % 2)
            return Movie(number, () if texture else clips.next_movie())

        held = [movie(number, fresh) for number in range(held_out)]
        rest = fresh.rest()
        return [movie(held_out + number, rest) for number in range(train)], held

    def show(self, movie: Movie) -> UInt8[np.ndarray, "t h w"]:
        """Return a movie's frames, (T, H, W) uint8 grey levels.

        Raises:
            DecodingError: if a clip is broken; the message names the sample.
        """
        draw = named_generator(self.seed, "movie", movie.number)
        if not movie.clips:
            return _stretched(self._texture(draw))
        shown: list[np.ndarray] = []
        for clip in movie.clips:
            shown.append(self._clip(clip, self.frames - sum(map(len, shown)), draw))
        return _stretched(np.concatenate(shown))

    def _fresh_clips(self, kind: StimulusKind, held_out: int) -> _Clips:
        if kind == "textures":
            return _Clips([], [], self.frames)
        if self.videos is None:
            raise DataError(f"--stimuli {kind} needs --videos SHARDS; or use --stimuli textures")
        order = permutation(self.seed, 0, len(self.videos)).tolist()
        lengths = [self._length(i) for i in order]
        films = (held_out + 1) // 2 if kind == "mix" else held_out
        needed = math.ceil(self.frames / max(1, min(lengths))) * films + 1
        clips = _Clips(order, lengths, self.frames)
        if clips.held_by(films) >= len(order):
            raise DataError(
                f"--videos contain {len(order)} videos, but {films} held-out movies and training "
                f"need up to {needed}: give more videos, or lower --seconds or --held-out-movies"
            )
        return clips

    def _source_rate(self, i: int) -> float:
        assert self.videos is not None
        rate = float(self.videos.fps[i])
        return rate if rate > 0 else self.rate

    def _length(self, i: int) -> int:
        """Return the number of movie frames that a video fills."""
        assert self.videos is not None
        if (times := self.videos.times(i)) is not None:
            return max(1, covered_steps(times, self.rate))
        return max(1, int(self.videos.num_frames[i] / self._source_rate(i) * self.rate))

    def _clip(self, i: int, most: int, draw: np.random.Generator) -> Float[np.ndarray, "t h w"]:
        assert self.videos is not None
        count = min(most, self._length(i))
        seconds = np.arange(count) / self.rate
        if (times := self.videos.times(i)) is not None:
            latest = frames_at(seconds, times)
        else:
            # Add a small number before rounding down, since k / 30 · 25 may be just below an
            # integer.
            latest = np.floor(seconds * self._source_rate(i) + 1e-9).astype(int)
        latest = np.minimum(latest, self.videos.num_frames[i] - 1)
        wanted, place = np.unique(latest, return_inverse=True)
        # Decode at a size at which the smallest window has more pixels than the movie, to save
        # memory.
        source = (int(self.videos.heights[i]), int(self.videos.widths[i]))
        smaller = min(
            1.0, _PIXELS_FOR_ONE * max(self.size[0] / source[0], self.size[1] / source[1])
        )
        stored = None if smaller == 1 else (round(source[0] * smaller), round(source[1] * smaller))
        colours = self.videos.frames(i, wanted.tolist(), stored)
        frames = torch.from_numpy(colours @ _GREY_OF_RGB)[place]
        top, left, height, width = (
            torch.from_numpy(edge).float()
            for edge in self._window(tuple(frames.shape[1:]), count, draw)
        )
        rows = resize_matrices(top, height, frames.shape[1], self.size[0])
        columns = resize_matrices(left, width, frames.shape[2], self.size[1])
        return torch.einsum("tuh,thw,tvw->tuv", rows, frames, columns).numpy()

    def _window(
        self, shape: tuple[int, ...], count: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Choose a random path for the window of a video that a movie shows.

        Args:
            shape: (H, W) of the video's frames in pixels.
            count: number of movie frames.
            draw: random generator.

        Returns:
            Top, left, height and width of the window in pixels of the video, each (count,).
        """
        seconds = np.arange(count) / self.rate
        # Height of the largest window with the aspect ratio of the movie.
        most = min(shape[0], shape[1] * self.size[0] / self.size[1])
        height = most * (0.7 + 0.2 * _wave(draw, seconds, (0.05, 0.2)))
        width = height * self.size[1] / self.size[0]
        across, down = (_wave(draw, seconds, (0.1, 0.7)) for _ in range(2))
        top = (shape[0] - height) * (0.5 + 0.5 * down)
        left = (shape[1] - width) * (0.5 + 0.5 * across)
        return top, left, height, width

    def _texture(self, draw: np.random.Generator) -> Float[np.ndarray, "t h w"]:
        pieces: list[np.ndarray] = []
        while (left := self.frames - sum(map(len, pieces))) > 0:
            length = math.ceil(draw.uniform(0.7, 1.5) * self.rate)
            first, second = (self._motion_cloud(length, draw) for _ in range(2))
            # Patches make responses depend on the position of receptive fields: without them, all
            # neurons with equal preferences would respond together.
            patches = self._patches(draw)
            pieces.append((patches * first + (1 - patches) * second)[:left])
        return np.concatenate(pieces)

    def _patches(self, draw: np.random.Generator) -> Float[np.ndarray, "h w"]:
        """Sample pixel weights in [0, 1]: patches about ten pixels wide, half of them near 1."""
        height, width = self.size
        across = np.hypot(np.fft.fftfreq(width), np.fft.fftfreq(height)[:, None])
        low = np.exp(-0.5 * (across * 25 * min(height / 36, width / 64)) ** 2)
        low[0, 0] = 0.0
        smooth = np.fft.ifft2(np.fft.fft2(draw.standard_normal(self.size)) * low).real
        return 1 / (1 + np.exp(-6 * smooth / smooth.std()))

    def _motion_cloud(self, length: int, draw: np.random.Generator) -> Float[np.ndarray, "t h w"]:
        height, width = self.size
        unit = min(height / 36, width / 64)
        grain = math.exp(draw.uniform(math.log(0.07), math.log(0.2))) / unit
        direction = draw.uniform(0, 2 * math.pi)
        # Temporal frequency in Hz at the spatial frequency of the texture, as cells prefer it.
        flicker = draw.uniform(1.0, 6.0)
        x = np.fft.fftfreq(width)[None, None, :]
        y = np.fft.fftfreq(height)[None, :, None]
        t = np.fft.fftfreq(length, 1 / self.rate)[:, None, None]
        radius = np.hypot(x, y)
        radius[0, 0, 0] = 1.0
        turn = np.arctan2(y, x) - direction
        speed = flicker / grain
        band = np.exp(-0.5 * (np.log(radius / grain) / 0.5) ** 2)
        plane = np.exp(
            -0.5 * ((t + speed * radius * np.cos(turn)) / (0.25 * speed * radius + 0.3)) ** 2
        )
        # Symmetric under reversal of the wave vector, since the noise is real-valued.
        band = band * np.exp(2.0 * (np.cos(2 * turn) - 1))
        band[0, 0, 0] = 0.0
        noise = np.fft.fftn(draw.standard_normal((length, height, width)))
        cloud = np.fft.ifftn(noise * band * plane).real
        return _CONTRAST * cloud / cloud.std()


class _Clips:
    """Distributes videos over movies, in order, and starts again after the last video.

    Args:
        order: numbers of the videos in the shards.
        lengths: number of movie frames that each video fills.
        frames: number of frames of a movie.
    """

    def __init__(self, order: Sequence[int], lengths: Sequence[int], frames: int) -> None:
        self._order, self._lengths, self._frames = list(order), list(lengths), frames
        self._next = 0

    def next_movie(self) -> tuple[int, ...]:
        clips, filled = [], 0
        while filled < self._frames:
            at = self._next % len(self._order)
            clips.append(self._order[at])
            filled += self._lengths[at]
            self._next += 1
        return tuple(clips)

    def held_by(self, movies: int) -> int:
        """Return how many videos would be used by the first ``movies`` movies."""
        trial = _Clips(self._order, self._lengths, self._frames)
        for _ in range(movies):
            trial.next_movie()
        return trial._next

    def rest(self) -> _Clips:
        """Return a new distributor of the videos that no movie has used yet."""
        return _Clips(self._order[self._next :], self._lengths[self._next :], self._frames)


def _wave(
    draw: np.random.Generator, seconds: np.ndarray, band: tuple[float, float]
) -> Float[np.ndarray, " t"]:
    """Sample a smooth path in [−1, 1] from three sines of random frequencies in ``band`` (Hz)."""
    frequency = draw.uniform(*band, (3, 1))
    phase = draw.uniform(0, 2 * math.pi, (3, 1))
    # The outer sine spreads values over the whole range.
    return np.sin(np.sin(2 * math.pi * frequency * seconds + phase).sum(0))


def _stretched(movie: Float[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w"]:
    gain = min(_CONTRAST / max(float(movie.std()), 1e-6), _MOST_GAIN)
    grey = (movie - movie.mean()) * gain + _MEAN
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
