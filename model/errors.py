"""The root of every error that a user can cause or mend.

MaskmillError
├── CheckpointError   a checkpoint that cannot be loaded (model/checkpoint.py)
└── (pipeline/errors.py continues the tree)
"""


class MaskmillError(Exception):
    """One clear line: what was wrong, where, and what to do. The CLI prints it and exits with 1."""


class CheckpointError(MaskmillError):
    """A checkpoint file that is damaged, unsafe, or of another variant."""
