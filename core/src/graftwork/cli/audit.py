"""``graft audit``: what in a model folder could run code, or is not what it says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from graftwork.audit import Finding, Report

HEADS = {
    "code": "could run code:",
    "lie": "is not what it says, or leads out of the folder:",
    "note": "worth knowing:",
}


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def audit(ctx: click.Context, path: Path, as_json: bool) -> None:
    """List what in the model folder (or file) PATH could run code or lie. Nothing in it is run.

    Exit code 1 where something could run code or is not what it says, 0 where all is plain data.
    """
    from graftwork.audit import audit as look

    report = look(path)
    click.echo(_json(report) if as_json else _text(report))
    if not report.clean:
        ctx.exit(1)


def _json(report: Report) -> str:
    findings = [asdict(finding) for finding in report.findings]
    document = {"path": str(report.path), "files": report.files, "clean": report.clean, "findings": findings}
    return json.dumps(document, indent=2)


def _text(report: Report) -> str:
    lines = []
    for severity, head in HEADS.items():
        found = [finding for finding in report.findings if finding.severity == severity]
        lines += [f"{head}", *(line for finding in found for line in _lines(finding)), ""] if found else []
    counts = [sum(finding.severity == severity for finding in report.findings) for severity in HEADS]
    verdict = "plain data" if report.clean else f"{counts[0]} could run code, {counts[1]} not what they say"
    return "\n".join([*lines, f"{report.path}: {report.files} files, {verdict}"])


def _lines(finding: Finding) -> list[str]:
    place = f"{finding.file}: {finding.key}" if finding.key else finding.file
    value = f" = {finding.value}" if finding.value else ""
    printable = "".join(char if char.isprintable() else "?" for char in f"{place}{value}")
    return [f"  {printable}", f"      {finding.what}; {finding.remedy}"]
