"""What this plugin declares. Nothing heavy is imported here: the model is, when one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset

if TYPE_CHECKING:
    from graftwork.builders.model import BuildRequest
    from graftwork_gru.model import Gru

GRU_1M = Preset(
    name="gru_1m",
    model_type="gru",
    values={"vocab_size": 1024, "hidden_size": 256, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1},
    num_parameters=1_445_632,
    chat_template="llama3-instruct",
)


def _build(request: BuildRequest) -> Gru:
    from graftwork_gru.model import Gru

    model: Gru = request.build(Gru)
    return model


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [
        ModelFamily(
            name="gru",
            model_types=("gru",),
            architectures=("Gru",),
            presets=(GRU_1M,),
            build=_build,
            lora_targets={"mlp": ("mix",), "output": ("head",)},
            default_lora_roles=("mlp",),
            stop_tokens=("<|eot_id|>", "<|end_of_text|>"),
            chat_template="llama3-instruct",
        )
    ]
