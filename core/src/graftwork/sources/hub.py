"""Models on the Hugging Face Hub: downloads of what a model needs, and nothing that could run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from graftwork.errors import GraftworkError, MissingExtraError, ModelError

# Configuration, tokenizer and template files; the weights come as safetensors wherever the repository has them.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.safetensors")
_TOKENIZER_FILES = tuple(pattern for pattern in _FILES if pattern != "*.safetensors")
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
# Sub-folders hold the same weights again in other formats; consolidated* is Mistral's second copy.
_IGNORED = ("*/*", "consolidated*", "*.gguf")

_ID = re.compile(r"^(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$")


def is_repository_id(name: str) -> bool:
    """Whether ``name`` has the form of a Hub id: ``org/name`` (or a bare ``name`` under ``hf://``)."""
    return bool(_ID.match(name)) and ".." not in name and "--" not in name


def parse(reference: str) -> tuple[str, str | None]:
    """``hf://org/name@revision`` or ``org/name`` as (id, revision). Raises :class:`ModelError`."""
    repository, _, revision = re.sub("^hf://", "", reference, flags=re.IGNORECASE).strip("/").partition("@")
    if not is_repository_id(repository):
        raise ModelError(f"model {reference!r}: a Hub model is written hf://org/name, or hf://org/name@revision")
    return repository, revision or None


def fetch(
    reference: str,
    cache_dir: Path | None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """Downloads a Hub model (or finds it in the cache) and gives the folder where its files lie.

    Pickled weights are taken only where there are no safetensors, Python files only with ``trust_remote_code``,
    and no weights at all without ``weights``. Raises :class:`ModelError` for a wrong name, revision or
    permission, :class:`GraftworkError` where the Hub cannot be reached.
    """
    repository, in_name = parse(reference)
    revision = revision or in_name
    files = (*(_FILES if weights else _TOKENIZER_FILES), *(("*.py",) if trust_remote_code else ()))
    path = _snapshot(repository, revision, cache_dir, files)
    if weights and not any(path.glob("*.safetensors")):
        path = _snapshot(repository, revision, cache_dir, (*files, *_PICKLES))
    return _complete(path, repository, weights=weights)


def fetch_tokenizer(reference: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """As :func:`fetch` without weights, also for a repository that holds a tokenizer and no model."""
    repository, in_name = parse(reference)
    code = ("*.py",) if trust_remote_code else ()
    return _snapshot(repository, revision or in_name, None, (*_TOKENIZER_FILES, *code))


def cached(reference: str, cache_dir: Path | None = None) -> Path | None:
    """The folder of a model that was downloaded before, without asking the Hub; None where there is none."""
    repository, revision = parse(reference)
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repository, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _snapshot(repository: str, revision: str | None, cache_dir: Path | None, patterns: tuple[str, ...]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f'model {repository} is on the Hub, and huggingface_hub is not installed: pip install "graftwork[models]"'
        ) from error
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=list(patterns),
                ignore_patterns=list(_IGNORED),
            )
        )
    except Exception as error:
        raise explained(error, repository, revision) from error


def explained(error: Exception, repository: str, revision: str | None) -> GraftworkError:
    """What a failed download means for the person who asked for it."""
    from huggingface_hub import errors

    where = f"model {repository}" + (f" at revision {revision!r}" if revision else "")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{where} is gated: accept its terms at {_endpoint()}/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{where}: the Hub has no such model, or it is private and you are not logged in. Check the spelling; "
            f"for a private one run `hf auth login` or set HF_TOKEN; a folder is written ./{repository}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{where}: the model is there, this revision is not; give a branch, a tag or a commit")
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{where}: not a name the Hub accepts ({_first_line(error)})")
    return _unreachable(error, where)


def _unreachable(error: Exception, where: str) -> GraftworkError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) and constants.HF_HUB_OFFLINE:
        return GraftworkError(
            f"{where} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set: unset it, or "
            "give a folder"
        )
    if status := _status(error):
        login = "; run `hf auth login` or set HF_TOKEN" if status in {401, 403} else "; try again later"
        return GraftworkError(f"{where}: {_endpoint()} answered {status}{login}")
    if isinstance(error, OSError) and error.errno is not None:
        return GraftworkError(f"{where}: the download could not be written: {error}")
    return GraftworkError(
        f"{where}: there is no folder of that name here; it is not in the cache, and {_endpoint()} cannot be reached "
        f"({_first_line(error)}). Give a folder, or check the network (HF_ENDPOINT names another address)"
    )


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, itself or what caused it; None where nobody answered."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _first_line(error: Exception) -> str:
    cause: Any = error.__cause__ or error
    return str(cause).strip().split("\n", 1)[0][:200]


def _complete(path: Path, repository: str, *, weights: bool) -> Path:
    """Raises where an interrupted or offline download left a part of the model."""
    import json

    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ModelError(f"model {repository}: it has no config.json, so it is no transformers model")
    for index in path.glob("*.index.json") if weights else ():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        lacking = sorted(shard for shard in shards if not (path / shard).exists())
        if lacking:
            raise ModelError(
                f"model {repository}: {len(lacking)} of {len(shards)} weight files are not in {path} "
                f"({lacking[0]}, ...): the download is not complete; run again with a network"
            )
    return path
