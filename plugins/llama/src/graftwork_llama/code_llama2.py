"""Code Llama under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders
from graftwork_llama.presets import CODE_LLAMA2_7B, CODE_LLAMA2_13B, CODE_LLAMA2_34B, CODE_LLAMA2_70B

code_llama2_7b, lora_code_llama2_7b, qlora_code_llama2_7b = builders(CODE_LLAMA2_7B, positional_dropout=True)
code_llama2_13b, lora_code_llama2_13b, qlora_code_llama2_13b = builders(CODE_LLAMA2_13B, positional_dropout=True)
code_llama2_34b, lora_code_llama2_34b, qlora_code_llama2_34b = builders(CODE_LLAMA2_34B, positional_dropout=True)
code_llama2_70b, lora_code_llama2_70b, qlora_code_llama2_70b = builders(CODE_LLAMA2_70B, positional_dropout=True)
