"""Batches of whole trials for evaluation, in which every trial occurs once."""

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
    """Batches of whole trials; all trials of a batch have one session and one length.

    Batches have the format of :class:`~ssl_vivit.data.sessions.windows.WindowBatches`. The list
    ``parts`` contains one dictionary, since all trials of a batch have one session. Responses
    include those of held-out neurons.

    Args:
        sessions: open sessions.
        facts: ``SessionFacts`` of each session.
        trials: (index of the session, number of the trial) of each trial.
        drop_first: number of frames at the start of a trial whose responses are replaced by NaN.
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
        """Return the number of trials."""
        return len(self.trials)

    def of_process(self, rank: int, world_size: int) -> TrialBatches:
        """Return batches of the trials of one process; each trial belongs to one process."""
        return self.only(self.trials[rank::world_size])

    def only(self, trials: Sequence[tuple[int, int]]) -> TrialBatches:
        """Return batches of only the given trials.

        Args:
            trials: (index of the session, number of the trial) of each trial.
        """
        return TrialBatches(self.sessions, self.facts, trials, drop_first=self.drop_first)

    def of_session(self, name: str) -> TrialBatches:
        """Return batches of the trials of one session."""
        return self.only([item for item in self.trials if self.sessions[item[0]].name == name])

    def once(
        self, batch_size: int, device: torch.device | str
    ) -> Generator[dict[str, Any], None, None]:
        """Yield all trials once, in batches of up to ``batch_size``.

        Trials are sorted by session, and within a session by length, short trials first.
        """
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
