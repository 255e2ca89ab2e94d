"""Gemma 3's text decoders in the manner of torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import builders
from graftwork_gemma.presets import GEMMA3_1B, GEMMA3_4B, GEMMA3_12B, GEMMA3_27B, GEMMA3_270M

gemma3_270m, lora_gemma3_270m, qlora_gemma3_270m = builders(GEMMA3_270M, lora_output=False, latest=True)
gemma3_1b, lora_gemma3_1b, qlora_gemma3_1b = builders(GEMMA3_1B, lora_output=False, latest=True)
gemma3_4b, lora_gemma3_4b, qlora_gemma3_4b = builders(GEMMA3_4B, lora_output=False, latest=True)
gemma3_12b, lora_gemma3_12b, qlora_gemma3_12b = builders(GEMMA3_12B, lora_output=False, latest=True)
gemma3_27b, lora_gemma3_27b, qlora_gemma3_27b = builders(GEMMA3_27B, lora_output=False, latest=True)
