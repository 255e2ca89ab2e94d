"""The short way to read a version range says what ``packaging`` says, or leaves it to say it."""

from __future__ import annotations

import itertools

import pytest
from packaging.requirements import Requirement

from graftwork.discovery import plainly_met

VERSIONS = ["0.1", "0.1.0", "0.1.9", "0.2", "0.2.0", "0.10.1", "1", "1.0.0", "2.3.4", "0.2.dev1", "0.2rc1", "1.0+local"]
BOUNDS = [
    ">=0.1",
    ">= 0.1.0",
    "<0.2",
    "<0.2.0",
    ">=0.10",
    "<1",
    ">=1.0",
    "<2",
    "==0.1",
    "~=0.1",
    ">0.1",
    "<=1",
    "!=0.2",
]
FORMS = ["graftwork{}", "graftwork[models]{}", "graftwork [models] {}", "Graft-Work.x{}", "graftwork{} ; extra == 'x'"]


def test_agrees_with_packaging() -> None:
    told = 0
    for form, version in itertools.product(FORMS, VERSIONS):
        for one, two in itertools.product(BOUNDS, BOUNDS):
            text = form.format(f"{one},{two}")
            if plainly_met(text, version):
                told += 1
                assert Requirement(text).specifier.contains(version, prereleases=True), (text, version)
    assert told > 300


@pytest.mark.parametrize("version", ["0.1.0", "0.1.7"])
def test_knows_the_usual_form(version: str) -> None:
    assert plainly_met("graftwork[models]<0.2,>=0.1", version)


@pytest.mark.parametrize("version", ["0.0.9", "0.2", "0.2.0", "1.0", "0.2.dev1"])
def test_leaves_what_does_not_fit(version: str) -> None:
    assert not plainly_met("graftwork[models]<0.2,>=0.1", version)
