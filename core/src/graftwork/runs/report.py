"""The report of a run: one HTML file with nothing outside it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.files import write_text
from graftwork.inference.engine import has_template
from graftwork.runs import charts, facts
from graftwork.runs.reading import read_run
from graftwork.runs.samples import collect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graftwork.runs.reading import RunRecord
    from graftwork.runs.samples import Samples

TEMPLATE = Path(__file__).parent / "report.html.jinja"
REPORT = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A line for the terminal and what it does."""

    what: str
    line: str


def write_report(run_folder: Path) -> Path:
    """Writes ``report.html`` into a run folder, whatever state the run is in, and returns its path.

    The file is the old one or the new one at any moment. Raises ``OSError`` where it cannot be written.
    """
    page = render_report(read_run(run_folder))
    path = run_folder / REPORT
    # A model may write half of a surrogate pair, which no file takes.
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))
    return path


def render_report(run: RunRecord) -> str:
    """The page. Every text from the run is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    samples = collect(run.samples)
    loss, small = charts.loss_chart(run), charts.small_charts(run)
    return template.render(
        title=facts.title(run),
        status=facts.status(run),
        sentence=facts.sentence(run),
        subtitle=facts.subtitle(run),
        facts=facts.facts(run),
        loss=loss,
        small=small,
        data={chart.name: chart.data for chart in (loss, *small) if chart},
        samples=samples,
        commands=list(commands(run, samples)),
        config=[_yaml_parts(line) for line in run.config_text.splitlines()],
        environment=list(surroundings(run.info)),
    )


def _yaml_parts(line: str) -> tuple[str, str, str]:
    """Indentation, key and the rest of a line of YAML, to tell them apart by colour."""
    match = re.match(r"(\s*(?:- )*)([\w.\-/]+)(:(?:\s.*)?)$", line)
    return match.groups() if match else ("", "", line)  # type: ignore[return-value]


def commands(run: RunRecord, samples: Samples) -> Iterator[Command]:
    """What to do next with what the run made."""
    final = run.folder / "final"
    if final.is_dir():
        name = shlex.quote(_shown(final))
        if has_template(final):
            yield Command(what="Talk with it", line=f"graft chat {name}")
        yield Command(what="Complete a prompt", line=f"graft generate {name} --prompt {_prompt(samples)}")
        if (final / "adapter_config.json").is_file():
            merged = shlex.quote(_shown(run.folder / "merged"))
            yield Command(what="Merge the adapter into its base", line=f"graft merge {name} --output-dir {merged}")
    if not final.is_dir() and (run.folder / "config.yaml").is_file():
        config = shlex.quote(_shown(run.folder / "config.yaml"))
        saved = any((run.folder / "checkpoints").glob("step-*"))
        what = "Go on from the last checkpoint" if saved else "Begin it again"
        yield Command(what=what, line=f"graft train -c {config} --resume")
    if (run.folder / "tensorboard").is_dir():
        logs = shlex.quote(_shown(run.folder / "tensorboard"))
        yield Command(what="Compare runs in TensorBoard", line=f"tensorboard --logdir {logs}")


def surroundings(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the run took place, as names and values; nested tables become dotted names."""
    for key in ("device", "dtype", "seed", "versions", "graftwork", "plugins", "data"):
        yield from _flat(key, info.get(key))


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(key if name == "versions" else f"{name}.{key}", inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for place, inner in enumerate(value):
            label = inner.get("name", place) if isinstance(inner, dict) else place
            yield from _flat(f"{name}.{label}", inner)
    elif value not in (None, "", []):
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    resolved, here = path.resolve(), Path.cwd()
    return f"./{resolved.relative_to(here)}" if resolved.is_relative_to(here) else str(resolved)


def _prompt(samples: Samples) -> str:
    """A prompt of the run that fits on a line."""
    fitting = (sample.prompt for sample in samples.samples if "\n" not in sample.prompt and len(sample.prompt) <= 60)
    return shlex.quote(next(fitting, "Once upon a time"))
