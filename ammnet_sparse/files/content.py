"""What a file is, by its first bytes and not by its name; and reading whole files of bounded size."""

from pathlib import Path
from typing import BinaryIO

from ammnet_sparse.files.errors import DataError, FileError, reason

HEAD_BYTES = 512
MOST_TEXT_BYTES = 16 * 2**20

_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x93NUMPY", "a NumPy array (npy)"),
    (b"\x89PNG\r\n\x1a\n", "a png image"),
    (b"\xff\xd8\xff", "a jpg image"),
    (b"II*\x00", "a tiff image"),
    (b"MM\x00*", "a tiff image"),
    (b"GIF8", "a gif image"),
    (b"BM", "a bmp image"),
    (b"%!PS", "a PostScript program (eps)"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript program (eps)"),
    (b"%PDF", "a pdf document"),
    (b"\x76\x2f\x31\x01", "an exr image"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"BZh", "a bzip2 file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
)
_HTML_MARKS = (b"<!doctype html", b"<html", b"<head", b"<body")


def describe_content(head: bytes) -> str:
    """What a file is, from its first bytes: ``an HTML page``, ``a git-lfs pointer``, ``a png image``, ``bytes ...``."""
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer instead of the file"
    if head.startswith(b"/annex/objects/") or b".git/annex/objects" in head[:HEAD_BYTES]:
        return "a git-annex pointer instead of the file"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_HTML_MARKS) or b"<html" in start[:HEAD_BYTES]:
        return "an HTML page instead of the file"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a webp image"
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if not any(head):
        return "zeros only, as of an interrupted download"
    if is_text(head):
        return f"text beginning with {head[:40].decode('utf-8', 'replace').splitlines()[0][:40]!r}"
    return f"bytes beginning with {head[:8].hex(' ')}"


def advice_for(head: bytes, *, otherwise: str) -> str:
    """What to do about content of another kind than expected; ``otherwise`` if the content is not recognized."""
    found = describe_content(head)
    if found.startswith("a git-lfs"):
        advice = "fetch the files themselves with 'git lfs pull'"
    elif found.startswith("a git-annex"):
        advice = "fetch the files themselves with 'git annex get'"
    elif found.startswith("an HTML"):
        advice = "the download was answered with a page, perhaps to log in: download the file itself"
    else:
        return otherwise
    _, comma, alternative = otherwise.partition(", or ")
    return f"{advice}{comma}{alternative}"


def is_text(head: bytes) -> bool:
    """Whether bytes look like text in ASCII or UTF-8: no control characters but tabs and line ends."""
    if any(byte < 32 and byte not in b"\t\r\n\f" for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 4  # cut within a character
    return True


def open_file(path: str | Path, *, what: str, advice: str, raises: type[FileError] = DataError) -> BinaryIO:
    """Opens a file for reading. Raises ``raises`` if it is missing, a folder, or may not be read."""
    try:
        file = open(path, "rb")  # noqa: SIM115  the caller closes it
    except FileNotFoundError as error:
        raise raises.about(path, expected=what, found="no such file", advice=advice) from error
    except IsADirectoryError as error:
        raise raises.about(path, expected=what, found="a folder", advice=advice) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise raises.about(path, expected=what, found=f"one that cannot be opened ({reason(error)})") from error
    return file


def read_head(file: BinaryIO) -> bytes:
    """The first bytes of a file; its position stays at the beginning."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head


def read_bytes(
    path: str | Path, *, what: str, most: int, advice: str = "check the path", raises: type[FileError] = DataError
) -> bytes:
    """The content of a small file.

    Args:
        what: what the file is expected to be, for messages: ``a list of frame ids``.
        most: largest number of bytes of such a file; larger ones are refused.

    Raises:
        FileError: as ``raises``: missing, unreadable or too large.
    """
    with open_file(path, what=what, advice=advice, raises=raises) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise raises.about(path, expected=what, found=reason(error), advice=advice) from error
    if len(content) > most:
        raise raises.about(
            path, expected=f"{what} of at most {most:,} bytes", found="a larger file", advice="name another file"
        )
    return content


def read_text(
    path: str | Path,
    *,
    what: str,
    most: int = MOST_TEXT_BYTES,
    advice: str = "replace the file",
    raises: type[FileError] = DataError,
) -> str:
    """The content of a text file in UTF-8, with or without a byte-order mark; UTF-16 with one.

    Raises:
        FileError: as ``raises``: missing, unreadable, too large, or not text.
    """
    content = read_bytes(path, what=what, most=most, advice=advice, raises=raises)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    found = describe_content(content[:HEAD_BYTES])
    if "instead of the file" in found:
        raise raises.about(path, expected=what, found=found, advice=advice_for(content[:HEAD_BYTES], otherwise=advice))
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise raises.about(path, expected=f"{what} in UTF-8", found=found, advice=advice) from error
    if "\0" in text:
        raise raises.about(path, expected=f"{what} in UTF-8", found="zero bytes in it", advice=advice)
    return text
