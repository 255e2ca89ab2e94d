"""``graft check``: what each part finds, and that none takes another with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from graftwork.check.check import check_run
from graftwork.check.data import length_facts
from graftwork.check.memory import free_memory
from graftwork.check.report import Part, said_once
from graftwork.check.subject import Subject
from graftwork.config import load_config
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from graftwork.check.report import Report

    WriteConfig = Callable[..., Path]
    Graft = Callable[..., tuple[int, str, str]]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [chat(f"Is {number} even?", "yes" if number % 2 == 0 else "no, it is odd") for number in range(5)]


def part(report: Report, name: str) -> Part:
    return next(part for part in report.parts if part.name == name)


def texts(report: Report, name: str, status: str) -> list[str]:
    return [line.text for line in part(report, name).lines if line.status == status]


def test_a_run_that_may_begin(write_config: WriteConfig) -> None:
    report = check_run(str(write_config(ROWS)))
    assert report.ok, [line for part in report.parts for line in part.lines if line.status == "error"]
    assert [part.name for part in report.parts] == [
        "configuration", "data", "template", "steps", "memory", "support", "resume",
    ]  # fmt: skip


def test_a_cause_that_every_row_has_is_said_once(write_config: WriteConfig) -> None:
    """A newcomer saw ten times the same sentence, and nothing of what else was wrong."""
    report = check_run(str(write_config([{"nothing": "here"}] * 10)))
    rejected = [text for text in texts(report, "data", "error") if text.startswith("rejected: ")]
    assert len(rejected) == 1
    assert "rows 1, 2, 3 and 7 more" in rejected[0]


def test_of_two_equal_lines_the_later_points_to_the_first() -> None:
    """Found by what it says, the first one became the note, and nothing was left to point to."""
    cause = "the tokenizer has no token to end with"
    one = Part("data", "Data")
    for _ in range(3):
        one.error(f"train: {cause}", cause=cause)
    said_once([Part("configuration", "Configuration"), one])
    assert [(line.status, line.text) for line in one.lines] == [
        ("error", f"train: {cause}"), ("note", "train: as is said above"), ("note", "train: as is said above"),
    ]  # fmt: skip


def test_rows_are_counted_with_reasons_and_lines(write_config: WriteConfig) -> None:
    rows = [*ROWS, {"messages": []}, chat("q" * 100, "a")]
    found = check_run(str(write_config(rows, data={"train": {"over_long": "drop", "max_rejected": 1}})))
    (facts,) = part(found, "data").facts["splits"]["train"]
    assert (facts["read"], facts["used"]) == (7, 5)
    assert [kind["places"] for kind in facts["rejected"]] == [[f"{facts['name']}:6"]]
    assert [kind["places"] for kind in facts["dropped"]] == [[f"{facts['name']}:7"]]
    assert found.ok
    assert any(f"{facts['name']}:6" in text for text in texts(found, "data", "warn"))


def test_a_rejected_row_beyond_the_threshold_is_an_error(write_config: WriteConfig) -> None:
    assert not check_run(str(write_config([*ROWS, {"messages": []}]))).ok


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5], {"min": 5, "median": 5, "p95": 5, "max": 5}),
        (list(range(1, 101)), {"min": 1, "median": 50, "p95": 95, "max": 100}),
        ([], {}),
    ],
)
def test_lengths(lengths: list[int], expected: dict[str, int]) -> None:
    assert length_facts(lengths) == expected


def test_lengths_are_those_of_the_samples(write_config: WriteConfig) -> None:
    (facts,) = part(check_run(str(write_config(ROWS))), "data").facts["splits"]["train"]
    sizes = sorted(len(f"<user>Is {n} even?\n") + len("yes" if n % 2 == 0 else "no, it is odd") + 1 for n in range(5))
    assert facts["lengths"] == {"min": sizes[0], "median": sizes[2], "p95": sizes[4], "max": sizes[4]}


def test_a_validation_row_that_is_trained_on(write_config: WriteConfig) -> None:
    found = check_run(str(write_config([*ROWS, ROWS[0]], [ROWS[1], chat("Is it new?", "yes")])))
    assert part(found, "data").facts["duplicates"] == {"train": 1, "train_and_validation": 1}
    assert any("validation.jsonl:1 is " in text and "train.jsonl:2" in text for text in texts(found, "data", "warn"))


def test_only_the_first_rows_are_read(write_config: WriteConfig) -> None:
    path = str(write_config([chat(f"{number:04}", "yes") for number in range(500)]))
    (facts,) = part(check_run(path), "data").facts["splits"]["train"]
    assert (facts["read"], facts["all_rows"], facts["estimated"]) == (200, 500, True)
    steps = part(check_run(path), "steps").facts
    assert (steps["estimated"], steps["steps"]) == (True, 500)
    (facts,) = part(check_run(path, limit=None), "data").facts["splits"]["train"]
    assert (facts["read"], facts["all_rows"], facts["estimated"]) == (500, 500, False)


def test_what_is_trained_is_shown(write_config: WriteConfig) -> None:
    facts = part(check_run(str(write_config(ROWS))), "template").facts
    assert facts["trained_text"]["text"] == "yes<end>"
    assert facts["trained_tokens"] == sum(len("yes" if n % 2 == 0 else "no, it is odd") + 1 for n in range(5))


def test_a_template_that_never_stops_is_an_error(write_config: WriteConfig, tmp_path: Path) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text(
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
    )
    report = check_run(str(write_config(ROWS, model={"chat_template": str(template)})))
    assert not report.ok
    assert any("stop" in text for text in texts(report, "template", "error"))


def test_steps_and_tokens(write_config: WriteConfig) -> None:
    facts = part(check_run(str(write_config(ROWS, training={"gradient_accumulation_steps": 2}))), "steps").facts
    assert (facts["blocks_per_step"], facts["steps"], facts["estimated"]) == (4, 4, False)
    assert facts["tokens_per_epoch"] == part(check_run(str(write_config(ROWS))), "template").facts["tokens"]


def test_the_steps_of_a_stream_are_about_those_of_its_rows(write_config: WriteConfig) -> None:
    path = write_config(ROWS)
    streamed = check_run(str(path), ["data.train.stream=true"])
    whole, about = (part(report, "steps").facts["steps"] for report in (check_run(str(path)), streamed))
    assert about == pytest.approx(whole, abs=1) and streamed.ok
    assert any(text.startswith("about ") for text in texts(streamed, "steps", "ok"))
    assert "counts its steps in one pass" in " ".join(texts(streamed, "steps", "note"))


def test_the_forecast_is_the_trainers(write_config: WriteConfig) -> None:
    report = check_run(str(write_config(ROWS, training={"save_steps": 1, "save_total_limit": 2})))
    facts = part(report, "memory").facts
    assert facts["forecast"]["total_bytes"] == (3 << 20) + (facts["forecast"]["tokens"] << 10)
    # two are kept, and a third one is there while it is written; then the final model
    assert facts["disk"]["wanted_bytes"] == (3 * 5 + 2) << 20
    assert "a note of the trainer" in texts(report, "memory", "note")


def test_a_trainer_that_forecasts_nothing(write_config: WriteConfig) -> None:
    report = check_run(str(write_config(ROWS, training={"trainer_type": "SILENT"})))
    assert report.ok
    (said,) = texts(report, "memory", "note")
    assert said.startswith("not forecast for SILENT: this trainer does not say")
    assert any("cannot honour training.optimizer" in text for text in texts(report, "support", "note"))


def test_more_memory_than_there_is(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.check.memory.free_memory", lambda: 1 << 20)
    report = check_run(str(write_config(ROWS)))
    assert any("1.00 MiB are free: lower" in text for text in texts(report, "memory", "error"))


def test_free_memory_is_what_the_system_says(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 100 kB\nMemAvailable:  40 kB\n")
    assert free_memory(file) == 40 * 1024
    assert free_memory(tmp_path / "none") is None


def test_every_mistake_and_the_parts_all_the_same(write_config: WriteConfig) -> None:
    report = check_run(str(write_config(ROWS)), ["training.learning_rate=-1", "training.max_stepz=3"])
    assert len(part(report, "configuration").facts["problems"]) == 2
    assert part(report, "data").facts["splits"]["train"][0]["used"] == 5
    assert not report.ok


def test_without_data_and_tokenizer(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config(ROWS, model={"model_name": str(tmp_path / "gone")})
    (tmp_path / "train.jsonl").unlink()
    report = check_run(str(path))
    assert [part.name for part in report.parts][-1] == "resume"
    assert any("there is no folder" in text and "gone" in text for text in texts(report, "configuration", "error"))
    assert texts(report, "template", "note") == ["no tokenizer: see Configuration"]
    assert texts(report, "resume", "ok") == [f"{tmp_path / 'out'} holds no run: this one begins at step 0"]


def test_a_folder_with_a_run(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config(ROWS)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "interrupted", "data": {}}))
    config = yaml.safe_load(path.read_text())
    from graftwork.config import load_config

    (folder / "config.yaml").write_text(load_config(path).to_yaml())
    before = sorted(folder.iterdir())
    same = part(check_run(str(path)), "resume")
    assert (same.facts["accepted"], same.facts["checkpoint"]) == (True, None)
    assert any("without --resume" in line.text for line in same.lines)
    config["training"]["learning_rate"] = 0.5
    path.write_text(yaml.safe_dump(config))
    other = part(check_run(str(path)), "resume")
    assert other.facts["accepted"] is False
    assert other.facts["differences"] == ["training.learning_rate was 5e-05, is 0.5"]
    assert sorted(folder.iterdir()) == before


BROKEN = {
    "a wrong path": ["data.train.datasets[0].dataset_path=rowz.jsonl"],
    "an unknown dataset": ["data.train.datasets[0].dataset_name=text_stf"],
    "a wrong template": ["model.chat_template=nonsense"],
    "a misspelt field": ["training.max_stepz=3"],
    "a bad family": ["model.family=lama"],
    "a model that is not there": ["model.model_name=./gone"],
    "a trainer without a plugin": ["training.trainer_type=NOBODYS"],
    "an optimizer without a plugin": ["training.optimizer=nobodys"],
    "a bad resume": ["training.resume_from_checkpoint=nowhere"],
    "absent modules": ["training.use_peft=true", "peft.lora_target_modules=[nope_proj]"],
    "rows that are too long": ["model.model_max_length=8", "data.train.over_long=error"],
}


@pytest.mark.parametrize("overrides", BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_said_once(write_config: WriteConfig, overrides: list[str]) -> None:
    """The part that comes upon it again says where it stands; three times one mistake looks like three."""
    report = check_run(str(write_config(ROWS)), overrides)
    errors = [line.text for part in report.parts for line in part.lines if line.status == "error"]
    assert len(errors) == 1, errors
    said = [line.text for part in report.parts for line in part.lines]
    tail = errors[0].rpartition(": ")[2]
    assert sum(tail in text for text in said) == 1


def test_an_empty_file_is_called_empty(write_config: WriteConfig) -> None:
    (said,) = texts(check_run(str(write_config([]))), "data", "error")
    assert said.endswith("train.jsonl: it is empty; give a file with at least one row")


def test_two_fields_that_are_wrong_alike_are_two_mistakes(write_config: WriteConfig) -> None:
    report = check_run(str(write_config(ROWS)), ["training.learning_rate=a lot", "training.weight_decay=a lot"])
    assert len(texts(report, "configuration", "error")) == 2


def test_the_rows_of_a_small_json_file_are_counted(write_config: WriteConfig, tmp_path: Path) -> None:
    """How far into its bytes the sample goes is not known there, and all of it lies in memory anyway."""
    rows = [chat(f"{number:04}", "yes") for number in range(500)]
    path = write_config(rows)
    (tmp_path / "train.json").write_text(json.dumps(rows))
    report = check_run(str(path), [f"data.train.datasets[0].dataset_path={tmp_path / 'train.json'}"])
    (facts,) = part(report, "data").facts["splits"]["train"]
    assert (facts["read"], facts["all_rows"]) == (200, 500)
    assert any("200 of 500 rows read, 200 used" in text for text in texts(report, "data", "ok"))
    (of_lines,) = part(check_run(str(path)), "data").facts["splits"]["train"]
    assert of_lines["all_rows"] == 500
    one = len("<user>0000\n") + len("yes") + 1
    steps = part(report, "steps").facts
    assert (steps["tokens_per_epoch"], steps["steps_per_epoch"], steps["steps"]) == (500 * one, 250, 500)
    assert any("about 500 steps; an epoch has about 250" in text for text in texts(report, "steps", "ok"))


def test_the_file_needs_no_option(write_config: WriteConfig, graft: Graft) -> None:
    path = write_config(ROWS)
    code, out, _ = graft("check", path, "training.max_steps=3")
    assert code == 0
    assert " 3 steps; an epoch has 3" in out
    assert graft("preview", "data", path, "--rows", "1") == graft("preview", "data", "-c", path, "--rows", "1")
    code, _, err = graft("check", "training.seed=1")
    assert (code, "no configuration: graft check -c run.yaml" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("check", "RUN", "--jsn"), "there is no option --jsn; did you mean --json?"),
        (("train", "RUN", "--resum"), "there is no option --resum; did you mean --resume?"),
        (("train", "--resum", "-c", "RUN"), "there is no option --resum; did you mean --resume?"),
        (("train", "RUN", "--nproc-per-nod=2"), "there is no option --nproc-per-nod; did you mean --nproc-per-node?"),
        (("train", "RUN", "--max-steps", "3"), "did you mean training.max_steps=3?"),
        (("train", "RUN", "--max-step=3"), "did you mean training.max_steps=3?"),
        (("train", "RUN", "--lr", "3"), "did you mean training.learning_rate?"),
    ],
)
def test_a_misspelt_option(write_config: WriteConfig, graft: Graft, words: tuple[str, ...], hint: str) -> None:
    path = write_config(ROWS)
    code, _, err = graft(*(path if word == "RUN" else word for word in words))
    assert code == 2
    assert hint in err


def test_the_command(write_config: WriteConfig, graft: Graft) -> None:
    path = write_config(ROWS)
    code, out, _ = graft("check", "-c", path)
    assert code == 0
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert len(out.splitlines()) < 60  # two screens
    assert "0 errors" in out
    code, out, _ = graft("check", "-c", path, "--json", "training.learning_rate=-1")
    assert code == 2
    report = json.loads(out)
    assert (report["ok"], report["errors"]) == (False, 1)
    assert report["parts"]["steps"]["steps"] == 6


def test_a_file_that_is_not_there(graft: Graft, tmp_path: Path) -> None:
    code, _, err = graft("check", "-c", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml" in err


def test_a_mistake_in_the_data_points_to_the_check(
    write_config: WriteConfig, graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``graft train`` says what is wrong first, and then where all of it is said."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise DataError("rows.jsonl:3: no messages")

    monkeypatch.setattr("graftwork.training.train", refuse)
    path = write_config(ROWS)
    code, _, err = graft("train", "-c", path)
    assert code == 2
    first, second = err.strip().splitlines()[-2:]
    assert first.endswith("rows.jsonl:3: no messages")
    assert second.strip() == f"All that can be known of this run before it begins: graft check -c {path}"


@pytest.mark.parametrize(
    ("rows", "count", "samples"), [(500, 50, 50), (500, 300, 300), (500, 1000, 1000), (5, 12, 12), (5, 3, 3)]
)
def test_sample_count_is_what_an_epoch_takes(write_config: WriteConfig, rows: int, count: int, samples: int) -> None:
    """It said 250 steps where 50 of 500 rows were asked for, and the run took 25."""
    path = write_config([chat(f"{number:04}", "yes") for number in range(rows)])
    facts = part(check_run(str(path), [f"data.train.datasets[0].sample_count={count}"]), "steps").facts
    one = len("<user>0000\n") + len("yes") + 1
    assert (facts["steps_per_epoch"], facts["tokens_per_epoch"]) == (-(-samples // 2), samples * one)
    assert facts["trained_tokens_per_epoch"] == samples * (len("yes") + 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [40, 1000])
def test_a_mixture_has_the_steps_and_tokens_that_its_loader_gives(
    write_config: WriteConfig, tmp_path: Path, rows: int, packed: bool
) -> None:
    """Held against an epoch of the loader that trainers get, over all rows: to the token where all were looked at,
    else within what the draw of a mixture spreads.
    """
    path = str(write_config([chat(f"{number:04}", "yes") for number in range(rows)]))
    (tmp_path / "long.jsonl").write_text(json.dumps(chat("longer", "no, it is odd")) + "\n")
    shares = [{"mixture_proportion": 0.8, "sample_count": rows // 2}, {"mixture_proportion": 0.2, "sample_count": rows}]
    config = yaml.safe_load((tmp_path / "run.yaml").read_text())
    first = config["data"]["train"]["datasets"][0]
    second = {**first, "dataset_path": str(tmp_path / "long.jsonl")}
    config["data"]["train"] |= {"datasets": [first | shares[0], second | shares[1]], "pack": packed}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))

    facts = part(check_run(path), "steps").facts
    loader = Subject.of(load_config(path), None).loader()
    assert loader is not None
    blocks = list(loader.blocks(0))
    tokens, steps = sum(len(sample) for block in blocks for sample in block), -(-len(blocks) // 2)
    spread = 0 if rows == 40 else 0.1
    assert facts["tokens_per_epoch"] == pytest.approx(tokens, rel=spread)
    assert facts["steps_per_epoch"] == pytest.approx(steps, rel=spread)


def test_a_sample_count_that_leaves_nothing_is_an_error(write_config: WriteConfig) -> None:
    report = check_run(str(write_config(ROWS)), ["data.train.datasets[0].sample_count=0"])
    assert any("left out by sample_count" in text for text in texts(report, "steps", "error"))


def test_what_over_long_cuts_need_not_end_in_a_stop_token(write_config: WriteConfig) -> None:
    rows = [chat("q", "a" * 90), *ROWS]
    report = check_run(str(write_config(rows, data={"train": {"over_long": "truncate"}})))
    assert report.ok, texts(report, "template", "error")
    assert any("'yes<end>'; it ends in '<end>'" in text for text in texts(report, "template", "ok"))
    only = check_run(str(write_config(rows[:1], data={"train": {"over_long": "truncate"}})))
    assert only.ok
    assert any("which no stop token is" in text for text in texts(only, "template", "note"))


def test_a_template_without_tools_is_no_mistake_where_the_rows_have_none(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    template = tmp_path / "no_tools.jinja"
    template.write_text(
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ (message['content'] or '') + eos_token }}{% endgeneration %}"
        "{% elif message['role'] != 'tool' %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endif %}"
        "{% endfor %}"
    )
    report = check_run(str(write_config(ROWS, model={"chat_template": str(template)})))
    assert any("dropped silently" in text for text in texts(report, "template", "warn"))
    assert report.ok, texts(report, "template", "error")
    called = {"messages": [*ROWS[0]["messages"], {"role": "tool", "content": "4"}, *ROWS[1]["messages"]]}
    assert not check_run(str(write_config([called], model={"chat_template": str(template)}))).ok


def test_what_the_trainer_refuses(write_config: WriteConfig) -> None:
    path = write_config(ROWS, training={"trainer_type": "UNLUCKY"})
    assert check_run(str(path)).ok
    report = check_run(str(path), ["training.seed=13"])
    assert texts(report, "support", "error") == ["method: training.seed: 13 is unlucky in 1 process"]


def test_rows_are_read_as_the_trainer_reads_them(write_config: WriteConfig) -> None:
    """Where it cannot say how, they are read as they stand."""
    path = write_config(ROWS, training={"trainer_type": "READER"})
    assert any("too long" in text for text in texts(check_run(str(path)), "data", "warn"))
    assert part(check_run(str(path)), "data").facts["splits"]["train"][0]["used"] == 0
    unlucky = check_run(str(path), ["data.train.seed=13"])
    assert part(unlucky, "data").facts["splits"]["train"][0]["used"] == len(ROWS)


def test_steps_as_the_trainer_counts_them(write_config: WriteConfig) -> None:
    path = write_config(ROWS, training={"trainer_type": "COUNTER"})
    steps = part(check_run(str(path)), "steps")
    assert [line.text for line in steps.lines] == [
        "a step takes 3 things", "who knows", "10 steps; an epoch has 5",
    ]  # fmt: skip
    assert steps.facts["tokens_per_epoch"] is steps.facts["trained_tokens_per_epoch"] is None
    assert (steps.facts["blocks_per_step"], steps.facts["steps"], steps.facts["steps_per_epoch"]) == (3, 10, 5)


PACKED = {"train": {"pack": True, "max_length": 64}}
ACCUMULATED = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4}


def test_a_run_of_so_few_steps_that_it_learns_nothing_is_warned_of(write_config: WriteConfig) -> None:
    """A recipe on 20 rows was "ready" with two steps, each of one packed row instead of 16."""
    report = check_run(str(write_config(ROWS, data=PACKED, training=ACCUMULATED)))
    assert report.ok, "it is no error: somebody may only try it out"
    (said,) = texts(report, "steps", "warn")
    held = len(Subject.of(load_config(report.source), None).loader().plan(0).plan)  # type: ignore[union-attr]
    assert said == (
        f"an epoch has {held} of the 16 packed rows that a step takes, and 2 steps are too few to learn much: lower "
        "training.gradient_accumulation_steps (4) or training.per_device_train_batch_size (4), set data.train.pack: "
        "false, lower data.train.max_length (64), raise training.num_train_epochs (2), or give more rows"
    )


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (ACCUMULATED | {"max_steps": 2}, []),  # whoever says so few means them
        ({"num_train_epochs": 4}, []),  # 12 steps
        (
            {"per_device_train_batch_size": 1, "num_train_epochs": 0.2},
            ["1 step is too few to learn much: raise training.num_train_epochs (0.2), or give more rows"],
        ),
        (
            ACCUMULATED | {"num_train_epochs": 10},
            ["an epoch has 5 of the 16 samples that a step takes: lower training.gradient_accumulation_steps (4) or "
            "training.per_device_train_batch_size (4), raise training.num_train_epochs (10), or give more rows"],
        ),
        ({"trainer_type": "COUNTER", "per_device_train_batch_size": 1}, []),
    ],
)  # fmt: skip
def test_only_what_makes_more_steps_is_said(
    write_config: WriteConfig, training: dict[str, Any], said: list[str]
) -> None:
    assert texts(check_run(str(write_config(ROWS, training=training))), "steps", "warn") == said


def test_few_steps_as_the_trainer_counts_them(write_config: WriteConfig) -> None:
    path = write_config(ROWS[:4], training={"trainer_type": "COUNTER", "per_device_train_batch_size": 1})
    assert texts(check_run(str(path)), "steps", "warn") == [
        "8 steps are too few to learn much: raise training.num_train_epochs (2), or give more rows"
    ]
