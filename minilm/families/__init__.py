"""The families of checkpoints that minilm reads: one file each, found by looking into this folder."""

import importlib
import pkgutil
from collections.abc import Mapping

from minilm.config import ConfigError, ModelConfig
from minilm.families.base import Family


def _discover() -> dict[str, Family]:
    names = (module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    found = (importlib.import_module(f"{__name__}.{name}").FAMILY for name in sorted(names))
    return {family.model_type: family for family in found}


FAMILIES = _discover()


def get_family(model_type: str | None) -> Family:
    """The family that config.json calls by this model_type."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(f"model_type is {model_type!r}; minilm knows {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def read_config(values: Mapping) -> tuple[Family, ModelConfig]:
    """The family and the structure that a config.json describes."""
    family = get_family(values.get("model_type"))
    return family, family.read_config(values)
