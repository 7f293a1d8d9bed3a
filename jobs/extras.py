"""Checks that the optional dependencies of a command are installed."""

from __future__ import annotations

from pkgutil import resolve_name

# Required modules and attributes by extra in pyproject.toml, which has the name of its command.
EXTRAS = {
    "demo": ("skimage",),
    "evaluate": ("matplotlib", "scipy", "skimage"),
    "submit": ("aiohttp",),
    "train": ("skimage", "torch.optim.Muon"),
    "view": ("starlette", "uvicorn"),
}


def require_extra(name: str) -> None:
    """Raises MaskmillError with the install command if part of an extra is missing."""
    from maskmill.model.errors import MaskmillError

    if missing := [needed for needed in EXTRAS[name] if not _is_installed(needed)]:
        raise MaskmillError(f"maskmill {name} needs {' and '.join(missing)}: pip install 'maskmill[{name}]'")


def _is_installed(name: str) -> bool:
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
