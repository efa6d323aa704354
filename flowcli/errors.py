"""What can go wrong for a user, and the exit code each kind has at the command line."""

from __future__ import annotations


class FlowcliError(Exception):
    """Sentences for the user, one an argument: where, what, and how to mend it."""

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(self.args)


class UsageError(FlowcliError):
    """The command line or the recipe asks for something that cannot be."""

    exit_code = 2


class DataError(FlowcliError):
    """The data cannot be read, or is not what the recipe or the model says."""

    exit_code = 3


class TrainingError(FlowcliError):
    """Training failed although recipe and data were good."""

    exit_code = 4


class ModelFileError(FlowcliError):
    """The model file is missing, damaged, or not ours."""

    exit_code = 5


class GateError(FlowcliError):
    """The result is there, and not what the user said it may be."""

    exit_code = 10
