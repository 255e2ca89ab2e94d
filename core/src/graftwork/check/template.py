"""The part of a check about the chat template: its rules, and what exactly is trained of one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.check.report import Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.check.subject import Subject
    from graftwork.data.samples import Sample

ROWS = 3
"""So many conversations of the data are tried beside the built-in ones."""
SHOWN = 100
"""Characters of a text that are shown."""


def template_part(subject: Subject) -> Part:
    """The rules of a template, tried on built-in conversations and on the data's; then the mask of one sample."""
    part = Part("template", "Chat template and what is trained")
    if subject.tokenizer is None:
        part.error(f"no tokenizer: {subject.tokenizer_trouble}", cause=subject.tokenizer_trouble)
        return part
    if subject.schema == "text":
        part.ok("documents need no template; every token of them is trained")
    else:
        rules(part, subject)
    (show_mask if subject.prompts is None else show_prompts)(part, subject)
    return part


def rules(part: Part, subject: Subject) -> None:
    """What :func:`graftwork.chat.check.check_template` says."""
    from graftwork.chat.check import RULES, check_template

    # Of rows whose answers are not used each prompt was written by the template already.
    rows = list(conversations(subject)) if subject.schema == "chat" and subject.prompts is None else []
    report = check_template(
        None, subject.tokenizer, family=subject.family, rows=rows, variables=subject.config.model.chat_template_kwargs
    )
    label = subject.config.model.chat_template or report.template.label
    part.facts |= {
        "template": label,
        "violations": [{"rule": found.rule, "text": found.message} for found in report.violations],
        "excused": list(report.excused),
        "notes": list(report.notes),
    }
    tried = f"{len(report.conversations) - len(rows)} built-in conversations and {len(rows)} of the data"
    if report.ok:
        part.ok(f"{label}: all {len(RULES)} rules hold on {tried}")
    own = {where for where, _ in rows}
    for found in report.violations:
        # A row of the data with something that the template drops is rejected; where there is none, the run is sound.
        harmless = found.rule == "dropped" and own.isdisjoint(found.conversations)
        say = part.warn if harmless else part.error
        say(f"{label}: not so: {RULES[found.rule]} ({', '.join(found.conversations[:2])}): {found.message}")


def conversations(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first usable training rows as messages and tools."""
    from graftwork.data.conversations import to_conversation, tools_of
    from graftwork.data.encoders import open_source
    from graftwork.data.names import look_up

    wanted = {sample.where for sample in first_samples(subject)}
    for params in subject.config.data.train.datasets[:1] if wanted else ():
        spec, options = look_up(params)
        for row in open_source(params, spec, options).rows():
            if not wanted:
                return
            if row.where in wanted:
                wanted.remove(row.where)
                field = getattr(options, "messages_field", None)
                yield row.where, {"messages": to_conversation(row, field).messages, "tools": tools_of(row)}


def first_samples(subject: Subject) -> list[Sample]:
    return [sample for dataset in subject.splits.get("train", ())[:1] for sample in dataset.samples[:ROWS]]


def show_prompts(part: Part, subject: Subject) -> None:
    """How much is asked, and how the first prompt ends, where answers are drawn and those of the data are not used."""
    prompts = [prompt for dataset in subject.splits.get("train", ()) for prompt in dataset.samples]
    if not prompts:
        part.note("no usable row to show what is asked")
        return
    tokens, first = sum(map(len, prompts)), prompts[0]
    part.facts |= {"tokens": tokens, "trained_tokens": 0, "trained_share": 0.0}
    asked = f"{len(prompts):,} prompts of {tokens:,} tokens"
    part.ok(f"{asked}; the answers are drawn in the run, none of the data's is used")
    text = subject.tokenizer.decode(first.input_ids.tolist())
    part.facts["prompt_text"] = {"where": first.where, "text": text}
    part.ok(f"{first.where} asks {shortened(text)!r}, after which the answer begins")


def shortened(text: str) -> str:
    """At most :data:`SHOWN` characters of it: how it begins and how it ends."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def show_mask(part: Part, subject: Subject) -> None:
    """How much is trained, and the trained text of the first sample."""
    samples = [sample for dataset in subject.splits.get("train", ()) for sample in dataset.samples]
    if not samples:
        part.note("no usable row to show what is trained")
        return
    tokens, trained = sum(map(len, samples)), sum(int(sample.trained[1:].sum()) for sample in samples)
    part.facts |= {"tokens": tokens, "trained_tokens": trained, "trained_share": trained / tokens}
    part.ok(f"{trained:,} of {tokens:,} tokens are trained ({trained / tokens:.0%})")
    if subject.schema == "text":
        return
    # What over_long cut may end anywhere: that is what was asked for, and data_part says of how many rows.
    cut = any(dataset.account.truncated for dataset in subject.splits["train"])
    whole = (sample for sample in samples if int(sample.input_ids[sample.trained][-1]) in subject.stop_ids)
    first = next(whole, samples[0]) if cut else samples[0]
    text = subject.tokenizer.decode([int(index) for index in first.input_ids[first.trained]])
    part.facts["trained_text"] = {"where": first.where, "text": text}
    last = int(first.input_ids[first.trained][-1])
    ends = "which generation stops at" if last in subject.stop_ids else "which no stop token is"
    say = part.ok if last in subject.stop_ids else part.note if cut else part.error
    say(f"{first.where} trains {shortened(text)!r}; it ends in {subject.tokenizer.decode([last])!r}, {ends}")
