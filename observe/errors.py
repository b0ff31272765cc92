"""What is said when the input is at fault."""


class InputError(Exception):
    """Bad input: the message names the file, the key and the remedy. Commands exit with code 2."""
