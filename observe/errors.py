"""What is said when the input is at fault, or the run is."""


class InputError(Exception):
    """Bad input: the message names the file, the key and the remedy. Commands exit with code 2."""


class TrainingFailed(Exception):
    """Training cannot go on; the message names the step, what is kept and the remedy. Commands exit
    with code 1."""
