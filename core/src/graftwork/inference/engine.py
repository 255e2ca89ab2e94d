"""A loaded model and the two things an engine does with it: complete a list, or stream one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from graftwork.config import GenerationParams, ModelParams
    from graftwork.messages import Message
    from graftwork.specs import ModelFamily

Prompt: TypeAlias = "str | Sequence[Message] | Sequence[Mapping[str, Any]]"
"""A text to go on from, or the messages of a conversation to answer."""

SCORE = (
    "One that judges text is loaded with transformers, and its logits are the scores: "
    "AutoModelForSequenceClassification.from_pretrained(FOLDER)"
)
"""How to use a reward model, as the end of an error."""

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with all that generating from it needs.

    ``stop_token_ids`` end a completion. ``stop_strings`` are the template's ends of turn that are no single
    token. ``chat_template`` is the Jinja source that was saved with the model or asked for, None without one.
    ``path`` is the folder it came from, None for fresh weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    family: ModelFamily
    path: Path | None
    stop_token_ids: frozenset[int]
    chat_template: str | None = None
    stop_strings: tuple[str, ...] = ()
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a model made of one prompt. ``token_ids`` are all it produced, the stop token included.

    ``finish_reason`` is ``stop`` for a stop token or stop string, ``length`` where the limit of new tokens or
    the model's context ended it, ``cancelled`` for a stream that was closed early.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)


class TextStream(Iterator[str], Protocol):
    """The pieces of one completion. ``completion`` is there when the pieces are all out."""

    completion: Completion | None

    def close(self) -> None:
        """Stops the model; what has come so far stays in ``completion``."""
        ...


class Engine(Protocol):
    """One way to run a model."""

    @property
    def context_length(self) -> int | None:
        """How many tokens prompt and completion may have together; None where the model does not say."""
        ...

    def count(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, with its template."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], params: GenerationParams, *, first_index: int = 0
    ) -> list[Completion]:
        """One completion per prompt, in order.

        With a seed, the completion of a prompt depends on the seed and on its index, ``first_index`` plus its
        place, and not on its neighbours: a file completed in two sittings equals one completed at once.
        """
        ...

    def stream(self, prompt: Prompt, params: GenerationParams) -> TextStream:
        """The completion of one prompt, piece by piece: whole characters, no part of a stop string."""
        ...


def build_engine(loaded: LoadedModel, name: str = "transformers") -> Engine:
    """The engine that is registered as ``name``; :class:`UnknownNameError` lists what there is."""
    from graftwork.registry import get_registry

    spec = get_registry().engines[name]
    return spec.build(loaded, None)


def load_model(model: str | ModelParams, **changes: Any) -> LoadedModel:
    """Loads a model for inference.

    ``model`` is any name that ``model_name`` takes, or a run folder, whose final model is meant. ``changes``
    are further fields of ``ModelParams``.

    Raises :class:`ModelError` for a run without a final model; what ``build_model`` raises passes through.
    """
    from graftwork.builders import build_model, build_tokenizer, family_of

    params = _params(model, changes)
    for name in (params.model_name, params.adapter_model):
        refuse_judge(name)
    tokenizer = build_tokenizer(params)
    built = build_model(params)
    if not getattr(built, "can_generate", lambda: True)():
        raise ModelError(
            f"{params.model_name} is a {type(built).__name__}, which writes no text: give a language model. {SCORE}"
        )
    built.eval()
    return loaded_model(built, tokenizer, params, family=family_of(built, params.family))


def refuse_judge(name: str | None) -> None:
    """Raises :class:`ModelError` for the folder of a model (or of an adapter) that judges texts, as a reward model
    does: as a language model it has no head, and as an adapter it does not fit one.
    """
    folder = Path(name).expanduser() if name else None
    for file, key in (("adapter_config.json", "task_type"), ("config.json", "architectures")):
        if folder is None or not (folder / file).is_file():
            continue
        try:
            found = json.loads((folder / file).read_text("utf-8")).get(key)
        except ValueError:
            return  # said better by whoever reads it next
        if found == "SEQ_CLS" or str(found).endswith("ForSequenceClassification']"):
            raise ModelError(
                f"{folder} is a reward model (or another classifier: {file} says {key} {found}), which writes no "
                f"text: give a language model. {SCORE}"
            )


def loaded_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, params: ModelParams, *, family: ModelFamily
) -> LoadedModel:
    """A model and a tokenizer that are there already, with the template and stop tokens that belong to them."""
    from graftwork.chat import find_template
    from graftwork.tokenizers.special import stop_token_ids, token_id

    template = find_template(tokenizer.chat_template) if _knows_chat(params) else None
    texts = template.stop if template else ()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        family=family,
        path=Path(params.model_name) if Path(params.model_name).is_dir() else None,
        stop_token_ids=stop_token_ids(
            tokenizer, family=family, template=template, generation_config=model.generation_config
        ),
        chat_template=template.source if template else None,
        stop_strings=tuple(text for text in texts if token_id(tokenizer, text) is None),
        template_variables=params.chat_template_kwargs,
    )


def _knows_chat(params: ModelParams) -> bool:
    """Whether a template was asked for or saved with the model: one that only fits its vocabulary is no sign that
    the model was trained on conversations.
    """
    from graftwork.builders.tokenizer import tokenizer_folder

    return params.chat_template is not None or has_template(tokenizer_folder(params))


def has_template(folder: Path) -> bool:
    """Whether a tokenizer's files bring a chat template."""
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text("utf-8")).get("chat_template"))


def _params(model: str | ModelParams, changes: Mapping[str, Any]) -> ModelParams:
    from graftwork.config import ModelParams

    given = {"model_name": model} if isinstance(model, str) else model.model_dump(exclude_unset=True)
    params = ModelParams(**{**given, **changes})
    return params.model_copy(update={"model_name": model_folder(params.model_name)})


def model_folder(name: str) -> str:
    """``name``, or the final model of the run folder that it names.

    Raises :class:`ModelError` for a run folder that has none yet.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() or not (folder / "run.json").is_file():
        return name
    final = folder / "final"
    if final.is_dir():
        return str(final.resolve())
    raise ModelError(
        f"run folder {folder}: there is no final model in it yet ({final} is missing). Let the run end, or go on "
        f"with it where it was interrupted (graft train -c {folder / 'config.yaml'} --resume)"
    )
