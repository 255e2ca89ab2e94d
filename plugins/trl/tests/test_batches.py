"""The batches are those that TRL's own tokenization and collators make, or transformers' template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.reward_trainer import DataCollatorForPreference as RewardCollator
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from graftwork_trl import batches
from graftwork_trl.data import load_data
from graftwork_trl.methods import METHODS

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.config import RunConfig

PAD, END = 258, frozenset({257})


def first_row(toys: Any, folder: Path, method: str, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Any:
    """The first row that the method's loader gives, of four samples, and what it knows beside."""
    data = toys.data(folder, method, **changes)
    if rows is not None:
        toys.write(folder / f"{method}.jsonl", rows)
    config: RunConfig = toys.config(folder, folder, method, data, training={"per_device_train_batch_size": 4})
    loaded = load_data(config, METHODS[method], toys.tokenizer(), END, 1)
    return next(loaded.train.steps())[0], loaded.labels


def same(ours: dict[str, Any], theirs: dict[str, Any], *left_out: str) -> None:
    assert set(ours) == set(theirs) - set(left_out)
    for name, value in ours.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name


def templated(tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]
    return ids


def sides(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """A pair as TRL 1.16 tokenizes it: the prompt, and what comes after it with either answer."""
    prompt = templated(tokenizer, row["messages"], add_generation_prompt=True)
    whole = {side: templated(tokenizer, row["messages"] + row[side]["messages"]) for side in ("chosen", "rejected")}
    assert all(ids[: len(prompt)] == prompt for ids in whole.values())
    return {"prompt_ids": prompt, **{f"{side}_ids": ids[len(prompt) :] for side, ids in whole.items()}}


def test_chat_rows_for_sft(toys: Any, tmp_path: Path) -> None:
    row, _ = first_row(toys, tmp_path, "TRL_SFT")
    tokenizer, examples = toys.tokenizer(), []
    for one in toys.chat()[:4]:
        encoded = tokenizer.apply_chat_template(one["messages"], return_dict=True, return_assistant_tokens_mask=True)
        marked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        examples.append({"input_ids": encoded["input_ids"], "labels": [i if mask else -100 for i, mask in marked]})
    same(batches.language(row, PAD), DataCollatorForLanguageModeling(PAD)(examples))
    row, _ = first_row(toys, tmp_path, "TRL_SFT", pack=True, max_length=60)
    first_block = examples[: len(row.segment_lengths)]
    whole = DataCollatorForLanguageModeling(PAD, padding_free=True)(first_block)
    assert len(first_block) > 1
    ours = batches.packed(row, PAD)
    assert int(ours["labels"].ne(-100).sum()) == batches.weight(ours)
    if len(row.segment_lengths) == len(examples):
        same(ours, whole, "seq_idx")


def test_pairs_for_dpo(toys: Any, tmp_path: Path) -> None:
    row, _ = first_row(toys, tmp_path, "TRL_DPO")
    tokenizer = toys.tokenizer()
    theirs = DataCollatorForPreference(PAD)([sides(tokenizer, one) for one in toys.pairs()[:4]])
    same(batches.preference(row, PAD), theirs)
    assert batches.weight(theirs) == 4


def test_pairs_for_a_reward_model(toys: Any, tmp_path: Path) -> None:
    row, _ = first_row(toys, tmp_path, "TRL_RM")
    tokenizer, examples = toys.tokenizer(), []
    for one in [sides(tokenizer, pair) for pair in toys.pairs()[:4]]:
        examples.append({f"{side}_ids": one["prompt_ids"] + one[f"{side}_ids"] for side in ("chosen", "rejected")})
    same(batches.reward(row, PAD), RewardCollator(PAD)(examples))


def test_pairs_for_orpo(toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = first_row(toys, tmp_path, "TRL_ORPO")
    tokenizer, examples = toys.tokenizer(), []
    for one in [sides(tokenizer, pair) for pair in toys.pairs()[:4]]:
        prompt = one["prompt_ids"]
        example: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            ids = prompt + one[f"{side}_ids"]
            example |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids)}
            example[f"{side}_labels"] = [-100] * len(prompt) + one[f"{side}_ids"]
        examples.append(example)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.utils import DPODataCollatorWithPadding

    theirs = DPODataCollatorWithPadding(pad_token_id=PAD)(examples)
    ours = batches.odds(row, PAD)
    assert batches.weight(ours) == 4
    # TRL pads prompts on the left, for generating in an evaluation, which is off
    length = theirs["prompt_input_ids"].shape[1]
    for number, example in enumerate(examples):
        assert ours["prompt_input_ids"][number, : len(example["prompt_input_ids"])].tolist() == (
            theirs["prompt_input_ids"][number, length - len(example["prompt_input_ids"]) :].tolist()
        )
    prompts = ("prompt_input_ids", "prompt_attention_mask")
    same({name: value for name, value in ours.items() if name not in prompts}, theirs, *prompts)


def judged(tokenizer: Any, prompt: list[dict[str, str]], answer: list[dict[str, str]], label: bool) -> dict[str, Any]:
    asked, whole = templated(tokenizer, prompt, add_generation_prompt=True), templated(tokenizer, prompt + answer)
    return {"prompt_ids": asked, "completion_ids": whole[len(asked) :], "label": label}


def rotated(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL 1.16's ``add_kl_completion_ids`` within one batch."""
    answers = [one["completion_ids"] for one in examples]
    others = [answers[-1], *answers[:-1]]
    return [{**one, "KL_completion_ids": other} for one, other in zip(examples, others, strict=True)]


def test_judged_answers_for_kto(toys: Any, tmp_path: Path) -> None:
    rows = toys.judged()
    rows[0]["messages"] = toys.chat()[5]["messages"] + rows[0]["messages"]  # an answer in the prompt is not judged
    row, labels = first_row(toys, tmp_path, "TRL_KTO", rows)
    tokenizer = toys.tokenizer()
    examples = [judged(tokenizer, one["messages"][:-1], one["messages"][-1:], one["label"]) for one in rows[:4]]
    theirs = DataCollatorForUnpairedPreference(PAD)(rotated(examples))
    ours = batches.unpaired(row, PAD, labels)
    same(ours, theirs)
    assert ours["label"].tolist() == [False, True, True, False]
    assert batches.weight(ours) == 4


def test_pairs_for_kto_are_two_judged_answers(toys: Any, tmp_path: Path) -> None:
    row, _ = first_row(toys, tmp_path, "TRL_DPO")
    tokenizer = toys.tokenizer()
    examples = [
        judged(tokenizer, one["messages"], one[side]["messages"], side == "chosen")
        for one in toys.pairs()[:4]
        for side in ("chosen", "rejected")
    ]
    same(batches.unpaired(row, PAD, {}), DataCollatorForUnpairedPreference(PAD)(rotated(examples)))


def test_judged_answers_of_hugging_face_are_the_same(toys: Any, tmp_path: Path) -> None:
    """A reader that goes by the rows takes one with a label for a preference; here it is a conversation."""
    row, labels = first_row(toys, tmp_path, "TRL_KTO")
    data = {"train": toys.split(tmp_path / "TRL_KTO.jsonl", "huggingface")}
    config = toys.config(tmp_path, tmp_path, "TRL_KTO", data, training={"per_device_train_batch_size": 4})
    loaded = load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), END, 1)
    assert loaded.labels == labels
    same(batches.unpaired(next(loaded.train.steps())[0], PAD, loaded.labels), batches.unpaired(row, PAD, labels))


def test_pairs_of_hugging_face_with_a_label_are_pairs(toys: Any, tmp_path: Path) -> None:
    rows = [{**row, "label": True} for row in toys.pairs()]
    data = {"train": toys.split(toys.write(tmp_path / "pairs.jsonl", rows), "huggingface")}
    config = toys.config(tmp_path, tmp_path, "TRL_KTO", data)
    assert next(load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), END, 1).train.steps())[0].pairs is not None


@pytest.mark.parametrize("label", [None, "yes", 2])
def test_a_row_without_a_verdict_is_told(toys: Any, tmp_path: Path, label: object) -> None:
    from graftwork.errors import DataError

    rows = toys.judged()
    rows[1]["label"] = label
    with pytest.raises(DataError, match=rf"TRL_KTO.jsonl:2: label is {label!r}; each row says with label"):
        first_row(toys, tmp_path, "TRL_KTO", rows)


@pytest.mark.parametrize("reader", ["text_sft", "huggingface"])
def test_the_judged_turn_is_the_last_one(toys: Any, tmp_path: Path, reader: str) -> None:
    """Where the talk goes on after its last answer the label speaks of something else."""
    from graftwork.errors import DataError

    rows = toys.judged()
    rows[1]["messages"].append({"role": "user", "content": "and then?"})
    data = {"train": toys.split(toys.write(tmp_path / "rows.jsonl", rows), reader)}
    config = toys.config(tmp_path, tmp_path, "TRL_KTO", data)
    with pytest.raises(
        DataError, match=r"rows.jsonl:2: the label judges the last turn, which must be the assistant's .* user$"
    ):
        load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), END, 1)


def test_rows_without_a_verdict_go_to_the_account(toys: Any, tmp_path: Path) -> None:
    """As other rows that cannot be used: counted, with reason and place, and left out within the threshold."""
    rows = toys.judged(8)
    del rows[1]["label"]
    rows[4]["messages"][1]["content"] = "no <end>"
    path = toys.write(tmp_path / "rows.jsonl", rows)
    for reader in ("text_sft", "huggingface"):
        data = {"train": {**toys.split(path, reader), "max_rejected": 2}}
        config = toys.config(tmp_path, tmp_path, "TRL_KTO", data)
        loaded = load_data(config, METHODS["TRL_KTO"], toys.tokenizer(), END, 1)
        (account,) = loaded.train.accounts
        assert (account.read, account.used) == (8, 6)
        told = [(kind.places, kind.reason) for kind in account.rejected.values()]
        assert [places for places, _ in told] == [[f"{path}:2"], [f"{path}:5"]]
        assert told[0][1].startswith("label is None; each row says with label: true or false")
        assert "holds <end>" in told[1][1]
        assert {where for row in next(loaded.train.steps()) for where in row.wheres} <= set(loaded.labels)
