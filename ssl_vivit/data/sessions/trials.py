"""Whole trials of sessions for evaluation, every one once."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.reading import Piece, finish_batch, read_part


class TrialBatches:
    """One pass over whole trials; a batch is of one session and of trials of one length.

    Batches are those of :class:`~ssl_vivit.data.sessions.windows.WindowBatches` with one part;
    responses of held-out neurons are in them.

    Args:
        sessions: to read from.
        facts: of each, with the statistics.
        trials: (session's place, trial) of those that take part.
        drop_first: frames at a trial's start without responses.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        facts: Sequence[SessionFacts],
        trials: Sequence[tuple[int, int]],
        *,
        drop_first: int = 0,
    ) -> None:
        self.sessions, self.facts = list(sessions), list(facts)
        self.drop_first = drop_first
        self.trials = sorted(trials, key=lambda item: (item[0], self._length(item), item[1]))

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.trials)

    def of_process(self, rank: int, world_size: int) -> TrialBatches:
        """The share of one process; over all processes every trial is there once."""
        return self.only(self.trials[rank::world_size])

    def only(self, trials: Sequence[tuple[int, int]]) -> TrialBatches:
        """Some of these trials, named as in the constructor."""
        return TrialBatches(self.sessions, self.facts, trials, drop_first=self.drop_first)

    def of_session(self, name: str) -> TrialBatches:
        """The trials of one session."""
        return self.only([item for item in self.trials if self.sessions[item[0]].name == name])

    def once(
        self, batch_size: int, device: torch.device | str
    ) -> Generator[dict[str, Any], None, None]:
        """All trials, session by session, short ones first; at most ``batch_size`` in a batch."""
        for pieces in self._schedule(batch_size):
            i = pieces[0].session
            nothing = np.zeros(len(self.sessions[i].unit_ids), dtype=bool)
            part = read_part(self.sessions[i], pieces, nothing, self.drop_first)
            yield finish_batch([part], [self.facts[i]], torch.device(device))

    def _schedule(self, batch_size: int) -> Iterator[list[Piece]]:
        for (session, length), group in groupby(
            self.trials, key=lambda item: (item[0], self._length(item))
        ):
            pieces = [Piece(session, trial, 0, length) for _, trial in group]
            for k in range(0, len(pieces), batch_size):
                yield pieces[k : k + batch_size]

    def _length(self, item: tuple[int, int]) -> int:
        return int(self.sessions[item[0]].lengths[item[1]])
