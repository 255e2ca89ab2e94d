"""Rows prepared in bulk: the ids and masks of the plain encoder, row by row, for real tokenizers and real sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftwork.config import DatasetParams, DatasetSplitParams
from graftwork.data.batch import to_row
from graftwork.data.blocks import Packer, Packing, plan_blocks
from graftwork.data.conversations import texts_of, to_conversation, tools_of
from graftwork.data.indexed import IndexedLoader
from graftwork.data.loader import LoadRequest, load_indexed
from graftwork.data.readers import OpenRequest, open_chat
from graftwork.data.samples import Sample

DATA = Path(os.environ.get("GRAFTWORK_TEST_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real files: set GRAFTWORK_TEST_DATA")
SETS = ("alpaca_en_demo.0-499.json", "gsm8k_train.0-999.jsonl", "raschka_instruction.0-799.json", "identity.json")
MODELS = {
    "llama2": "llama2",
    "llama3": "llama3-instruct",
    "phi3": "phi3-instruct",
    "qwen2.5": "qwen2.5",
    "mistral/tokenizer.model.v1": "mistral-v1",  # encoded in parts
}


def rows_of(path: Path) -> list[Any]:
    dataset = DatasetParams(dataset_name="text_sft", dataset_path=str(path))
    return list(open_chat(OpenRequest(dataset=dataset, params=None)).rows())


@needs_data
@pytest.mark.parametrize("name", MODELS)
def test_real_sets_are_encoded_as_row_by_row(name: str) -> None:
    from graftwork import ModelParams, build_tokenizer
    from graftwork.chat import check_turns, encode_conversation
    from graftwork.tokenizers import stop_token_ids

    params = ModelParams(model_name=str(DATA / "tokenizers" / name), chat_template=MODELS[name])
    plain, quick = build_tokenizer(params), build_tokenizer(params)
    stops = stop_token_ids(plain)
    for file in SETS:
        path = DATA / "datasets" / "instruct" / file
        split = DatasetSplitParams(datasets=[{"dataset_name": "text_sft", "dataset_path": str(path)}])
        request = LoadRequest(
            split=split,
            tokenizer=quick,
            max_length=100_000,
            stop_ids=stops,
            seed=0,
            batch_size=1,
            special_tokens_in_content="as_text",
        )
        [samples] = load_indexed(request).datasets
        rows = rows_of(path)
        assert len(samples) == len(rows)
        for row, sample in zip(rows, samples, strict=True):
            given = {"tools": tools_of(row), "special_tokens_in_content": "as_text"}
            encoded = encode_conversation(to_conversation(row), tokenizer=plain, **given)
            encoded = check_turns(encoded, stops, plain)
            assert sample.where == row.where
            assert sample.input_ids.tolist() == encoded.input_ids, row.where
            assert sample.trained.tolist() == encoded.trained, row.where


def samples_of(generator: np.random.Generator, count: int, longest: int, *, documents: bool) -> list[Sample]:
    made = []
    for number in range(count):
        ids = generator.integers(0, 1000, generator.integers(0, longest + 1)).astype(np.int32)
        trained = np.ones(len(ids), np.bool_) if documents else generator.random(len(ids)) < 0.3
        made.append(Sample(ids, trained, str(number)))
    return made


@pytest.mark.parametrize(("packing", "documents"), [("none", True), ("none", False), ("whole", False), ("cut", True)])
def test_blocks_are_planned_as_they_are_packed_one_by_one(packing: Packing, documents: bool) -> None:
    generator = np.random.default_rng(3)
    for _ in range(300):
        max_length = int(generator.integers(2, 9))
        longest = 20 if documents else max_length
        samples = samples_of(generator, int(generator.integers(0, 12)), longest, documents=documents)
        packer = Packer(max_length, packing, documents=documents)
        expected = [block for sample in samples for block in packer.add(sample)] + list(packer.flush())
        lengths = np.asarray([len(sample) for sample in samples], np.int64)
        teaches = np.asarray([sample.trained[1:].any() for sample in samples], np.bool_)
        plan = plan_blocks(lengths, teaches, packer)
        found = [[samples[i].cut(a, b) for i, a, b in plan.pieces(block)] for block in range(len(plan))]
        as_lists = [
            [[(one.where, one.input_ids.tolist(), one.trained.tolist()) for one in block] for block in blocks]
            for blocks in (expected, found)
        ]
        assert as_lists[0] == as_lists[1]


@needs_data
@pytest.mark.parametrize("name", ["llama3", "phi3"])
def test_every_shipped_template_pours_the_real_sets(name: str) -> None:
    """Ids and masks of moulds against conversation by conversation; whoever looks at texts pours none."""
    from graftwork import ModelParams, build_tokenizer
    from graftwork.chat import check_turns, encode_conversation
    from graftwork.chat.moulds import Moulds
    from graftwork.registry import get_registry

    tokenizer = build_tokenizer(ModelParams(model_name=str(DATA / "tokenizers" / name), chat_template=MODELS[name]))
    stops = frozenset(range(len(tokenizer)))
    rows = [row for file in SETS for row in rows_of(DATA / "datasets" / "instruct" / file)[:15]]
    turns = [turn for turn in (texts_of(to_conversation(row)) for row in rows) if turn is not None]
    turns += [(("system", *roles, *roles), ["Be brief.", *texts, *texts]) for roles, texts in turns[:20]]
    poured = 0
    for template in (record.path.read_text("utf-8") for record in get_registry().chat_templates.values()):
        tokenizer.chat_template = template
        moulds = Moulds(
            tokenizer,
            train_target="all_assistant_turns",
            special_tokens_in_content="as_text",
            stop_ids=stops,
            variables={},
        )
        for roles, texts in turns:
            if (found := moulds.encode(roles, texts)) is None:
                continue
            messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            expected = check_turns(
                encode_conversation(messages, tokenizer=tokenizer, special_tokens_in_content="as_text"), stops
            )
            assert found.input_ids == expected.input_ids
            assert sum(end - start for start, end in found.trained) == sum(expected.trained)
            assert all(all(expected.trained[start:end]) for start, end in found.trained)
            poured += 1
    assert poured > 15 * len(turns) > 0


def test_an_epoch_is_begun_in_its_middle_without_what_is_before() -> None:
    generator = np.random.default_rng(4)
    samples = samples_of(generator, 50, 30, documents=True)
    split = DatasetSplitParams(datasets=[{"dataset_name": "text", "shuffle": True}], pack=True)

    def loader() -> IndexedLoader:
        return IndexedLoader(
            [samples], split, lambda: Packer(16, "cut", documents=True), seed=1, batch_size=2, accumulation=2
        )

    whole = loader()
    blocks = list(whole.blocks(0))
    steps = whole.steps()
    first = [next(steps) for _ in range(whole.count_steps(1))]
    expected = [to_row([piece for block in blocks[i : i + 2] for piece in block]) for i in range(0, len(blocks), 2)]
    found = [row for step in first for row in step]
    assert [row.input_ids.tolist() for row in found] == [row.input_ids.tolist() for row in expected]
    assert [row.labels.tolist() for row in found] == [row.labels.tolist() for row in expected]
    middle = loader()
    middle.load_state_dict({"epoch": 0, "step_in_epoch": 3})
    assert [row.input_ids.tolist() for row in next(middle.steps())] == [row.input_ids.tolist() for row in first[3]]
    assert middle.state_dict() == {"epoch": 0, "step_in_epoch": 4}
