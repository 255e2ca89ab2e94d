"""The quickstart from beginning to end, in a few steps of each training."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from graftwork.cli import main
from graftwork.quickstart.run import run

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.quickstart.configurations import Layout

STEPS = 12
GRAFT = "from graftwork.cli import main; raise SystemExit(main())"
NOT_THE_SAME_TWICE = {"tokens_per_s", "step_time_s", "peak_memory_bytes", "eval_time_s"}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def story() -> list[str]:
    return []


@pytest.fixture(scope="module")
def layout(parent: Path, story: list[str]) -> Layout:
    return run(parent, seed=3, num_steps=STEPS, say=story.append)


def results(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return loaded


def metrics(run_folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in NOT_THE_SAME_TWICE} for line in lines]


def test_both_trainings_lower_the_held_out_loss(layout: Layout, story: list[str]) -> None:
    found = results(layout.folder)
    for stage in ("pretraining", "fine_tuning"):
        assert found[stage]["after"] < found[stage]["before"]
        assert any(f"{found[stage]['after']:.3f} nat/token" in line for line in story)
    assert found["unigrams"]["own"] < found["unigrams"]["entropy"] < 6.94  # ln(1,024) is what a uniform guess has
    assert any(f"{found['unigrams']['entropy']:.3f} nat/token" in line for line in story)


def test_what_the_story_points_to_is_there(layout: Layout, story: list[str]) -> None:
    text = "\n".join(story)
    for path in (layout.model, layout.pretrained / "report.html", layout.fine_tuned / "report.html"):
        assert str(path) in text
        assert path.exists()
    assert f"graft train -c {layout.folder}/finetune.yaml training.output_dir={layout.folder}/finetune-again" in text
    for answer in results(layout.folder)["answers"]:
        assert answer["question"] in text


def test_plain_transformers_gives_the_same_answers(layout: Layout) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(layout.model)
    model = AutoModelForCausalLM.from_pretrained(layout.model)
    for answer in results(layout.folder)["answers"]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": answer["question"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        stop = tokenizer.convert_tokens_to_ids("<|eot_id|>")
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=stop, pad_token_id=2)
        said = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert answer["answer"].startswith(said)


def test_a_second_one_leaves_the_first_alone_and_has_the_same_numbers(layout: Layout, parent: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in layout.folder.rglob("*") if path.is_file()}
    lines: list[str] = []
    again = run(parent, seed=3, num_steps=STEPS, say=lines.append)
    assert again.folder == parent / "run-2"
    assert any("run-1 is from an earlier quickstart and stays as it is" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in layout.folder.rglob("*") if path.is_file()} == before
    assert results(again.folder) == results(layout.folder)
    for first, second in ((layout.pretrained, again.pretrained), (layout.fine_tuned, again.fine_tuned)):
        assert metrics(first) == metrics(second)
    assert (again.model / "model.safetensors").read_bytes() == (layout.model / "model.safetensors").read_bytes()


def test_the_printed_command_trains_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    target = layout.fine_tuned.with_name("finetune-again")
    command = ["train", "-c", str(layout.config(layout.fine_tuned)), f"training.output_dir={target}"]
    assert main(command) == 0
    assert metrics(target) == metrics(layout.fine_tuned)


def test_ctrl_c_says_what_is_left(tmp_path: Path) -> None:
    """The first interrupt comes when a training has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", GRAFT, "quickstart", "--steps", "100000", "--output-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip().startswith("step 1/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"stays in {tmp_path}/run-1; graft quickstart begins anew beside it" in out
    assert f"graft train -c {tmp_path}/run-1/pretrain.yaml --resume" in out
    assert list((tmp_path / "run-1" / "pretrain" / "checkpoints").glob("step-*"))
