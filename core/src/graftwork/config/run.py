"""``RunConfig``: the whole configuration of a run."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from graftwork.config.base import Params, neutral
from graftwork.config.data import DataParams
from graftwork.config.generation import GenerationParams
from graftwork.config.model import ModelParams
from graftwork.config.origins import Origins
from graftwork.config.peft import PeftParams
from graftwork.config.training import TrainingParams


class RunConfig(Params):
    """What a run is told: Oumi's layout ``model / data / training / peft``, and ``generation``."""

    model: ModelParams = Field(description="Which model.")
    data: DataParams = Field(default_factory=DataParams, description="Which rows.")
    training: TrainingParams = Field(default_factory=TrainingParams, description="How it is trained.")
    peft: PeftParams = Field(default_factory=PeftParams, description="Which adapter.")
    generation: GenerationParams = Field(default_factory=GenerationParams, description="How text is generated.")
    fsdp: Annotated[Any, neutral(None, {}, {"enable_fsdp": False}, instead="remove it: a run is one process here")] = (
        Field(None, description="Oumi's; only null or disabled.")
    )
    deepspeed: Annotated[
        Any, neutral(None, {}, {"enable_deepspeed": False}, instead="remove it: a run is one process here")
    ] = Field(None, description="Oumi's; only null or disabled.")

    _origins: Origins = PrivateAttr(default_factory=Origins)

    @model_validator(mode="after")
    def _share_peft_params(self) -> Self:
        if self.model.peft_params is not None and "peft" not in self.model_fields_set:
            # Past validate_assignment, which would come back here.
            self.__dict__["peft"] = self.model.peft_params
        return self

    def where(self, path: str) -> str:
        """Where the value at a dotted path was set (``run.yaml:12``), or an empty text for a default."""
        from graftwork.config.origins import parse_path

        origin = self._origins.of(parse_path(path))
        return str(origin) if origin else ""
