"""Files are replaced whole or not at all, leave nothing behind, and follow the umask."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ammnet_sparse.files.writing import keep_as, naming_errors, remove_unfinished, replacing, write_text


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.write_bytes(b"content")
        temporary.chmod(0o600)  # as some libraries do
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    write_text(path, "more")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("more", 0o666 & ~umask)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_only_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(type(error)) as caught, replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "absent" / "file", "text")
    assert caught.value.filename == str(tmp_path / "absent" / "file")


def test_keep_as_gives_the_replaced_file_a_second_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = tmp_path / "file", tmp_path / "kept"
    for number in range(3):
        write_text(path, str(number))
        if number < 2:
            keep_as(path, kept)
    assert (path.read_text(), kept.read_text()) == ("2", "1")

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    keep_as(path, kept)
    assert kept.read_text() == "2" and not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["file", "ä" * 127, "x" * 255, "*[a]?"])
def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path, name: str) -> None:
    """The lock of a writer that works ends with its process, here with its block."""
    foreign = {
        f"{name[:100]}.unfinished",
        f"{name[:100]}.UPPER_01.unfinished",
        f"{name[:100]}.a1_b2c3d.txt",
        ".unfinished",
    }
    for other in foreign:
        (tmp_path / other).touch()
    (tmp_path / "folder.a1_b2c3d.unfinished").mkdir()
    (tmp_path / "link.a1_b2c3d.unfinished").symlink_to("/")
    before = {path.name for path in tmp_path.iterdir()}
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("new")
        left = temporary.with_name(temporary.name[: -len("a1_b2c3d.unfinished")] + "a1_b2c3d.unfinished")
        left.touch()
        (tmp_path / "other.a1_b2c3d.unfinished").touch()
        remove_unfinished(tmp_path, name=name)
        assert not left.exists() and (tmp_path / "other.a1_b2c3d.unfinished").exists()
        remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before | {name} and (tmp_path / name).read_text() == "new"


def test_errors_that_name_a_file_keep_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, naming_errors(tmp_path / "other"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")


def test_links_are_followed_and_devices_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, pipe = tmp_path / "folder" / "file", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    write_text(link, "text")
    assert link.is_symlink() and target.read_text() == "text" and list(target.parent.iterdir()) == [target]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 10) == b"text" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(OSError, match="No space left"):
        write_text("/dev/full", "text")
    assert Path("/dev/full").is_char_device()
