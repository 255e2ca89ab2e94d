"""What the parts of a check look at: the configuration, its tokenizer, and a sample of its data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.check.methods import MethodRequest
from graftwork.config import plugin_params
from graftwork.config.names import known
from graftwork.config.problems import MISSING
from graftwork.data.account import Account
from graftwork.data.encoders import LoadRequest, encoder_for, load_request, open_source, schema_of
from graftwork.data.lengths import prepare
from graftwork.data.names import Datasets, look_up
from graftwork.data.prepare import weight
from graftwork.errors import GraftworkError
from graftwork.launch import Place
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel

    from graftwork.config import DatasetParams, DatasetSplitParams, RunConfig
    from graftwork.config.problems import Problem
    from graftwork.data.account import Outcome
    from graftwork.data.batch import Row as TensorRow
    from graftwork.data.indexed import IndexedLoader
    from graftwork.data.readers import Row
    from graftwork.data.samples import Sample
    from graftwork.specs import DatasetSpec, ModelFamily, TrainerSpec

SAMPLE = 200
"""Rows of each dataset that are looked at unless all are asked for."""
COUNTED = 64 << 20
"""Bytes up to which the rows of files are counted that do not tell how many there are: that takes a second or two."""


@dataclass(slots=True)
class DatasetSample:
    """The first rows of one dataset. ``rows`` is how many it has in all, None where that is not known, and
    ``counted`` whether they were counted; ``trouble`` why it could not be read to the end, and ``said`` whether another
    part says what is wrong.
    """

    name: str
    account: Account
    samples: list[Sample] = field(default_factory=list)
    whole: bool = False
    rows: int | None = None
    counted: bool = False
    estimated: bool = False
    trouble: str | None = None
    said: bool = False


@dataclass(slots=True)
class Subject:
    """The configuration with what it names, each thing looked up once. ``limit``: rows of a dataset, None for all;
    ``mistakes``: those of the configuration.
    """

    config: RunConfig
    limit: int | None = SAMPLE
    tokenizer: Any = None
    tokenizer_trouble: str = ""
    family: ModelFamily | None = None
    stop_ids: frozenset[int] = frozenset()
    splits: dict[str, list[DatasetSample]] = field(default_factory=dict)
    mistakes: tuple[Problem, ...] = ()

    @classmethod
    def of(
        cls, config: RunConfig, limit: int | None, only: str | None = None, *, mistakes: tuple[Problem, ...] = ()
    ) -> Subject:
        """Loads the tokenizer and reads the data (of the split ``only``); what fails is remembered as a reason."""
        subject = cls(config, limit, mistakes=mistakes)
        subject._load_tokenizer()
        for name in config.data.splits():
            split = subject.split(name)
            if split.datasets and only in (None, name):
                subject.splits[name] = [subject._sample(split, params) for params in split.datasets]
        return subject

    @property
    def trainer(self) -> TrainerSpec:
        return get_registry().trainers[self.config.training.trainer_type]

    @property
    def params(self) -> BaseModel | None:
        """The trainer's own options."""
        return plugin_params(self.trainer, self.config.training.trainer_kwargs)

    @property
    def prompts(self) -> Callable[[LoadRequest, str | None], Callable[[Row], Outcome]] | None:
        """How the trainer reads prompts, where it draws the answers to them; None of one that trains on samples."""
        spec: TrainerSpec | None = known(get_registry().trainers, self.config.training.trainer_type)
        return spec.prompts if spec is not None else None

    @property
    def unit(self) -> str:
        """What rows become, in the singular."""
        return "sample" if self.prompts is None else "prompt"

    def method_request(self) -> MethodRequest:
        """What the trainer is asked with."""
        return MethodRequest(config=self.config, params=self.params, processes=Place.here().size)

    def split(self, name: str) -> DatasetSplitParams:
        """A split as the trainer reads it; as it stands where it cannot be read, which other parts give reasons for."""
        split = self.config.data.splits()[name]
        spec: TrainerSpec | None = known(get_registry().trainers, self.config.training.trainer_type)
        if spec is None or spec.read_as is None or not split.datasets:
            return split
        try:
            return spec.read_as(split)
        except Exception:
            return split

    @property
    def schema(self) -> str:
        """What the training data hold; ``chat`` where nobody says."""
        try:
            return schema_of(self.split("train"))
        except (GraftworkError, StopIteration):
            return "chat"

    def _load_tokenizer(self) -> None:
        from graftwork.builders import build_tokenizer
        from graftwork.builders.family import family_of_params
        from graftwork.tokenizers import stop_token_ids

        try:
            self.tokenizer = build_tokenizer(self.config.model, stand_in_template=self.schema != "text")
            self.family = family_of_params(self.config.model)
            self.stop_ids = stop_token_ids(self.tokenizer, family=self.family)
        except Exception as error:
            self.tokenizer_trouble = reason_of(error)

    def request(self, split: DatasetSplitParams) -> LoadRequest:
        """How the trainers load a split."""
        return load_request(self.config, split, self.tokenizer, self.stop_ids)

    def _sample(self, split: DatasetSplitParams, params: DatasetParams) -> DatasetSample:
        name = params.dataset_path or params.dataset_name
        found = DatasetSample(str(name), Account(str(name), split.max_rejected))
        if self._is_wrong(params):
            found.trouble, found.said = "it is not read: the configuration names it wrongly, as is said above", True
            return found
        try:
            self._read(found, split, params)
        except Exception as error:
            found.trouble = reason_of(error)
        return found

    def _is_wrong(self, params: DatasetParams) -> bool:
        """Whether there is no such dataset, or no such file, and the configuration's mistakes say so."""
        path, name = params.dataset_path, params.dataset_name
        gone = {
            "dataset_name": known(Datasets(), name) is None,
            "dataset_path": path is None or not Path(path).exists(),
        }
        values = {"dataset_name": name, "dataset_path": path if path is not None else MISSING}
        wrong = [(problem.path[-1], problem.value) for problem in self.mistakes]
        return any(gone[field] and (field, values[field]) in wrong for field in values)

    def _read(self, found: DatasetSample, split: DatasetSplitParams, params: DatasetParams) -> None:
        spec, options = look_up(params)
        source = open_source(params, spec, options)
        if self.tokenizer is None:
            found.trouble, found.said = "its rows cannot become tokens, as there is no tokenizer", True
            return
        outcome_of = self._outcomes(spec, options, self.request(split))
        last, rows = None, source.rows()
        for row in islice(rows, self.limit):
            outcome = outcome_of(row)
            found.account.add(outcome)
            found.samples += [outcome.sample] if outcome.sample is not None else []
            last = row
        found.whole = self.limit is None or next(rows, None) is None
        found.rows = found.account.read if found.whole else estimated_rows(source.files, last, found.account.read)
        if found.rows is None and source.files and weight(source) <= COUNTED:
            # The row that told that there are more is one of them.
            found.rows, found.counted = found.account.read + 1 + sum(1 for _ in rows), True
        found.estimated = not found.whole

    def _outcomes(self, spec: DatasetSpec, options: BaseModel | None, request: LoadRequest) -> Callable[[Row], Outcome]:
        """What becomes of a row: a sample, or the prompt alone where the trainer draws the answers."""
        if self.prompts is not None:
            return self.prompts(request, getattr(options, "messages_field", None))
        encode = encoder_for(spec, options, request)
        longest = None if spec.schema == "text" else request.max_length
        return partial(prepare, encode=encode, max_length=longest, over_long=request.split.over_long)

    def loader(self, name: str = "train") -> IndexedLoader | None:
        """The sampled rows of a split as the trainers would take them; None where there are none."""
        from graftwork.data.indexed import IndexedLoader
        from graftwork.data.loader import packer_for, seed_of

        found, split = self.splits.get(name, []), self.config.data.splits()[name]
        if not found or not all(dataset.samples for dataset in found):
            return None
        request = self.request(split)
        return IndexedLoader(
            [dataset.samples for dataset in found],
            split,
            packer_for(request),
            seed=seed_of(request),
            batch_size=request.batch_size,
            accumulation=request.accumulation,
        )

    def rows(self) -> Iterator[TensorRow]:
        """The forward passes of the run's first epoch over the sample, at most as many as the run has."""
        loader = self.loader()
        if loader is None:
            return
        steps, epoch = self.config.training.max_steps, loader.epoch
        for number, rows in enumerate(loader.steps()):
            yield from rows
            if loader.epoch > epoch or number + 1 == steps:
                return


def reason_of(error: Exception) -> str:
    """An error in one line; one that is not ours with its kind."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, GraftworkError) else f"{type(error).__name__}: {text}"


def estimated_rows(files: tuple[Path, ...], last: Row | None, read: int) -> int | None:
    """How many rows plain files have, by how far into their bytes the sample went; None for others."""
    if last is None or any(path.suffix not in (".jsonl", ".txt") or not path.is_file() for path in files):
        return None
    number, offset = last.after[0], last.after[1]
    sizes = [path.stat().st_size for path in files]
    done = sum(sizes[:number]) + offset
    return round(read * sum(sizes) / done) if done else None


def fingerprint(sample: Sample) -> bytes:
    """Equal for samples of the same tokens."""
    return hashlib.sha256(sample.input_ids.tobytes()).digest()
