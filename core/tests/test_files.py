"""A file or a folder is the old one or the new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from graftwork import files
from graftwork.files import complete_folder, remove_folder, remove_leftovers, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "ä\n")
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with complete_folder(path) as beside:
        (beside / "one").write_text("1")
        assert not path.exists()
        assert beside.parent == path.parent
    assert names(path) == ["one"]
    assert names(path.parent) == ["folder"]


def test_a_folder_is_replaced_and_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with complete_folder(path) as beside:
            (beside / name).write_text(name)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "folder"
    with complete_folder(path) as beside:
        (beside / "old").write_text("old")
    with pytest.raises(error), complete_folder(path) as beside:
        (beside / "half").write_text("half")
        raise error
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.12.tmp", ".kept.old", ".d.gone", ".e.old.gone", "kept", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".c.7.tmp").write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "kept"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"
    remove_leftovers(tmp_path / "nowhere")


def test_a_folder_whose_successor_never_came_gets_its_name_back(tmp_path: Path) -> None:
    """Killed after the old folder made room, before the new one took its place."""
    path = tmp_path / "step-4"
    with complete_folder(path) as beside:
        (beside / "file").write_text("old")
    code = (
        "import os, pathlib, sys; from graftwork.files import complete_folder\n"
        "pathlib.Path.rename_, pathlib.Path.rename = pathlib.Path.rename, lambda self, target: ("
        "self.rename_(target), os.kill(os.getpid(), 9))\n"
        "with complete_folder(pathlib.Path(sys.argv[1])) as beside: (beside / 'file').write_text('new')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert not path.exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-4"]
    assert (path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "folder", Path.rename
    path.mkdir()
    (path / "old").write_text("old")

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(30, "read-only")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="read-only"), complete_folder(path) as beside:
        (beside / "new").write_text("new")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    remove_folder(tmp_path / "a")
    assert names(tmp_path) == []
