"""A card of a published model whose files are not to be had: the error names what was written, and both ways on."""

from __future__ import annotations

import pytest

from graftwork import ModelParams, build_model, build_tokenizer
from graftwork.errors import GraftworkError

CARD = "name: toy_1b\ncheckpoint: hf://org/toy\n"


@pytest.mark.parametrize("build", [build_model, build_tokenizer])
def test_the_name_that_was_written_and_both_remedies(build, tmp_path, monkeypatch):
    (tmp_path / "cards.yaml").write_text(CARD)
    monkeypatch.setenv("GRAFTWORK_CARD_PATH", str(tmp_path / "cards.yaml"))

    def unreachable(repository, revision, cache_dir, patterns):
        raise GraftworkError(f"model {repository} is not in the cache")

    monkeypatch.setattr("graftwork.sources.hub._snapshot", unreachable)
    with pytest.raises(GraftworkError) as caught:
        build(ModelParams(model_name="toy_1b"))
    said = str(caught.value)
    assert caught.value.exit_code == 1
    assert "model.model_name toy_1b means the published model hf://org/toy" in said
    assert "model org/toy is not in the cache" in said
    assert "(graft download toy_1b)" in said
    assert "set model.load_pretrained_weights to false and model.tokenizer_name to a folder" in said
    with pytest.raises(GraftworkError) as caught:
        build(ModelParams(model_name="org/toy"))
    assert str(caught.value) == "model org/toy is not in the cache"
