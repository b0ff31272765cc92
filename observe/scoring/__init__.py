"""Judge free-form answers: extract the answer, decide whether it equals the gold.

The same scorer serves rewards and benchmarks. Most answers are judged in-process by plain rules;
only expressions that need algebra go to worker processes, which are killed when they take too
long. Importing this package loads neither sympy nor torch.
"""

from observe.scoring.equivalence import infer_type
from observe.scoring.score import VERSION, score, score_many, score_untagged
from observe.scoring.verdict import AnswerType, ScoreRequest, Verdict

__all__ = [
    "VERSION",
    "AnswerType",
    "ScoreRequest",
    "Verdict",
    "infer_type",
    "score",
    "score_many",
    "score_untagged",
]
