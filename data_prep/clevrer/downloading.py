"""Download CLEVRER's published archives, and resume broken downloads."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data_prep.output_files import writing
from ssl_vivit.errors import DataError
from ssl_vivit.files import write_text

Split = Literal["train", "validation", "test"]

BASE_URL = "http://data.csail.mit.edu/clevrer"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A published file: its path below the base URL, its size in bytes and SHA-256 if known."""

    path: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "train": (
        Archive("videos/train/video_train.zip"),
        Archive(
            "annotations/train/annotation_train.zip",
            156_761_889,
            "e7f9185ad3dde8139b839b00f0f75483374dd0325a3cbec2dac882078497784c",
        ),
    ),
    "validation": (
        Archive("videos/validation/video_validation.zip"),
        Archive(
            "annotations/validation/annotation_validation.zip",
            78_386_966,
            "d89e74714dff7a1117fd113b54af99fbbc51583ebd742c788c484d708eb426d2",
        ),
    ),
    "test": (Archive("videos/test/video_test.zip"),),
}


def download(
    split: Split,
    out: str | Path,
    base_url: str = BASE_URL,
    *,
    progress: bool = True,
    timeout: float = 60,
    attempts: int = 5,
) -> list[Path]:
    """Download a split's videos and annotations (the test split has no annotations).

    Received bytes are kept in ``NAME.part`` if the connection breaks, and are not downloaded again
    if the server supports resuming. Existing archives are kept.

    Args:
        split: ``train``, ``validation`` or ``test``.
        out: folder of the archives; created if missing.
        base_url: address of a mirror with CLEVRER's folders.
        progress: show a progress bar.
        timeout: seconds without data after which a connection counts as broken.
        attempts: number of successive connections without data before giving up.

    Returns:
        Paths of the archives.

    Raises:
        DataError: if an archive cannot be downloaded completely, or is not the published one.
    """
    if split not in ARCHIVES:
        raise DataError(f"--split {split} must be one of {', '.join(ARCHIVES)}")
    if not base_url.startswith(("http://", "https://")):
        raise DataError(f"--base-url {base_url} must be an http:// or https:// address")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; give a folder")
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        return [
            _fetch(
                archive, f"{base_url.rstrip('/')}/{archive.path}", out, progress, timeout, attempts
            )
            for archive in ARCHIVES[split]
        ]


def _fetch(
    archive: Archive, url: str, out: Path, progress: bool, timeout: float, attempts: int
) -> Path:
    """Download one archive to ``out``; see :func:`download`."""
    target, part = out / archive.name, out / f"{archive.name}.part"
    if target.exists():
        _validator_file(part).unlink(missing_ok=True)
        return target
    left = attempts
    while True:
        before = _received_bytes(part)
        try:
            total = _append_missing_bytes(url, part, archive, progress, timeout)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DataError(
                    f"{url}: the server answers {error.code} {error.reason}; check --base-url"
                ) from error
            reason: object = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
        except TimeoutError:
            reason = f"no data for {timeout:g} s"
        else:
            have = _received_bytes(part)
            if total is None or have == total:
                break
            reason = f"the connection ended at {have:,} of {total:,} bytes"
        have = _received_bytes(part)
        left = attempts if have > before else left - 1
        if left <= 0:
            raise DataError(
                f"{url}: {reason}; {have:,} bytes are kept in {part}; run the command again to "
                "continue"
            )
    _check(archive, part, url)
    os.replace(part, target)
    _validator_file(part).unlink(missing_ok=True)
    return target


def _append_missing_bytes(
    url: str, part: Path, archive: Archive, progress: bool, timeout: float
) -> int | None:
    """Download the bytes of an archive that the file ``part`` does not contain, and append them.

    Returns:
        Size of the complete archive in bytes; None if unknown.
    """
    have = _received_bytes(part)
    request = urllib.request.Request(url)
    memo = _validator_file(part)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if memo.exists():
            # With this header the server sends the whole file if it has changed.
            request.add_header("If-Range", memo.read_text())
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        total = _total(error.headers.get("Content-Range"))
        if total != have:
            part.unlink()
        return total
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed:
            total = _total(response.headers.get("Content-Range"))
        else:
            have = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length else archive.size
        if archive.size is not None and total is not None and total != archive.size:
            raise DataError(
                f"{url} has {total:,} bytes, but CLEVRER's archive has {archive.size:,}; check "
                "--base-url"
            )
        room = shutil.disk_usage(part.parent).free
        if total is not None and total - have > room:
            raise DataError(
                f"{part.parent} has {room:,} bytes of free space, but {archive.name} still needs "
                f"{total - have:,} bytes; free space or choose another --out"
            )
        if not resumed:
            # Remove the old bytes before the new validator is written: after an interruption, old
            # bytes must not stay with the new validator.
            part.unlink(missing_ok=True)
        # Weak ETags do not guarantee equal bytes, and servers ignore them in If-Range.
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if validator and not validator.startswith("W/"):
            write_text(memo, validator)
        else:
            memo.unlink(missing_ok=True)
        with (
            open(part, "ab") as file,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=archive.name,
                disable=not progress,
            ) as bar,
        ):
            while chunk := response.read1(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total


def _received_bytes(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _total(content_range: str | None) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(match[1]) if match else None


def _check(archive: Archive, part: Path, url: str) -> None:
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if archive.sha256 else None
    whole = digest == archive.sha256 and zipfile.is_zipfile(part)
    if not whole:
        part.unlink()
        _validator_file(part).unlink(missing_ok=True)
        raise DataError(
            f"{url} returned an error page or a damaged file instead of CLEVRER's archive; the file "
            "was removed; run the command again"
        )


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")
