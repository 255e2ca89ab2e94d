"""Key maps: names both ways, rows of heads, and the numbers of ``params.json``."""

from __future__ import annotations

import pytest
import torch

from graftwork.checkpoints.consolidated import consolidated_map, feed_forward_width, shared_config, shared_params
from graftwork.checkpoints.keymap import KeyMap, Rule, halves_to_pairs, pairs_to_halves
from graftwork.errors import ModelError

# dim, width, multiple_of and ffn_dim_multiplier of Meta's own params.json
PUBLISHED = {
    "llama2_7b": (4096, 11008, 256, None),
    "llama2_70b": (8192, 28672, 4096, 1.3),
    "llama3_8b": (4096, 14336, 1024, 1.3),
    "llama3_1_405b": (16384, 53248, 4096, 1.2),
    "llama3_2_1b": (2048, 8192, 256, 1.5),
    "llama3_2_3b": (3072, 8192, 256, 1.0),
    "stories260K": (64, 172, 4, None),
}
CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def test_rows_in_pairs_become_rows_in_halves_head_by_head() -> None:
    theirs = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]).reshape(8, 1)  # two heads of x0 y0 x1 y1
    halves = pairs_to_halves(theirs, 2)
    assert halves.flatten().tolist() == [0, 2, 1, 3, 10, 12, 11, 13]
    assert torch.equal(halves_to_pairs(halves, 2), theirs)


@pytest.mark.parametrize("shape", [(48, 5), (48,)])
def test_the_order_of_rows_has_a_way_back(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    assert torch.equal(halves_to_pairs(pairs_to_halves(tensor, 3), 3), tensor)
    assert not torch.equal(pairs_to_halves(tensor, 3), tensor)


def test_every_name_has_one_other_and_back() -> None:
    key_map = consolidated_map(layout="mistral", model_type="mixtral", experts=True)
    numbers = {"layers.{}.": "layers.17.", "experts.{}.": "experts.3."}
    for rule in key_map.rules:
        theirs = rule.theirs
        for pattern, name in numbers.items():
            theirs = theirs.replace(pattern, name)
        mapped = key_map.to_hf(theirs)
        assert mapped is not None
        back = key_map.to_theirs(mapped[0])
        assert back == (theirs, rule)
    assert key_map.to_hf("layers.3.feed_forward.experts.12.w1.weight") is not None
    assert key_map.to_hf("layers.x.attention.wq.weight") is None
    assert key_map.is_derived("rope.freqs")
    assert not key_map.is_derived("norm.weight")


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Rule(theirs="a", hf="c"), "'a' stands in two rules"),
        (Rule(theirs="c", hf="b"), "'b' stands in two rules"),
        (Rule(theirs="c.{}", hf="d"), "different numbers"),
    ],
)
def test_a_map_without_a_way_back_is_refused(second: Rule, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KeyMap(rules=(Rule(theirs="a", hf="b"), second), to_config=dict, to_params=dict)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_width_of_published_models_and_a_params_json_that_says_it(name: str) -> None:
    dim, width, multiple_of, multiplier = PUBLISHED[name]
    assert feed_forward_width(dim, multiple_of, multiplier) == width
    values = {**CONFIG, "hidden_size": dim, "intermediate_size": width}
    assert shared_config(shared_params(values, "meta"))["intermediate_size"] == width


@pytest.mark.parametrize("width", [1, 97, 172, 1000, 4095, 11009])
def test_any_width_can_be_said(width: int) -> None:
    values = {**CONFIG, "hidden_size": 4096, "intermediate_size": width}
    for layout in ("meta", "mistral"):
        assert shared_config(shared_params(values, layout))["intermediate_size"] == width  # type: ignore[arg-type]


def test_what_params_json_lacks_is_named() -> None:
    with pytest.raises(ModelError, match="n_layers, n_heads is not in it"):
        shared_config({"dim": 8})
