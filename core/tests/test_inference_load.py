"""Loading for inference: what a name leads to, and which stop tokens and template come with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from graftwork.config import GenerationParams, ModelParams
from graftwork.errors import ModelError, UnknownNameError
from graftwork.inference import build_engine, load_model

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def save_model(folder: Path, *, template: str | None = None, eos: int | list[int] = 1) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1, "<|im_end|>": 2, **{letter: at + 3 for at, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=eos,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_folder_by_name_or_params(tmp_path):
    folder = save_model(tmp_path / "model")
    loaded = load_model(str(folder))
    assert loaded.path == folder
    assert loaded.model.config.hidden_size == 32
    assert not loaded.model.training
    assert load_model(ModelParams(model_name=str(folder), torch_dtype="bfloat16")).model.dtype == torch.bfloat16
    assert load_model(str(folder), torch_dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_reward_model_writes_no_text(tmp_path):
    folder = save_model(tmp_path / "model")
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(folder, num_labels=1)).save_pretrained(folder)
    words = (
        r"(?s)model is a reward model .*LlamaForSequenceClassification.*logits are the scores: AutoModelForSequenceCl"
    )
    with pytest.raises(ModelError, match=words):
        load_model(str(folder))


def test_a_run_folder_means_its_final_model(tmp_path, monkeypatch):
    save_model(tmp_path / "run" / "final")
    (tmp_path / "run" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("run", "./run", str(tmp_path / "run")):
        assert load_model(name).path == tmp_path / "run" / "final"


def test_a_run_that_has_not_ended_says_how_to_end_it(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no final model in it yet.*graft train -c .*config\.yaml --resume"):
        load_model(str(tmp_path))


def test_an_unknown_name_is_an_error():
    with pytest.raises(UnknownNameError, match="nosuchmodel"):
        load_model("nosuchmodel")


def test_stop_ids_come_from_tokenizer_and_generation_config(tmp_path):
    assert load_model(str(save_model(tmp_path / "one"))).stop_token_ids == {1}
    assert load_model(str(save_model(tmp_path / "two", eos=[1, 7]))).stop_token_ids == {1, 7}


def test_the_stop_texts_of_a_template_stop_as_tokens_or_as_strings(tmp_path):
    folder = save_model(tmp_path / "model")
    assert 2 in load_model(str(folder), chat_template="chat_ml").stop_token_ids
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["vocab"]["<|other|>"] = tokenizer["model"]["vocab"].pop("<|im_end|>")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    loaded = load_model(str(folder), chat_template="chat_ml")
    assert loaded.stop_token_ids == {1}
    assert "<|im_end|>" in loaded.stop_strings


def test_only_a_template_that_was_saved_or_asked_for_counts(tmp_path):
    assert load_model(str(save_model(tmp_path / "plain"))).chat_template is None
    assert load_model(str(save_model(tmp_path / "chat", template=TEMPLATE))).chat_template == TEMPLATE
    assert "im_start" in load_model(str(tmp_path / "plain"), chat_template="chat_ml").chat_template


def test_template_variables_reach_the_template(tmp_path):
    folder = save_model(tmp_path, template="{{ mood }}" + TEMPLATE)
    loaded = load_model(str(folder), chat_template_kwargs={"mood": "happy"})
    assert build_engine(loaded).count([{"role": "user", "content": "hi"}]) == len("happy[user]hi")


def test_a_trained_model_tells_its_published_story():
    data = os.environ.get("GRAFTWORK_TEST_DATA")
    if not data:
        pytest.skip("needs the weights in GRAFTWORK_TEST_DATA")
    folder = Path(data) / "weights" / "stories260K"
    published = json.loads((folder / "expected_greedy.json").read_text("utf-8"))
    loaded = load_model(str(folder / "hf"), torch_dtype="float32")
    made = build_engine(loaded).generate([""], GenerationParams(max_new_tokens=published["max_new_tokens"]))[0]
    assert made.text == published["expected_text"]
    stream = build_engine(loaded).stream("", GenerationParams(max_new_tokens=20))
    assert published["expected_text"].startswith("".join(stream))


def test_an_adapter_that_judges_is_no_language_model(tmp_path):
    """Put onto its base as a language model it would fail on the shape of a head, or worse, write."""
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    with pytest.raises(ModelError, match=r"is a reward model \(.*task_type SEQ_CLS\), which writes no text"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    with pytest.raises(ModelError, match="does not record its base"):
        load_model(str(tmp_path))
