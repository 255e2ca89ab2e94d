"""Mistral under torchtune's names, as transformers models with fresh weights."""

from graftwork.builders.torchtune_names import DECODER, builders, generic_builders
from graftwork.tokenizers.torchtune import torchtune_tokenizer
from graftwork_mistral import presets

mistral_7b, lora_mistral_7b, qlora_mistral_7b = builders(presets.MISTRAL_7B)
mistral_7b_v0_2, lora_mistral_7b_v0_2, qlora_mistral_7b_v0_2 = builders(presets.MISTRAL_7B_V0_2)
mistral_7b_v0_3, lora_mistral_7b_v0_3, qlora_mistral_7b_v0_3 = builders(presets.MISTRAL_7B_V0_3)
mistral_nemo_12b, lora_mistral_nemo_12b, qlora_mistral_nemo_12b = builders(presets.MISTRAL_NEMO_12B)
mistral_classifier_7b, lora_mistral_classifier_7b, qlora_mistral_classifier_7b = builders(presets.MISTRAL_CLASSIFIER_7B)
mistral, lora_mistral = generic_builders("mistral", "mistral", sliding_window=None)
mistral_classifier, lora_mistral_classifier = generic_builders(
    "mistral_classifier",
    "mistral",
    required=("num_classes", "*", *DECODER),
    architectures=["MistralForSequenceClassification"],
    sliding_window=None,
)
mistral_tokenizer = torchtune_tokenizer("mistral_tokenizer", presets.MESSAGES, family="mistral")
