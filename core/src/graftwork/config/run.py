"""``RunConfig``: the whole configuration of a run."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from graftwork.config.base import Params
from graftwork.config.data import DataParams
from graftwork.config.dump import to_yaml
from graftwork.config.fsdp import DEEPSPEED, FsdpParams
from graftwork.config.generation import GenerationParams
from graftwork.config.model import ModelParams
from graftwork.config.origins import Origins, Path, parse_path
from graftwork.config.peft import PeftParams
from graftwork.config.training import TrainingParams


class RunConfig(Params):
    """What a run is told: Oumi's layout ``model / data / training / peft / fsdp``, and ``generation``."""

    model: ModelParams = Field(description="Which model; model_name is the one setting without a default.")
    data: DataParams = Field(default_factory=DataParams, description="Which rows.")
    training: TrainingParams = Field(default_factory=TrainingParams, description="How it is trained.")
    peft: PeftParams = Field(default_factory=PeftParams, description="Which adapter.")
    generation: GenerationParams = Field(default_factory=GenerationParams, description="How text is generated.")
    fsdp: FsdpParams = Field(default_factory=FsdpParams, description="How a model is cut over processes.")
    deepspeed: Annotated[Any, DEEPSPEED] = Field(None, description="Oumi's; only null or disabled.")

    _origins: Origins = PrivateAttr(default_factory=Origins)

    @model_validator(mode="after")
    def _share_peft_params(self) -> Self:
        own = self.model.peft_params
        if own is not None and ("peft" not in self.model_fields_set or own == self.peft):
            # One place for one thing. Past validate_assignment, which would come back here.
            self.__dict__.update(peft=own, model=self.model.model_copy(update={"peft_params": None}))
        return self

    def where(self, path: str | Path) -> str:
        """Where the value at a (dotted) path was set, ``run.yaml:12``; an empty text for a default."""
        origin = self._origins.exact(parse_path(path) if isinstance(path, str) else path)
        return str(origin) if origin else ""

    def to_yaml(self) -> str:
        """The whole configuration as YAML, without what is not supported; reading it gives an equal one."""
        return to_yaml(self)
