"""Configurations: typed parameters, read from YAML, the environment and the command line."""

from graftwork.config.base import Params
from graftwork.config.data import DataParams, DatasetParams, DatasetSplitParams
from graftwork.config.generation import GenerationParams
from graftwork.config.load import check_config, load_config
from graftwork.config.model import ModelParams
from graftwork.config.names import plugin_params
from graftwork.config.peft import PeftParams
from graftwork.config.run import RunConfig
from graftwork.config.training import TrainingParams

__all__ = [
    "DataParams",
    "DatasetParams",
    "DatasetSplitParams",
    "GenerationParams",
    "ModelParams",
    "Params",
    "PeftParams",
    "RunConfig",
    "TrainingParams",
    "check_config",
    "load_config",
    "plugin_params",
]
