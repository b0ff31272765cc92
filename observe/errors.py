"""What is said when the input is at fault, or the run, or an engine outside of the trainer."""


class InputError(Exception):
    """Bad input: the message names the file, the key and the remedy. Commands exit with code 2."""


class TrainingFailed(Exception):
    """Training cannot go on; the message names the step, what is kept and the remedy. Commands exit
    with code 1."""


class EngineError(Exception):
    """A rollout engine failed: the message says what happened and how to go on."""
