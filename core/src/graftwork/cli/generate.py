"""``graft generate``: completes one prompt, or every row of a file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graftwork.cli.inference_options import generation_params, inference_options, open_model, require_model
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graftwork.config import GenerationParams
    from graftwork.inference import LoadedModel
    from graftwork.inference.engine import Prompt
    from graftwork.inference.files import CompletionFile, InputRow


@click.command()
@click.argument("model", required=False)
@click.argument("text", metavar="[PROMPT]", required=False)
@click.option("--prompt", metavar="TEXT", help="The prompt; it may also be piped in.")
@click.option(
    "--input", "input_path", metavar="FILE", type=click.Path(), help="JSON lines with 'prompt' or 'messages'."
)
@click.option(
    "--output", "output_path", metavar="FILE", type=click.Path(), help="Where the rows go; goes on if it exists."
)
@click.option("--batch-size", type=int, help="Rows completed together.  [default: 8]")
@click.option("--system", metavar="TEXT", help="A system message in front of the prompt.")
@click.option(
    "--chat/--no-chat", default=None, help="Ask through the chat template, or not; default: if one was saved."
)
@inference_options
def generate(model: str | None, text: str | None, **options: Any) -> None:
    """Complete PROMPT with MODEL, or every row of a file.

    MODEL is a run folder, a model or adapter folder, or a Hub id. A model that has a chat template saved with it
    is asked through it.
    """
    name = require_model(model, options)
    if options["system"] and options["chat"] is False:
        raise UsageError("--system goes through the chat template, which --no-chat turns off: leave one of them out")
    if options["input_path"] or options["output_path"]:
        _generate_file(name, text, options)
    else:
        _generate_one(name, _one_prompt(text, options), options)


# One prompt


def _one_prompt(text: str | None, options: Mapping[str, Any]) -> str:
    given = [value for value in (text, options["prompt"]) if value is not None]
    if len(given) > 1:
        raise UsageError("the prompt is given twice, as PROMPT and as --prompt: give one of them")
    if given:
        return given[0]
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    if not piped.strip():
        raise UsageError("no prompt: give --prompt TEXT, pipe one in, or give --input FILE")
    return piped.removesuffix("\n")


def _generate_one(name: str, prompt: str, options: Mapping[str, Any]) -> None:
    params = generation_params(options)
    loaded, engine = open_model(name, options)
    stream = engine.stream(_as_asked(prompt, loaded, options), params)
    try:
        for piece in stream:
            click.echo(piece, nl=False)
        click.echo()
    finally:
        stream.close()
    if stream.completion and stream.completion.finish_reason == "length":
        count = stream.completion.completion_tokens
        click.echo(f"(cut off after {count} tokens; --max-new-tokens sets the limit)", err=True)


def _as_asked(prompt: Prompt, loaded: LoadedModel, options: Mapping[str, Any]) -> Prompt:
    """The prompt as a text, or as messages with the system message in front."""
    chat, system = options["chat"], options["system"]
    if isinstance(prompt, str):
        if not (chat or (chat is None and loaded.chat_template)):
            _refuse_system(system, loaded)
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    elif chat is False:
        raise UsageError("--no-chat takes rows with 'prompt', and the input has 'messages'")
    brings_system = dict(prompt[0]).get("role") == "system"
    return [{"role": "system", "content": system}, *map(dict, prompt)] if system and not brings_system else prompt


def _refuse_system(system: str | None, loaded: LoadedModel) -> None:
    if system:
        from graftwork.inference.prompts import without_template

        raise UsageError(f"--system: {without_template(loaded)}")


# A file


def _generate_file(name: str, text: str | None, options: Mapping[str, Any]) -> None:
    from graftwork.inference.files import CompletionFile, read_rows

    source, target = _paths(text, options)
    params = generation_params(options, batch_size=8)
    rows = read_rows(source)
    output = CompletionFile(target, rows, _settings(name, params, options))
    if output.done == len(rows):
        click.echo(f"all {len(rows)} rows are in {target} already", err=True)
        return
    if output.done:
        click.echo(f"{output.done} of {len(rows)} rows are in {target} already; going on from there", err=True)
    _complete(name, rows, output, params, options)


def _paths(text: str | None, options: Mapping[str, Any]) -> tuple[Path, Path]:
    if text is not None or options["prompt"] is not None:
        raise UsageError("a prompt and --input/--output exclude each other: give one")
    if not (options["input_path"] and options["output_path"]):
        raise UsageError("--input FILE and --output FILE go together: give both")
    source, target = Path(options["input_path"]), Path(options["output_path"])
    if source.resolve() == target.resolve():
        raise UsageError(f"--input and --output are the same file, {source}: give another --output")
    if not target.parent.is_dir():
        raise UsageError(f"--output {target}: there is no folder {target.parent}; make it first")
    return source, target


def _settings(name: str, params: GenerationParams, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers depend on."""
    names = ("system", "chat", "chat_template", "adapter", "dtype", "engine")
    folder = Path(name).expanduser()
    return {
        "model": str(folder.resolve()) if folder.is_dir() else name,
        "generation": params.model_dump(exclude={"batch_size"}),
        **{key: options[key] for key in names},
    }


def _complete(
    name: str,
    rows: Sequence[InputRow],
    output: CompletionFile,
    params: GenerationParams,
    options: Mapping[str, Any],
) -> None:
    from graftwork.inference.files import check_prompts, complete_rows

    loaded, engine = open_model(name, options)
    prompts = [_as_asked(row.prompt, loaded, options) for row in rows]
    check_prompts(engine, rows, prompts, options["input_path"])
    began, before, tokens = time.perf_counter(), output.done, 0
    try:
        with click.progressbar(length=len(rows), label="rows", file=sys.stderr, show_pos=True) as bar:
            bar.update(before)
            for batch in complete_rows(engine, rows, prompts, output, params):
                tokens += sum(made.completion_tokens for made in batch)
                bar.update(len(batch))
    except KeyboardInterrupt:
        kept = f"{output.done} of {len(rows)} rows are in {output.path}"
        click.echo(f"\nstopped: {kept}; the same command goes on from there", err=True)
        raise
    taken = time.perf_counter() - began
    click.echo(
        f"{output.done - before} rows, {tokens} tokens in {taken:.1f} s ({tokens / taken:.0f} tokens/s): {output.path}",
        err=True,
    )
