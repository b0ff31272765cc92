"""The order in which questions are trained on: samplers whose state is saved with a checkpoint.

Every order hands out the same questions once each, so that two runs which differ in it differ in
nothing else.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Any, Protocol

from observe.config import Order
from observe.data.rungs import Rung
from observe.errors import InputError


class Curriculum(Protocol):
    """What the training loop asks of an order."""

    def next_batch(self, n: int) -> list[str]:
        """The ids of the next ``n`` questions; fewer at the end, none after it."""
        ...

    def upcoming(self, n: int) -> list[str]:
        """The ids that the next call of ``next_batch`` will hand out."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the pass stands, as JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; InputError when it belongs to other questions."""
        ...

    def metrics(self) -> dict[str, float]:
        """Where the pass stands and how hard its last batch was, for the log."""
        ...


class _OnePass:
    """One pass over questions in a fixed order."""

    def __init__(self, questions: Sequence[str], rungs: Sequence[Rung] = ()) -> None:
        self._questions = list(questions)
        self._rungs = {rung.question: rung for rung in rungs}
        self._position = 0
        self._last = 0

    def next_batch(self, n: int) -> list[str]:
        batch = self.upcoming(n)
        self._position += len(batch)
        self._last = len(batch)
        return batch

    def upcoming(self, n: int) -> list[str]:
        return self._questions[self._position : self._position + n]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, "last": self._last, "order": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["order"] != self._fingerprint():
            raise InputError(
                "the checkpoint was made with other questions or another order of them; "
                "go on with the data and seed it was made with, or start anew"
            )
        self._position = state["position"]
        self._last = state["last"]

    def metrics(self) -> dict[str, float]:
        batch = self._questions[self._position - self._last : self._position]
        rungs = [self._rungs[q] for q in batch if q in self._rungs]
        metrics = {"observe/data_position": self._position / len(self._questions)}
        if rungs:
            metrics["observe/difficulty"] = sum(r.difficulty for r in rungs) / len(rungs)
            metrics["observe/complexity"] = sum(r.complexity for r in rungs) / len(rungs)
        return metrics

    def _fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self._questions).encode()).hexdigest()[:16]


class LadderOrder(_OnePass):
    """Easy to hard with neighbour mixing, as the ladder arranged it (Observe-R1, step 6)."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        climbed = sorted(rungs, key=lambda rung: rung.order_index)
        super().__init__([rung.question for rung in climbed], rungs)


class EasyToHardOrder(_OnePass):
    """Sorted by difficulty, then complexity, without mixing (Observe-R1, step 5)."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        climbed = sorted(rungs, key=lambda rung: (rung.difficulty, rung.complexity, rung.question))
        super().__init__([rung.question for rung in climbed], rungs)


class ShuffledOrder(_OnePass):
    """A seeded permutation; ``rungs``, where a ladder exists, serve the log alone."""

    def __init__(self, questions: Sequence[str], *, seed: int, rungs: Sequence[Rung] = ()) -> None:
        shuffled = sorted(questions)
        random.Random(f"{seed}/shuffled").shuffle(shuffled)
        super().__init__(shuffled, rungs)


def make_order(order: Order, rungs: Sequence[Rung], *, seed: int) -> Curriculum:
    """The curriculum of that name over the questions of ``rungs`` (``seed`` for shuffled)."""
    if order == "ladder":
        return LadderOrder(rungs)
    if order == "easy_to_hard":
        return EasyToHardOrder(rungs)
    return ShuffledOrder([rung.question for rung in rungs], seed=seed, rungs=rungs)
