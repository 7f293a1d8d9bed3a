"""The root of every error that a user can cause or mend.

MaskmillError
├── ConfigError       an argument out of its range, or two that exclude each other
├── CheckpointError   a checkpoint that cannot be loaded (model/checkpoint.py)
├── DeviceError       a device or precision that this machine does not have (model/optimize.py)
├── PromptError       an image or prompt that makes no sense (model/predictor.py)
└── (pipeline/errors.py continues the tree)
"""


class MaskmillError(Exception):
    """One clear line: what was wrong, where, and what to do. The CLI prints it and exits with 1."""


class ConfigError(MaskmillError):
    """An argument out of its range, or two that exclude each other."""


class CheckpointError(MaskmillError):
    """A checkpoint file that is damaged, unsafe, or of another variant."""


class DeviceError(MaskmillError):
    """A device or precision that this machine does not have."""


class PromptError(MaskmillError):
    """An image or prompt of the wrong shape or kind."""


def one_line_cause(error: BaseException, limit: int = 200) -> str:
    """The message of an exception in one line of at most `limit` characters; its type if the message is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
