"""Configuration: typed, checked keys with their meaning, read from YAML and overridden as ``key.sub=value``."""

from ammnet_sparse.config.keys import describe_keys, flat_plain, flat_values, given_keys, overridden_keys
from ammnet_sparse.config.reading import (
    ConfigError,
    config_from_dict,
    load_config,
    merged,
    read_values,
    read_yaml,
    save_config,
    with_overrides,
)
from ammnet_sparse.config.sections import (
    AdversarialConfig,
    Config,
    DataConfig,
    Fusion,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SyntheticConfig,
    TrainingConfig,
)

__all__ = [
    "AdversarialConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "Fusion",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SyntheticConfig",
    "TrainingConfig",
    "config_from_dict",
    "describe_keys",
    "flat_plain",
    "flat_values",
    "given_keys",
    "load_config",
    "merged",
    "overridden_keys",
    "read_values",
    "read_yaml",
    "save_config",
    "with_overrides",
]
