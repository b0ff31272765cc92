"""Prompts processed ahead: the next step's images are opened while this step trains."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from observe.data.question import Question
from observe.model.processor import Sample


class Prompts:
    """The processed prompts of a step by question, those of the next one made in other threads.

    What a thread could not process is raised where the prompt is asked for. Without threads every
    prompt is processed there.
    """

    def __init__(self, process: Callable[[Question], Sample], *, threads: int) -> None:
        self._process = process
        self._threads = ThreadPoolExecutor(threads, "prefetch") if threads else None
        self._samples: dict[str, Future[Sample]] = {}

    def get(self, question: Question) -> Sample:
        """The prompt of a question; processed once, until it is forgotten."""
        if question.id not in self._samples:
            done: Future[Sample] = Future()
            done.set_result(self._process(question))
            self._samples[question.id] = done
        return self._samples[question.id].result()

    def expect(self, questions: Sequence[Question]) -> None:
        """Forget all prompts but those of these questions, and begin to process these."""
        wanted = {question.id: question for question in questions}
        self._samples = {key: sample for key, sample in self._samples.items() if key in wanted}
        if self._threads:
            for key, question in wanted.items():
                if key not in self._samples:
                    self._samples[key] = self._threads.submit(self._process, question)

    def close(self) -> None:
        """Stop the threads; what they have not begun is dropped."""
        if self._threads:
            self._threads.shutdown(wait=True, cancel_futures=True)
