"""Training windows of sessions, independent of the number of processes and of interruptions.

- The number of windows of a trial in an epoch is proportional to the trial's length, rounded up or
  down, so that all frames have equal weight. The start of a window depends only on (seed, epoch,
  session, trial, number of the window).
- "mix": every global batch contains windows of all sessions in proportion to their frames.
- "alternate": every global batch contains windows of one session. Sessions alternate in proportion
  to their frames.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch

from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.sessions.digest import digest
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.reading import Piece, finish_batch, read_part
from ssl_vivit.data.to_device import Preparation

Batching = Literal["mix", "alternate"]

_PREFETCH = 2


class WindowBatches:
    """Endless stream of training batches of windows.

    A batch is a dictionary with three keys. ``parts`` is a list with one dictionary for each
    session in the batch. ``key`` is a list with a text "session/trial@first frame" for each window
    of the batch. ``trial``, int64, contains the number of the trial of each window. Both are in the
    order of the windows in ``parts``. The dictionary of a session contains

    - ``session``: name of the session;
    - ``video``: float (b, 1, T, H, W), standardised; padding repeats the last frame;
    - ``behaviour``: float (b, T, K), standardised and padded with 0; None if it was not recorded;
    - ``pupil_centre``: float (b, T, 2), standardised and padded with 0; None if it was not
      recorded;
    - ``responses``: float (b, T, N); NaN if unknown, padded, or not to be used for training;
    - ``frames``: int64 (b, T), number of each frame in its trial; −1 for padding;
    - ``trial``: int64 (b,), number of the trial;
    - ``content``: int64 (b,), number of the movie in the session;
    - ``shows``: for each window, the index of the first window of the session in the batch that
      shows the same frames of the same movie;
    - ``draw``: for each window the names (seed, epoch, session, trial, number of the window in the
      trial) that seed an objective's random draws.

    Do not pass this object to ``accelerator.prepare``, since it already splits batches over
    processes.

    Args:
        sessions: open sessions.
        facts: ``SessionFacts`` of each session, with statistics and training trials.
        window: number of frames of a window. Shorter trials are padded.
        batching: "mix" or "alternate".
        seed: seed of all random draws.
        drop_first: number of frames at the start of a window whose responses are replaced by NaN.
        fit_held_out: whether the responses of all neurons except the held-out neurons are replaced
            by NaN, to fit the readouts of held-out neurons. If false, the responses of the held-out
            neurons are replaced by NaN.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        facts: Sequence[SessionFacts],
        *,
        window: int,
        batching: Batching = "mix",
        seed: int = 0,
        drop_first: int = 0,
        fit_held_out: bool = False,
    ) -> None:
        self.sessions, self.facts = list(sessions), list(facts)
        self.window, self.batching, self.seed = window, batching, seed
        self.drop_first = drop_first
        self._trials = [np.array(f.split["train"], dtype=np.int64) for f in facts]
        # A trial that is shorter than a window counts as one window.
        self._weights = [
            np.maximum(session.lengths[trials], window)
            for session, trials in zip(sessions, self._trials, strict=True)
        ]
        held = [
            np.isin(session.unit_ids, fact.held_out_units)
            for session, fact in zip(sessions, facts, strict=True)
        ]
        self._hidden = [~units for units in held] if fit_held_out else held

    def for_held_out_units(self) -> WindowBatches:
        """Return the same windows with NaN responses for all neurons except the held-out ones."""
        return WindowBatches(
            self.sessions,
            self.facts,
            window=self.window,
            batching=self.batching,
            seed=self.seed,
            drop_first=self.drop_first,
            fit_held_out=True,
        )

    def windows_per_epoch(self) -> list[int]:
        """Return the number of windows in an epoch for each session."""
        return [max(1, round(weights.sum() / self.window)) for weights in self._weights]

    def steps_per_epoch(self, total_batch_size: int) -> int:
        """Return the number of whole global batches in an epoch, at least one.

        If there are fewer windows than a batch needs, an epoch contains them several times.
        """
        counts = self._counts(total_batch_size)
        if self.batching == "alternate":
            return sum(count // total_batch_size for count in counts)
        return sum(counts) // total_batch_size

    def session_shares(self, total_batch_size: int) -> dict[str, float]:
        """Return each session's fraction of the windows of an epoch; the fractions sum to 1."""
        counts = self._counts(total_batch_size)
        if self.batching == "alternate":
            counts = [count // total_batch_size for count in counts]
        return {
            session.name: count / sum(counts)
            for session, count in zip(self.sessions, counts, strict=True)
        }

    def contents(self) -> dict[str, str]:
        """Return a dictionary that identifies the data.

        Its only key is "data.sessions". The value is a text with the name and digest of each
        session.
        """
        digests = [f"{session.name} {digest(session.path)}" for session in self.sessions]
        return {"data.sessions": ", ".join(digests)}

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device | str
    ) -> Generator[dict[str, Any], None, None]:
        """Yield the micro-batches of all optimisation steps from ``start_step`` on, without end.

        Each step has ``split.accumulation`` micro-batches. The batches of a step do not depend on
        ``start_step``.
        """
        return self._batches(self._schedule(split, start_step), torch.device(device))

    def _batches(
        self, schedule: Iterator[list[Piece]], device: torch.device
    ) -> Generator[dict[str, Any], None, None]:
        reading: deque[Future] = deque()
        preparation = Preparation(device)
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as reader:
            for pieces in schedule:
                reading.append(reader.submit(self._read, pieces))
                if len(reading) > _PREFETCH:
                    numbers, parts = reading.popleft().result()
                    facts = [self.facts[i] for i in numbers]
                    yield preparation.run(functools.partial(finish_batch, parts, facts, device))

    def _read(self, pieces: list[Piece]) -> tuple[list[int], list[dict[str, Any]]]:
        numbers = sorted({piece.session for piece in pieces})
        return numbers, [
            read_part(
                self.sessions[i],
                [piece for piece in pieces if piece.session == i],
                self._hidden[i],
                self.drop_first,
            )
            for i in numbers
        ]

    def _schedule(self, split: BatchSplit, start_step: int) -> Iterator[list[Piece]]:
        size = split.total_batch_size
        steps, order, order_epoch = self.steps_per_epoch(size), [], -1
        for step in itertools.count(start_step):
            epoch, place = divmod(step, steps)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch, size), epoch
            batch = order[place * size : (place + 1) * size]
            for micro_step in range(split.accumulation):
                yield [self._piece(epoch, *batch[i]) for i in split.positions(micro_step)]

    def _counts(self, size: int) -> list[int]:
        """Return the number of windows of each session in an epoch.

        If the numbers of :meth:`windows_per_epoch` do not fill a global batch of ``size`` windows,
        they are multiplied by the smallest whole number for which they do. With "alternate" this is
        done for each session alone, with "mix" for all sessions together.
        """
        counts = self.windows_per_epoch()
        if self.batching == "alternate":
            return [count * -(-size // count) for count in counts]
        return [count * -(-size // sum(counts)) for count in counts]

    def _order(self, epoch: int, size: int) -> list[tuple[int, int, int]]:
        """Return the windows of an epoch in shuffled order.

        Args:
            epoch: number of the epoch.
            size: number of windows of a global batch.

        Returns:
            (index of the session, number of the trial, number of the window in the trial) of each
            window.
        """
        windows, places = [], []
        for i, count in enumerate(self._counts(size)):
            name = self.sessions[i].name
            trials = self._drawn_trials(epoch, i, count)
            first = np.searchsorted(trials, trials)
            found = [
                (i, int(self._trials[i][trial]), int(number))
                for trial, number in zip(trials, np.arange(count) - first, strict=True)
            ]
            keys = named_generator(self.seed, epoch, name, "order").random(count)
            phase = named_generator(self.seed, epoch, name, "turn").random()
            block = size if self.batching == "alternate" else 1
            turns = count // block
            windows += [found[j] for j in np.argsort(keys, kind="stable")[: turns * block]]
            # Space the windows of a session evenly, so that sessions are mixed in all of the epoch.
            places.append(np.repeat((np.arange(turns) + phase) / turns, block))
        return [windows[j] for j in np.argsort(np.concatenate(places), kind="stable")]

    def _drawn_trials(self, epoch: int, i: int, count: int) -> np.ndarray:
        """Draw a training trial for each of ``count`` windows of session ``i``, in ascending order.

        Trials are drawn in proportion to their lengths and returned as indices into the training
        trials of the session. Sampling is systematic: a trial gets its expected number of windows,
        rounded up or down.
        """
        name = self.sessions[i].name
        phase = named_generator(self.seed, epoch, name, "trials").random()
        ends = np.cumsum(self._weights[i])
        picks = (np.arange(count) + phase) * (ends[-1] / count)
        return np.searchsorted(ends, picks, side="right").clip(max=len(ends) - 1)

    def _piece(self, epoch: int, session: int, trial: int, number: int) -> Piece:
        name, length = self.sessions[session].name, int(self.sessions[session].lengths[trial])
        names = (self.seed, epoch, name, trial, number)
        rng = named_generator(*names, "start")
        start = int(rng.integers(max(0, length - self.window) + 1))
        return Piece(session, trial, start, self.window, names)
