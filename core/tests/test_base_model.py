"""Models of one's own: each trains, takes a LoRA, is saved, comes back, and generates."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from graftwork import BaseModel, ModelParams, PeftParams, attach_adapter, build_model, merge_adapter
from graftwork.builders import family_of
from graftwork.errors import ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

VALUES = {"vocab_size": 32, "hidden_size": 16}
IDS = torch.tensor([[5, 9, 3, 7, 11, 4, 8, 6], [1, 2, 3, 4, 5, 6, 7, 8]])


class MyCustomModel(BaseModel):
    """The least that somebody would write: a GRU over embeddings."""

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids, labels=None, **kwargs):
        states, _ = self.gru(self.embed(input_ids))
        return self.head(torch.tanh(self.mix(states)))


class WindowLM(BaseModel):
    """An MLP over the last three embeddings; strict about its arguments, tied, and with its own loss in a dict."""

    model_type = "my-window"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mlp = nn.Sequential(nn.Linear(3 * config.hidden_size, config.hidden_size), nn.GELU())
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head.weight = self.embed.weight
        # Neither a weight nor a copy of one: nothing in the checkpoint brings it back
        self.register_buffer("scale", torch.arange(1.0, 4.0), persistent=False)

    def forward(self, input_ids, labels=None):
        padded = nn.functional.pad(input_ids, (2, 0))
        windows = self.embed(padded.unfold(1, 3, 1)) * self.scale[:, None]
        logits = self.head(self.mlp(windows.flatten(2)))
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"logits": logits, "loss": loss}


class TinyConfig(PretrainedConfig):
    model_type = "tiny-attention"

    def __init__(self, vocab_size=32, hidden_size=16, heads=2, **kwargs):
        self.vocab_size, self.hidden_size, self.heads = vocab_size, hidden_size, heads
        super().__init__(**kwargs)


class TinyAttention(BaseModel):
    """A transformer layer that knows masks and positions, with a configuration class of its own."""

    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(64, config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None, logits_to_keep=0, **kwargs):
        B, T = input_ids.shape
        if position_ids is None:
            ones = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            position_ids = (ones.cumsum(-1) - 1).clamp(min=0)
        x = self.embed_tokens(input_ids) + self.positions(position_ids)
        q, k, v = self.qkv(x).view(B, T, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        mask = torch.ones(T, T, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool() | torch.eye(T, dtype=torch.bool)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.lm_head(x + self.out(attended.transpose(1, 2).reshape(B, T, -1)))


CLASSES = (MyCustomModel, WindowLM, TinyAttention)


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(cls: Any) -> Any:
    torch.manual_seed(0)
    return cls(VALUES)


def logits(model: Any, ids: torch.Tensor = IDS, **keywords: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, **keywords).logits


def train(model: Any, steps: int = 8) -> list[float]:
    """A plain loop, with the keywords that a trainer passes to every model."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-2)
    losses = []
    model.train()
    for _ in range(steps):
        output = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
        loss = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_it_trains(model: Any) -> None:
    losses = train(model)
    assert losses[-1] < losses[0]


def test_it_takes_a_lora_and_merges(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "base")
    base = build_model(ModelParams(model_name=str(tmp_path / "base")))
    before = logits(base)
    adapted = attach_adapter(base, PeftParams(lora_r=4, lora_alpha=16))
    assert torch.allclose(logits(adapted), before, atol=1e-6)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    trained = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", output_dir=tmp_path / "merged")
    assert type(merged) is type(model)
    torch.testing.assert_close(logits(merged), trained, atol=1e-5, rtol=1e-5)
    again = build_model(ModelParams(model_name=str(tmp_path / "merged")))
    assert all(torch.equal(tensor, merged.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_saved_and_comes_back(model: Any, tmp_path: Path, dtype: str) -> None:
    model = model.to(getattr(torch, dtype))
    said = logits(model)
    model.save_pretrained(tmp_path / "saved", max_shard_size="2KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    for again in (
        build_model(ModelParams(model_name=str(tmp_path / "saved"))),
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved"),
        type(model).from_pretrained(str(tmp_path / "saved")),
    ):
        assert type(again) is type(model)
        assert again.dtype is getattr(torch, dtype)
        assert not again.training
        assert torch.equal(logits(again), said)
    fresh = build_model(ModelParams(model_name=str(tmp_path / "saved"), load_pretrained_weights=False))
    assert not torch.equal(logits(fresh), said)
    wide = build_model(ModelParams(model_name=str(tmp_path / "saved"), torch_dtype="float32"))
    assert wide.dtype is torch.float32
    assert family_of(model).name == "generic"


def test_it_generates(model: Any, tmp_path: Path) -> None:
    ids = IDS
    for _ in range(5):
        ids = torch.cat([ids, logits(model, ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    settings = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert model.generate(IDS, **settings).tolist() == ids.tolist()
    assert model.generate(IDS, **settings, use_cache=True).tolist() == ids.tolist()
    adapted = attach_adapter(model, PeftParams(lora_r=2))
    assert adapted.generate(input_ids=IDS, **settings).tolist() == ids.tolist()


def test_its_loss_is_the_next_tokens(model: Any) -> None:
    labels = IDS.clone()
    labels[0, :4] = -100
    output = model(input_ids=IDS, labels=labels)
    expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_logits_are_kept_where_they_are_asked_for(cls: Any) -> None:
    torch.manual_seed(0)
    model = cls(VALUES)
    everything = logits(model)
    if cls is TinyAttention:  # it names logits_to_keep, so it is its own affair
        assert logits(model, logits_to_keep=2).shape == everything.shape
        return
    assert torch.equal(logits(model, logits_to_keep=0), everything)
    assert torch.equal(logits(model, logits_to_keep=2), everything[:, -2:])
    assert torch.equal(logits(model, logits_to_keep=torch.tensor([1, 5])), everything[:, [1, 5]])


def test_weights_stay_as_the_constructor_drew_them() -> None:
    torch.manual_seed(4)
    model = MyCustomModel(VALUES)
    torch.manual_seed(4)
    assert torch.equal(model.embed.weight, nn.Embedding(32, 16).weight)


def test_a_mapping_or_a_configuration_is_taken(cls: Any) -> None:
    for config in (VALUES, cls.config_class(**VALUES), {"model_type": "ignored", **VALUES}):
        model = cls(config)
        assert model.config.vocab_size == 32
        assert model.config.model_type == cls.config_class.model_type
    assert (MyCustomModel.config_class.model_type, WindowLM.config_class.model_type) == ("my_custom_model", "my-window")


def test_padding_is_never_ignored_in_silence() -> None:
    padded = torch.ones_like(IDS)
    padded[0, :3] = 0
    with pytest.raises(ModelError, match=r"the batch is padded, and this model's forward takes no attention_mask"):
        WindowLM(VALUES)(input_ids=IDS, attention_mask=padded)
    torch.manual_seed(0)
    model = TinyAttention(VALUES)
    alone = logits(model, IDS[:1, 3:])
    torch.testing.assert_close(logits(model, attention_mask=padded)[:1, 3:], alone)


def test_a_padded_batch_generates_what_each_row_does_alone() -> None:
    torch.manual_seed(0)
    model = TinyAttention(VALUES)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    together = model.generate(IDS, attention_mask=mask, **settings)
    alone = model.generate(IDS[:1, 3:], attention_mask=mask[:1, 3:], **settings)
    assert together[0, 8:].tolist() == alone[0, 5:].tolist()


def test_a_configuration_class_of_ones_own_names_its_keys(tmp_path: Path) -> None:
    TinyAttention(VALUES).save_pretrained(tmp_path)
    params = ModelParams(model_name=str(tmp_path), load_pretrained_weights=False)
    assert build_model(params, heads=4).config.heads == 4
    with pytest.raises(UsageError, match="did you mean heads"):
        build_model(params, haeds=4)


def test_a_class_that_is_defined_again_replaces_the_old_one(tmp_path: Path) -> None:
    def define(size: int) -> Any:
        class Redefined(BaseModel):
            def __init__(self, config):
                super().__init__(config)
                self.embed = nn.Embedding(config.vocab_size, config.vocab_size)
                self.size = size

            def forward(self, input_ids, **kwargs):
                return self.embed(input_ids)

        return Redefined

    define(1)
    second = define(2)
    second({"vocab_size": 8}).save_pretrained(tmp_path / "saved")
    assert build_model(ModelParams(model_name=str(tmp_path / "saved"))).size == 2


def test_transformers_own_model_types_cannot_be_taken() -> None:
    with pytest.raises(UsageError, match=r"Llama: model_type 'llama' is transformers' own; set model_type = "):

        class Llama(BaseModel):
            pass


def test_a_forward_that_returns_no_logits_is_an_error() -> None:
    class Wordless(BaseModel):
        def forward(self, input_ids, **kwargs):
            return {"hidden": input_ids}

    with pytest.raises(ModelError, match=r"forward returned dict: return the logits \(batch, length, vocabulary\)"):
        Wordless({})(input_ids=IDS)


def test_in_a_process_without_the_class_the_folder_is_refused(tmp_path: Path) -> None:
    MyCustomModel(VALUES).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved/config.json"
    config = json.loads(file.read_text())
    assert config["model_type"] == "my_custom_model"
    assert "auto_map" not in config
    code = (
        "import sys; from graftwork import ModelParams, build_model; from graftwork.errors import ModelError\n"
        "try: build_model(ModelParams(model_name=sys.argv[1]))\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file.parent)], capture_output=True, text=True, check=True, timeout=120
    )
    assert "nobody here knows model_type 'my_custom_model'" in done.stdout
    assert "If it is a graftwork.BaseModel of yours, import the module that defines it first" in done.stdout


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "saved")
    MyCustomModel(VALUES).save_pretrained(path)
    with pytest.raises(ModelError, match="size mismatch"):
        build_model(ModelParams(model_name=path), hidden_size=8)
    (tmp_path / "saved/model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights in a known format are here"):
        build_model(ModelParams(model_name=path))


FAMILY = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset

def _build(request):
    import torch
    from torch import nn
    from graftwork import BaseModel

    class Grafted(BaseModel):
        model_type = "grafted"
        def __init__(self, config):
            super().__init__(config)
            self.embed = nn.Embedding(config.vocab_size, config.width)
            self.head = nn.Linear(config.width, config.vocab_size)
        def forward(self, input_ids, **kwargs):
            return self.head(self.embed(input_ids))

    return request.build(Grafted)

@hookimpl
def graftwork_model_families():
    preset = Preset(name="grafted_s", model_type="grafted", values={"vocab_size": 32, "width": 8}, num_parameters=544)
    return [ModelFamily(name="grafted", model_types=("grafted",), presets=(preset,), build=_build)]
"""


def test_a_family_plugin_builds_its_own_architecture_without_being_imported(
    install_plugin: Any, tmp_path: Path
) -> None:
    install_plugin(FAMILY)
    model = build_model(ModelParams(model_name="grafted_s", load_pretrained_weights=False), width=16)
    assert model.embed.weight.shape == (32, 16)
    assert family_of(model).name == "grafted"
    model.save_pretrained(tmp_path / "saved")
    again = build_model(ModelParams(model_name=str(tmp_path / "saved")))
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(UsageError, match=r"'widht' is no key of a grafted configuration: did you mean width"):
        build_model(ModelParams(model_name="grafted_s", load_pretrained_weights=False), widht=16)
