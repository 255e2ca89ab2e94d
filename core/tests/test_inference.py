"""The transformers engine against transformers itself, on models of a few thousand weights."""

from __future__ import annotations

import threading

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from graftwork.config import GenerationParams
from graftwork.errors import ModelError, UsageError
from graftwork.inference import LoadedModel
from graftwork.inference.prompts import encode_prompt, encode_text
from graftwork.inference.transformers_engine import TransformersEngine
from graftwork.specs import ModelFamily

PROMPTS = ["Once", "Once upon a time there was", "x", "The quick brown fox jumps over"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CONTEXT = 64


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, with BOS in front of every text as Llama has it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1, "<pad>": 2, **{letter: at + 3 for at, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
        )
    ).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def loaded(model: torch.nn.Module, **changes) -> LoadedModel:
    fields = {"stop_token_ids": frozenset({1}), "chat_template": TEMPLATE, **changes}
    return LoadedModel(model=model, tokenizer=byte_tokenizer(), family=ModelFamily(name="generic"), path=None, **fields)


@pytest.fixture
def engine() -> TransformersEngine:
    return TransformersEngine(loaded(tiny_llama()))


def greedy(count: int = 12, **changes) -> GenerationParams:
    return GenerationParams(max_new_tokens=count, **changes)


def plain_generate(model, ids: list[int], count: int, **options) -> list[int]:
    """transformers on one prompt, without anything of ours."""
    options = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 2, "eos_token_id": 1, **options}
    return model.generate(input_ids=torch.tensor([ids]), **options)[0, len(ids) :].tolist()


# Greedy


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_greedy_equals_transformers_one_prompt_at_a_time(build, batch_size):
    model = build()
    engine = TransformersEngine(loaded(model))
    made = engine.generate(PROMPTS, greedy(batch_size=batch_size))
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids = byte_tokenizer().encode(prompt)
        assert list(completion.token_ids) == plain_generate(model, ids, 12)
        assert completion.prompt_tokens == len(ids)


def test_the_models_own_generation_config_does_not_leak_in(engine):
    expected = engine.generate(PROMPTS, greedy())
    own = engine.loaded.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_length, own.num_beams = True, 5.0, 3.0, 3, 2
    assert engine.generate(PROMPTS, greedy()) == expected
    own.max_new_tokens = 1
    assert engine.generate(PROMPTS, greedy()) == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_repetition_penalty_is_transformers_and_blind_to_padding(engine, batch_size):
    made = engine.generate(PROMPTS, greedy(batch_size=batch_size, repetition_penalty=1.7))
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids = byte_tokenizer().encode(prompt)
        assert list(completion.token_ids) == plain_generate(engine.loaded.model, ids, 12, repetition_penalty=1.7)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_beams_are_transformers(engine, batch_size):
    made = engine.generate(PROMPTS, greedy(batch_size=batch_size, num_beams=3))
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids = byte_tokenizer().encode(prompt)
        assert list(completion.token_ids) == plain_generate(engine.loaded.model, ids, 12, num_beams=3)


def test_a_model_that_knows_no_attention_mask_is_run_row_by_row():
    class Maskless(LlamaForCausalLM):
        def forward(self, input_ids=None, past_key_values=None, position_ids=None, use_cache=None, **_):
            return super().forward(
                input_ids=input_ids, past_key_values=past_key_values, position_ids=position_ids, use_cache=use_cache
            )

    model = tiny_llama()
    maskless = Maskless(model.config)
    maskless.load_state_dict(model.state_dict())
    expected = TransformersEngine(loaded(model)).generate(PROMPTS, greedy())
    assert TransformersEngine(loaded(maskless.eval())).generate(PROMPTS, greedy(batch_size=4)) == expected


# Ends


def test_a_stop_token_ends_a_row_and_is_counted_but_not_shown(engine):
    first = engine.generate(["Once"], greedy())[0]
    stop = first.token_ids[5]
    at = first.token_ids.index(stop)
    made = TransformersEngine(loaded(engine.loaded.model, stop_token_ids=frozenset({stop}))).generate(
        ["Once"], greedy()
    )
    assert made[0].token_ids == first.token_ids[: at + 1]
    assert made[0].finish_reason == "stop"
    assert made[0].completion_tokens == at + 1
    assert engine.generate(["Once"], greedy(stop_token_ids=[stop])) == made


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_stop_string_cuts_its_own_row_only(engine, batch_size, beams):
    whole = engine.generate(PROMPTS, greedy(num_beams=beams))
    stop = whole[1].text[4:6]
    made = engine.generate(PROMPTS, greedy(batch_size=batch_size, stop_strings=[stop], num_beams=beams))
    for before, after in zip(whole, made, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.finish_reason == ("stop" if stop in before.text else "length")


def test_the_template_s_own_ends_of_turn_stop_too(engine):
    whole = engine.generate(["Once"], greedy())[0].text
    engine = TransformersEngine(loaded(engine.loaded.model, stop_strings=(whole[3:5],)))
    assert engine.generate(["Once"], greedy())[0].text == whole.split(whole[3:5])[0]


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_the_context_ends_a_completion_but_not_its_neighbours(build):
    engine = TransformersEngine(loaded(build()))
    prompts = ["a" * (CONTEXT - 4), "b"]
    long, short = engine.generate(prompts, greedy(20, batch_size=2))
    assert (long.completion_tokens, long.finish_reason) == (3, "length")
    assert short == engine.generate(["b"], greedy(20))[0]
    assert short.completion_tokens == 20


def test_a_prompt_that_fills_the_context_is_an_error(engine):
    with pytest.raises(ModelError, match=r"prompt has 64 tokens and the model's context is 64.*shorten the prompt"):
        engine.generate(["a" * 63], greedy())


# Sampling


def test_samples_follow_the_softmax(engine):
    params = GenerationParams(max_new_tokens=1, temperature=0.8, top_k=8, top_p=0.9, seed=1, batch_size=500)
    made = engine.generate(["Once"] * 4000, params)
    drawn = torch.bincount(torch.tensor([row.token_ids[0] for row in made]), minlength=259) / len(made)
    ids = torch.tensor([byte_tokenizer().encode("Once")])
    expected = engine.loaded.model.generate(
        input_ids=ids, do_sample=True, temperature=0.8, top_k=8, top_p=0.9, max_new_tokens=1, pad_token_id=2,
        eos_token_id=1, output_scores=True, return_dict_in_generate=True,
    ).scores[0][0].softmax(-1)  # fmt: skip
    assert (drawn[expected == 0] == 0).all()
    # Four standard deviations of a share at 4000 draws.
    assert ((drawn - expected).abs() <= 4 * (expected * (1 - expected) / 4000).sqrt() + 1e-9).all()


def sampled(**changes) -> GenerationParams:
    return GenerationParams(max_new_tokens=10, temperature=1.0, **changes)


def test_a_seed_gives_the_same_text_in_any_batch_and_in_two_sittings(engine):
    once = engine.generate(PROMPTS, sampled(seed=7, batch_size=4))
    assert engine.generate(PROMPTS, sampled(seed=7, batch_size=1)) == once
    halves = engine.generate(PROMPTS[:2], sampled(seed=7)) + engine.generate(
        PROMPTS[2:], sampled(seed=7), first_index=2
    )
    assert halves == once
    assert engine.generate(PROMPTS, sampled(seed=8, batch_size=4)) != once
    assert engine.generate(["x", "x"], sampled(seed=7))[0] != engine.generate(["x", "x"], sampled(seed=7))[1]


def test_without_a_seed_two_calls_differ(engine):
    assert engine.generate(PROMPTS, sampled()) != engine.generate(PROMPTS, sampled())


def test_the_global_random_state_and_the_training_mode_stay(engine):
    engine.loaded.model.train()
    before = torch.get_rng_state()
    engine.generate(PROMPTS, sampled(seed=1))
    engine.generate(PROMPTS, sampled())
    assert torch.equal(torch.get_rng_state(), before)
    assert engine.loaded.model.training
    assert all(module.training for module in engine.loaded.model.modules())


def test_use_sampling_false_is_greedy_at_any_temperature(engine):
    assert engine.generate(PROMPTS, sampled(use_sampling=False)) == engine.generate(PROMPTS, greedy(10))


def test_contradictions_are_errors(engine):
    with pytest.raises(UsageError, match="use_sampling is true and temperature is 0: give a temperature"):
        engine.generate(["x"], greedy(use_sampling=True))
    with pytest.raises(UsageError, match="num_beams is 2 and temperature 1: a beam search does not sample"):
        engine.stream("x", sampled(num_beams=2))


# Prompts


def test_bos_is_there_once(engine):
    tokenizer = byte_tokenizer()
    assert encode_text("hi", tokenizer) == encode_text("<s>hi", tokenizer) == tokenizer.encode("hi")
    assert encode_text("", tokenizer) == [0]
    asked = engine.generate([[{"role": "user", "content": "hi"}]], greedy(1))[0]
    assert asked.prompt_tokens == len(tokenizer.encode("[user]hi"))


def test_an_eos_that_the_tokenizer_appends_is_not_part_of_a_prompt():
    tokenizer = byte_tokenizer()
    closing = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = closing
    assert tokenizer.encode("hi")[-1] == 1
    assert encode_text("hi", tokenizer) == byte_tokenizer().encode("hi")


def test_a_message_cannot_end_its_turn(engine):
    """What a user writes is text, also where it is the text of a control token."""
    encoded = encode_prompt([{"role": "user", "content": "a</s>b"}], engine.loaded)
    assert encoded.text == "<s>[user]a</s>b"
    assert encoded.ids == [0, *engine.loaded.tokenizer("[user]a<", add_special_tokens=False).input_ids,
                           *engine.loaded.tokenizer("/s>b", add_special_tokens=False).input_ids]  # fmt: skip


def test_messages_without_a_template_are_an_error(engine):
    bare = TransformersEngine(loaded(engine.loaded.model, chat_template=None))
    with pytest.raises(ModelError, match=r"no chat template.*give --chat-template NAME"):
        bare.generate([[{"role": "user", "content": "hi"}]], greedy())


def test_the_prompt_and_special_tokens_can_be_kept(engine):
    plain = engine.generate(["Once"], greedy())[0].text
    assert engine.generate(["Once"], greedy(exclude_prompt_from_response=False))[0].text == "Once" + plain
    ids = engine.generate(["Once"], greedy(40))[0].token_ids
    special = engine.generate(["Once"], greedy(40, skip_special_tokens=False))[0].text
    tokenizer = byte_tokenizer()
    assert special == tokenizer.decode(ids, skip_special_tokens=False).removesuffix("</s>")


# Streams


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "seed": 3}, {"num_beams": 2}])
def test_a_stream_is_the_completion_in_pieces(engine, changes):
    params = GenerationParams(max_new_tokens=30, **changes)
    stream = engine.stream("Once", params)
    pieces = list(stream)
    assert stream.completion == engine.generate(["Once"], params)[0]
    assert "".join(pieces) == stream.completion.text
    assert len(pieces) > 1
    assert next(stream, "over") == "over"


def test_closing_a_stream_stops_the_model(engine):
    engine.loaded.model.config.max_position_embeddings = 10**6  # far more than it could make in the test's time
    threads = threading.active_count()
    stream = engine.stream("Once", greedy(10**5))
    first = next(stream)
    stream.close()
    assert threading.active_count() == threads
    assert stream.completion.finish_reason == "cancelled"
    assert stream.completion.text.startswith(first)


def test_what_fails_in_the_thread_is_raised_where_the_stream_is_read(engine, monkeypatch):
    monkeypatch.setattr(engine.loaded.model, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(engine.stream("Once", greedy()))
