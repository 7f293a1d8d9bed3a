"""The extras of the package: what a command needs of them, and the one line when that is missing."""

from __future__ import annotations

from pkgutil import resolve_name

# By extra, as in pyproject.toml, each named as the command that needs it.
EXTRAS = {
    "demo": ("skimage",),
    "evaluate": ("matplotlib", "scipy", "skimage"),
    "train": ("skimage", "torch.optim.Muon"),
}


def require_extra(name: str) -> None:
    """Raises MaskmillError with the command that installs an extra, where something of it is missing."""
    from maskmill.model.errors import MaskmillError

    if missing := [needed for needed in EXTRAS[name] if not _is_there(needed)]:
        raise MaskmillError(f"maskmill {name} needs {' and '.join(missing)}: pip install 'maskmill[{name}]'")


def _is_there(name: str) -> bool:
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
