"""The part of a check about the data: what became of the sampled rows, how long they are, what is in two splits."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from graftwork.check.report import Part
from graftwork.check.subject import fingerprint
from graftwork.data.account import listed, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.check.subject import DatasetSample, Subject
    from graftwork.data.account import Account
    from graftwork.data.samples import Sample


def data_part(subject: Subject) -> Part:
    """Every dataset of every split."""
    looked = "every row" if subject.limit is None else f"the first {subject.limit} rows of each dataset; --all for all"
    part = Part("data", f"Data ({looked})", facts={"sample_rows": subject.limit, "splits": {}})
    if not subject.splits:
        part.note("no dataset is named")
    for name, datasets in subject.splits.items():
        part.facts["splits"][name] = [described(part, name, dataset, subject.unit) for dataset in datasets]
    compare(part, subject)
    return part


def described(part: Part, split: str, found: DatasetSample, unit: str) -> dict[str, Any]:
    """The lines of one dataset, whose rows become what ``unit`` names, and its facts."""
    account = found.account
    lengths = length_facts([sample.longest for sample in found.samples])
    if account.read:
        counts = f"{split}: {found.name}: {read_of(found)} rows read, {account.used:,} used"
        further = {"rejected": account.rejected, "dropped": account.dropped, "cut short": account.truncated}
        counts += "".join(f", {rows_of(kinds):,} {what}" for what, kinds in further.items() if kinds)
        (part.warn if any(further.values()) else part.ok)(counts)
    say_reasons(part, found)
    if lengths:
        part.note(
            f"{split}: tokens of a {unit} that is used: {lengths['min']:,} to {lengths['max']:,}, half of them up to "
            f"{lengths['median']:,}, 95% up to {lengths['p95']:,}"
        )
    if found.trouble:
        say = part.note if found.said else part.error
        say(f"{split}: {found.name}: {found.trouble}", cause=found.trouble)
    elif not account.read:
        part.error(f"{split}: {found.name}: it is empty; give a file with at least one row")
    elif not account.used and not too_many_rejected(account):
        part.error(f"{split}: {found.name}: no row of the sample can be used")
    facts = {**account.to_plain(), "all_rows": found.rows, "estimated": found.estimated, "lengths": lengths}
    return {**facts, "trouble": found.trouble}


def read_of(found: DatasetSample) -> str:
    """``200 of about 1,000``."""
    if found.whole or found.rows is None:
        return f"{found.account.read:,}"
    return f"{found.account.read:,} of {'' if found.counted else 'about '}{found.rows:,}"


def too_many_rejected(account: Account) -> bool:
    """Whether the run would not begin."""
    limit = account.max_rejected
    return rows_of(account.rejected) > (limit * account.read if limit < 1 else limit)


def say_reasons(part: Part, found: DatasetSample) -> None:
    """Each cause once, with some of its places. Beyond ``max_rejected`` the run would not begin."""
    account = found.account
    say = part.error if too_many_rejected(account) else part.warn
    for line in listed(account.rejected):
        say(f"rejected: {line}")
    for what, kinds in (("dropped", account.dropped), ("cut short", account.truncated)):
        for line in listed(kinds):
            part.warn(f"{what}: {line}")


def length_facts(lengths: Sequence[int]) -> dict[str, int]:
    """Smallest, median, 95th percentile (nearest rank) and largest; empty without lengths."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    rank = -(-95 * len(ordered) // 100) - 1
    return {"min": ordered[0], "median": round(median(ordered)), "p95": ordered[rank], "max": ordered[-1]}


def compare(part: Part, subject: Subject) -> None:
    """Samples of the same tokens, within the training data and in training and validation."""
    train = [sample for dataset in subject.splits.get("train", ()) for sample in dataset.samples]
    held = [sample for dataset in subject.splits.get("validation", ()) for sample in dataset.samples]
    known: dict[bytes, Sample] = {}
    repeated = 0
    for sample in train:
        repeated += known.setdefault(fingerprint(sample), sample) is not sample
    shared = [(sample, known[mark]) for sample in held if (mark := fingerprint(sample)) in known]
    part.facts["duplicates"] = {"train": repeated, "train_and_validation": len(shared)}
    if repeated:
        part.warn(f"train: {repeated:,} of {len(train):,} {subject.unit}s are in it more than once")
    if shared:
        one, other = shared[0]
        number = "eval_loss" if subject.prompts is None else "eval_reward"
        part.warn(
            f"{len(shared):,} of {len(held):,} validation {subject.unit}s are training {subject.unit}s too "
            f"({one.where} is {other.where}): {number} will look better than it is; "
            "data.validation_fraction splits without that"
        )
    elif train and held:
        part.ok("no sampled row is in training and validation")
