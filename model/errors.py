"""The base class of all errors that a user can cause or fix.

MaskmillError
├── ConfigError       an argument out of range, or two arguments that exclude each other
├── CheckpointError   a checkpoint that cannot be loaded (model/checkpoint.py)
├── DeviceError       a device or precision that this machine does not have (model/optimize.py)
├── PromptError       an image or prompt of the wrong shape or kind (model/predictor.py)
└── (pipeline/errors.py continues the tree)
"""


class MaskmillError(Exception):
    """The message is one line: what is wrong, where, and how to fix it. The CLI prints it and exits with 1."""


class ConfigError(MaskmillError):
    """An argument out of range, or two arguments that exclude each other."""


class CheckpointError(MaskmillError):
    """A checkpoint file that is damaged, unsafe, or of another variant."""


class DeviceError(MaskmillError):
    """A device or precision that this machine does not have."""


class PromptError(MaskmillError):
    """An image or prompt of the wrong shape or kind."""


def one_line_cause(error: BaseException, limit: int = 200) -> str:
    """The message of an exception in one line of at most `limit` characters; its type if the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
