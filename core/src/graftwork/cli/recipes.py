"""``graft recipes``: configurations that come with graftwork; and torchtune's short verbs for the same."""

from __future__ import annotations

from pathlib import Path

import click

from graftwork.errors import ConfigError, UsageError

_WITH_OVERRIDES = {"ignore_unknown_options": True}


@click.group()
def recipes() -> None:
    """List, copy, print, check and run the configurations that come with graftwork."""


@recipes.command()
def ls() -> None:
    """List the recipes."""
    from graftwork.recipes import recipes as known
    from graftwork.recipes import title

    width = max(map(len, known()))
    for name, path in known().items():
        click.echo(f"{name:<{width}}  {title(path)}")


@recipes.command()
@click.argument("name")
def cat(name: str) -> None:
    """Print the recipe NAME."""
    from graftwork.recipes import find_recipe

    click.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes.command()
@click.argument("name")
@click.argument("destination")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave a file that is there as it is, and end well.")
@click.option("--make-parents", is_flag=True, help="Make the folders of DESTINATION.")
def cp(name: str, destination: str, no_clobber: bool, make_parents: bool) -> None:
    """Copy the recipe NAME to DESTINATION, a file or a folder, to change it there."""
    from graftwork.files import write_text
    from graftwork.recipes import find_recipe

    source = find_recipe(name)
    target = Path(destination)
    if target.is_dir() or destination.endswith("/"):
        target /= source.name
    target = target if target.suffix in (".yaml", ".yml") else target.with_name(f"{target.name}.yaml")
    if target.exists():
        if no_clobber:
            click.echo(f"{target} is there and stays as it is")
            return
        raise UsageError(f"{target} exists and is not overwritten; choose another name, or remove it first")
    if make_parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}; make it, or say --make-parents")
    write_text(target, source.read_text(encoding="utf-8"))
    click.echo(f"copied to {target}; run it with: graft recipes run {target}")


@recipes.command(context_settings=_WITH_OVERRIDES)
@click.argument("name")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def validate(name: str, overrides: tuple[str, ...]) -> None:
    """Check the recipe or file NAME and report every mistake at once; nothing is built.

    A file with `_component_` is checked as torchtune's YAML, component by component.
    """
    from graftwork.recipes import find_recipe

    path = find_recipe(name)
    if _has_components(path):
        if overrides:
            raise UsageError(f"{path} has components, which take no overrides here; change the file")
        click.echo(f"{path}: valid; each of its components is known and takes its arguments")
        return
    from graftwork.config import load_config

    run = load_config(path, overrides)
    click.echo(f"{path}: valid; {run.training.trainer_type} trains {run.model.model_name}")


@recipes.command(context_settings=_WITH_OVERRIDES)
@click.argument("name")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of training.output_dir.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def run(name: str, resume: bool, overrides: tuple[str, ...]) -> None:
    """Train as the recipe or file NAME says, with OVERRIDES such as training.max_steps=10."""
    from graftwork.cli.train import train
    from graftwork.recipes import find_recipe

    if any(text.partition("=")[0] == "--config" for text in overrides):
        raise UsageError("run takes no --config: the configuration is NAME itself, as in: graft run my.yaml")
    path = find_recipe(name)
    click.get_current_context().invoke(train, path=str(path), resume=resume, overrides=overrides)


def _has_components(path: Path) -> bool:
    """Whether a file names components. Checks them, if so: raises :class:`ConfigError` with every mistake."""
    import yaml

    from graftwork.config.reader import read_yaml

    try:
        document, reader = read_yaml(path.read_text(encoding="utf-8"), str(path), None)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # load_config says what is wrong with the file
    from graftwork.config.components import names_components, validate_components

    if not names_components(document):
        return False
    if reader.problems:
        raise ConfigError([problem.render(reader.origins) for problem in reader.problems], source=str(path))
    validate_components(document, origins=reader.origins, source=str(path))
    return True
