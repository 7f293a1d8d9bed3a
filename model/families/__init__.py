"""The table of families. A family is one folder here and one line of FAMILIES."""

from __future__ import annotations

from maskmill.model.config import NetworkConfig
from maskmill.model.errors import ConfigError
from maskmill.model.families import efficient_sam, mini, mobile_sam, sam1, sam2, sam_hq
from maskmill.model.families.family import Family

# The first family that recognises a checkpoint reads it. sam1 is last, because other families extend its keys.
FAMILIES: dict[str, Family] = {
    "mini": mini.FAMILY,
    "sam2": sam2.FAMILY,
    "efficient_sam": efficient_sam.FAMILY,
    "sam_hq": sam_hq.FAMILY,
    "mobile_sam": mobile_sam.FAMILY,
    "sam1": sam1.FAMILY,
}
VARIANTS: dict[str, NetworkConfig] = {
    variant.name: variant for family in reversed(FAMILIES.values()) for variant in family.variants
}


def find_variant(name: str) -> NetworkConfig:
    """The entry of VARIANTS with this name. Raises ConfigError for an unknown name."""
    if name not in VARIANTS:
        raise ConfigError(f"there is no model {name!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
