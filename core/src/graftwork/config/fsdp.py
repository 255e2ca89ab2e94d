"""``fsdp``: how weights, gradients and optimizer state are cut over the processes of a run. Oumi's keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from graftwork.config.base import Neutral, Params


class FsdpParams(Params):
    """PyTorch's FSDP2 (``torch.distributed.fsdp.fully_shard``) under the names that Oumi has for its first version."""

    enable_fsdp: bool = Field(False, description="Each process holds 1/N of the model; false: all of it (DDP).")
    sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2", "NO_SHARD"] = Field(
        "FULL_SHARD",
        description="SHARD_GRAD_OP keeps weights whole from forward to backward; HYBRID: shards within a machine; "
        "NO_SHARD: as without fsdp.",
    )
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] = Field(
        "TRANSFORMER_BASED_WRAP", description="What is gathered at a time: a layer, a module by size, or the model."
    )
    transformer_layer_cls: str | None = Field(
        None, description="Classes of the layers, with commas; default: what the model says of itself."
    )
    min_num_params: int = Field(100_000, ge=1, description="For SIZE_BASED_WRAP: parameters of the smallest piece.")
    mixed_precision: Literal["bf16", "none"] | None = Field(
        None, description="bf16: weights are gathered in bfloat16; null: in their own type."
    )
    cpu_offload: bool = Field(False, description="Keep a GPU's shards in host memory.")
    forward_prefetch: bool = Field(False, description="Gather the next layer while this one works.")
    sync_module_states: bool = Field(True, description="Begin with the first process's weights everywhere.")
    state_dict_type: Literal["SHARDED_STATE_DICT", "FULL_STATE_DICT"] = Field(
        "SHARDED_STATE_DICT",
        description="Checkpoints: SHARDED, each process writes its own part; FULL, the first one gathers the model and "
        "writes a folder that any Hugging Face tool loads.",
    )
    backward_prefetch: Annotated[
        Literal["BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH"],
        Neutral("BACKWARD_PRE", instead="remove it: FSDP2 always gathers the next layer before it is needed"),
    ] = Field("BACKWARD_PRE", description="Oumi's; only BACKWARD_PRE.")
    use_orig_params: Annotated[
        bool | None, Neutral(None, True, instead="remove it: FSDP2 has nothing but the original parameters")
    ] = Field(None, description="Oumi's; only null or true.")

    @property
    def shards(self) -> bool:
        """Whether anything is cut at all."""
        return self.enable_fsdp and self.sharding_strategy != "NO_SHARD"

    @property
    def saves_shards(self) -> bool:
        """Whether each process writes its own part of a checkpoint."""
        return self.shards and self.state_dict_type == "SHARDED_STATE_DICT"


DEEPSPEED: Any = Neutral(
    None,
    {},
    {"enable_deepspeed": False},
    instead="remove it: DeepSpeed replaces the optimizer and the loop, and PyTorch's own FSDP2 shards the same; "
    "fsdp: {enable_fsdp: true} is ZeRO stage 3, with sharding_strategy: SHARD_GRAD_OP stage 2",
)
"""What is said of a section ``deepspeed``."""
