"""Added tokens from the configuration through training, the adapter and the merge to plain transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork import ModelParams, build_model, build_tokenizer, merge_adapter, train
from graftwork.adapters.tokens import add_rows, make_room
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = ["<call>", "<done>"]
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["attention"]}
ALLOW = {"special_tokens_in_content": "allow"}
USED, UNUSED = 259, 260  # <call> is in the data, <done> is not; the toy tokenizer has 259 tokens, 0 to 258


def write_rows(path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{number}"},
                {"role": "assistant", "content": f"<call>a{number}"},
            ]
        }
        for number in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_here(toys: Any, tmp_path: Path, toy: Path, name: str = "run", **sections: Any) -> Path:
    data = {"train": toys.split(write_rows(tmp_path / "rows.jsonl")), **ALLOW}
    training = {"output_dir": str(tmp_path / name), "use_peft": True, "max_steps": 6, **sections.pop("training", {})}
    model = {"added_tokens": TOKENS, **sections.pop("model", {})}
    peft = {**LORA, **sections.pop("peft", {})}
    train(toys.config(tmp_path, toy, data, training=training, model=model, peft=peft, **sections))
    return tmp_path / name


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, USED, 9, UNUSED, 7]])).logits.float()


def rows_of(folder: Path, tied: bool) -> list[torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return [weights["model.embed_tokens.weight"], *([] if tied else [weights["lm_head.weight"]])]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("vocab_size", [259, 260, 320])
def test_from_training_to_plain_transformers(toys: Any, tmp_path: Path, tied: bool, vocab_size: int) -> None:
    """A vocabulary that is full, one with a row to spare, and one that was padded."""
    toy = toys.save(tmp_path / "toy", tie_word_embeddings=tied, vocab_size=vocab_size)
    adapter = run_here(toys, tmp_path, toy) / "final"
    merge_adapter(adapter, output_dir=tmp_path / "merged")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.convert_tokens_to_ids(TOKENS) == [USED, UNUSED]
    assert tokenizer("<call>a<done>").input_ids[0::2] == [USED, UNUSED]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    rows = max(vocab_size, UNUSED + 1)
    assert plain.config.vocab_size == rows
    assert plain.get_input_embeddings().weight.shape == (rows, 32)
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied

    for before, after in zip(rows_of(toy, tied), rows_of(tmp_path / "merged", tied), strict=True):
        others = [row for row in range(vocab_size) if row not in (USED, UNUSED)]
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[USED], before[others].mean(0))  # it was trained
    loaded = build_model(ModelParams(model_name=str(adapter)))
    assert isinstance(loaded, PeftModel)
    torch.testing.assert_close(logits(plain), logits(loaded), rtol=1e-4, atol=1e-4)
    stored = load_file(adapter / "adapter_model.safetensors")
    assert all("lora_" in name or "token_adapter" in name for name in stored), stored.keys()
    trained = torch.stack([value for name, value in stored.items() if "embed_tokens" in name][0:1])[0]
    torch.testing.assert_close(trained, rows_of(tmp_path / "merged", tied)[0][[USED, UNUSED]])


def test_the_model_says_the_token(toys: Any, tmp_path: Path) -> None:
    """Every answer begins with it: after some steps the model does so, before and after the merge."""
    toy = toys.save(tmp_path / "toy", vocab_size=259)
    run = run_here(toys, tmp_path, toy, training={"max_steps": 40, "learning_rate": 0.02})
    merge_adapter(run / "final", output_dir=tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    prompt = tokenizer("<user>q3\n", return_tensors="pt").input_ids
    said = model.generate(prompt, max_new_tokens=2, do_sample=False, pad_token_id=258)[0, prompt.shape[1] :]
    assert said[0] == USED
    assert tokenizer.decode(said).startswith("<call>a")


def test_resumed_to_the_bit(toys: Any, tmp_path: Path) -> None:
    toy = toys.save(tmp_path / "toy", vocab_size=259)
    through = run_here(toys, tmp_path, toy, "through", training={"save_steps": 3})
    resume = {"resume_from_checkpoint": str(through / "checkpoints" / "step-3"), "save_steps": 3}
    again = run_here(toys, tmp_path, toy, "again", training=resume)
    one, two = (load_file(run / "final" / "adapter_model.safetensors") for run in (through, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_whole_embeddings_may_be_trained_instead(toys: Any, tmp_path: Path) -> None:
    toy = toys.save(tmp_path / "toy", vocab_size=259)
    peft = {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
    run = run_here(toys, tmp_path, toy, peft=peft, training={"max_steps": 3})
    merge_adapter(run / "final", output_dir=tmp_path / "merged")
    embeddings, head = rows_of(tmp_path / "merged", tied=False)
    assert embeddings.shape == head.shape == (261, 32)
    assert not torch.equal(head[:259], rows_of(toy, tied=False)[1])
    loaded = build_model(ModelParams(model_name=str(run / "final")))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain), logits(loaded), rtol=1e-4, atol=1e-4)


def test_all_weights_with_added_tokens(toys: Any, tmp_path: Path) -> None:
    toy = toys.save(tmp_path / "toy", vocab_size=259)
    run = run_here(toys, tmp_path, toy, training={"use_peft": False, "save_steps": 3})
    plain = AutoModelForCausalLM.from_pretrained(run / "final")
    assert plain.config.vocab_size == 261
    assert AutoTokenizer.from_pretrained(run / "final").convert_tokens_to_ids("<done>") == UNUSED
    resume = {"resume_from_checkpoint": str(run / "checkpoints" / "step-3"), "use_peft": False}
    again = run_here(toys, tmp_path, toy, "again", training=resume)
    files = [load_file(folder / "final" / "model.safetensors") for folder in (run, again)]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())


@pytest.mark.parametrize("mode", ["merged", "full"])
def test_a_quantized_base_gets_the_rows_too(toys: Any, tmp_path: Path, mode: str) -> None:
    pytest.importorskip("bitsandbytes")
    toy = toys.save(tmp_path / "toy", vocab_size=259)
    peft = {"q_lora": True, "bnb_4bit_quant_type": "nf4", "save_mode": mode}
    final = run_here(toys, tmp_path, toy, peft=peft) / "final"
    plain = build_model(ModelParams(model_name=str(final)))
    assert plain.config.vocab_size == 261
    assert logits(plain).shape[-1] == 261


def test_an_adapter_that_is_trained_further_needs_their_rows(toys: Any, tmp_path: Path) -> None:
    toy = toys.save(tmp_path / "toy", vocab_size=320)
    first = run_here(toys, tmp_path, toy, "first", training={"max_steps": 2})
    again = run_here(toys, tmp_path, toy, "again", model={"adapter_model": str(first / "final")})
    assert (again / "final" / "adapter_model.safetensors").exists()
    with pytest.raises(UsageError, match=r"model\.added_tokens: the adapter that is trained further has no rows for"):
        run_here(
            toys,
            tmp_path,
            toy,
            "more",
            model={"adapter_model": str(first / "final"), "added_tokens": [*TOKENS, "<x>"]},
        )


def test_new_rows_are_the_mean_of_the_old(toys: Any) -> None:
    model = toys.model("llama", vocab_size=300)
    before = model.get_input_embeddings().weight.detach().clone()
    make_room(model, 302)
    after = model.get_input_embeddings().weight
    assert torch.equal(after[:300], before)
    torch.testing.assert_close(after[300:], before.mean(0).expand(2, -1))
    make_room(model, 4)
    assert model.config.vocab_size == 302
    padded = toys.model("llama", vocab_size=300)
    add_rows(padded, [298, 299])
    head = padded.get_output_embeddings().weight
    torch.testing.assert_close(head[299], head[:298].mean(0))


def test_tokens_of_the_tokenizer(llama: Path) -> None:
    tokenizer = build_tokenizer(ModelParams(model_name=str(llama), added_tokens=["<call>", "<end>"]))
    assert tokenizer.convert_tokens_to_ids(["<call>", "<end>"]) == [259, 257]
    assert "<call>" in tokenizer.all_special_tokens or 259 in tokenizer.added_tokens_decoder
    with pytest.raises(UsageError, match=r"model\.added_tokens .*remove the empty one"):
        build_tokenizer(ModelParams(model_name=str(llama), added_tokens=[" "]))
