"""YAML: what plain scalars mean, anchors, equal keys. Compared with PyYAML and json where those agree."""

from __future__ import annotations

import json
import math
import random

import pytest
import yaml

from graftwork.config import RunConfig
from graftwork.config.reader import parse_value, read_yaml


def read(text, model=None):
    data, reader = read_yaml(text, "f.yaml", model)
    return data, [(problem.origin.line, problem.text) for problem in reader.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000.0),
        ("-2.5e-3", -0.0025),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("1e", "1e"),
        ("-", None),
        ("[a, 1e-5, {b: no}]", ["a", 1e-5, {"b": "no"}]),
        (".inf", math.inf),
        ("-.INF", -math.inf),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text, value):
    found = [None] if text == "-" else value  # a lone dash is a list of nothing
    assert parse_value(text) == found
    assert type(parse_value(text)) is type(found)


def test_every_json_document_reads_as_json_reads_it():
    rng = random.Random(7)
    for _ in range(200):
        document = _random_json(rng, depth=3)
        assert parse_value(json.dumps(document, indent=rng.choice([None, 2]))) == document


def _random_json(rng, depth):
    kinds = ["number", "text", "word", "none", "bool"] + ["list", "dict"] * (depth > 0)
    match rng.choice(kinds):
        case "number":
            return rng.choice(
                [rng.randint(-(10**12), 10**12), rng.uniform(-1e9, 1e9), rng.random() * 10 ** rng.randint(-30, 30)]
            )
        case "text":
            return "".join(rng.choice("ab:#-{}[]'\"\\ é\n,") for _ in range(rng.randint(0, 12)))
        case "word":
            return rng.choice(["no", "1e-5", "null", "~", "<<", "=", "0x1", "true", "1_0", "12:30", "2024-01-01"])
        case "none":
            return None
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [_random_json(rng, depth - 1) for _ in range(rng.randint(0, 4))]
        case _:
            return {f"k{i}": _random_json(rng, depth - 1) for i in range(rng.randint(0, 4))}


ANCHORS = """\
base: &base {a: 1, b: 2}
other: &other {b: 3, c: 4}
one:
  b: 9
  <<: *base
two:
  <<: [*base, *other]
three: [*base, *base]
nested:
  <<: {<<: *base, d: 5}
"""


def test_anchors_and_merges_are_pyyamls():
    data, problems = read(ANCHORS)
    assert problems == []
    assert data == yaml.safe_load(ANCHORS)
    assert data["two"] == {"a": 1, "b": 2, "c": 4}


def test_an_equal_key_is_a_mistake_that_names_both_lines():
    data, problems = read("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    assert problems == [(5, "written twice, at lines 3 and 5; keep one")]
    assert data == {"a": 1, "b": {"c": 1, "d": 2}}


def test_two_spellings_of_one_setting_are_a_mistake():
    _, problems = read("model:\n  dtype: bf16\n  torch_dtype: f32\n", RunConfig)
    assert problems == [
        (3, "written twice, at lines 2 and 3 (as dtype and torch_dtype, which are one setting); keep one")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1, *x]", "the anchor at line 1 contains itself"),
        ("a: !!python/object/apply:os.system ['true']", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !secret x", "the tag !secret is not allowed; a configuration is plain data"),
        ("a: !!int x", "'x' does not fit its tag tag:yaml.org,2002:int"),
        ("? [a, b]\n: 1", "a key must be a single word"),
        ("a:\n  <<: 3", "<< takes a mapping, or a list of mappings"),
    ],
)
def test_what_is_no_plain_data_is_a_mistake(text, said):
    ((_, problem),) = read(text)[1]
    assert said in problem


def test_lines_are_those_of_the_key_also_behind_a_merge():
    _, reader = read_yaml("x: &x\n  a: 1\ny:\n  <<: *x\n  b:\n    - 1\n    - 2\n", "f.yaml", None)
    lines = {path: origin.line for path, origin in reader.origins}
    assert lines[("y", "a")] == 2
    assert lines[("y", "b")] == 5
    assert lines[("y", "b", 1)] == 7


def test_anchors_that_multiply_without_measure_are_refused():
    values = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(yaml.YAMLError, match="more than 100,000 values; do its anchors repeat each other"):
        read("k0: &k0 [1]\n" + values)
    merges = "".join(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
    with pytest.raises(yaml.YAMLError, match="more than 100,000 values; do its anchors repeat each other"):
        read("k0: &k0 {a: 1}\n" + merges)


def test_blocks_within_blocks_without_end_are_refused():
    with pytest.raises(yaml.YAMLError, match="too many blocks within blocks"):
        read("[" * 5000)
