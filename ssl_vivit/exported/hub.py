"""Exports on the Hugging Face hub: found by name, pushed as the exported directory."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ssl_vivit.errors import ExportError, HubError
from ssl_vivit.exported.directory import Format

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What the hub's client raises when it gets no answer or not the one that it wanted. The first is
# the error of whichever HTTP library it uses.
_FAILURES: tuple[type[BaseException], ...] = (
    HfHubHTTPError.__mro__[1],
    OSError,
    HFValidationError,
)


def locate(
    path: str | Path,
    kind: Format,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Find the directory of an export; a model of the hub is downloaded into its cache.

    An existing path wins over a hub model of the same name. Of the hub's files only those of the
    exported format are fetched, so nothing that could execute.

    Args:
        path: a directory, or ``"org/name"`` on the hub.
        kind: the kind of export.
        revision: branch, tag or commit on the hub; None is its main branch.
        token: for private models; None is the one of ``hf auth login``.
        cache_dir: where the hub's files are kept; None is ``HF_HUB_CACHE``.

    Raises:
        HubError: for a hub that cannot be reached, or a model or revision that it does not have.
        ExportError: for a revision of a local directory.
    """
    local = Path(path)
    if not isinstance(path, str) or local.exists() or not REPO_ID.fullmatch(path):
        if revision is not None:
            raise ExportError(
                f"revision {revision!r} is for models on the hub, and {path} is none; leave it out"
            )
        return local
    try:
        found = snapshot_download(
            path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=kind.all_files,
        )
    except _FAILURES as error:
        raise HubError(
            f"there is no directory {path}; looked for as org/name on the hub, too: "
            f"{_reason(path, revision, error)}"
        ) from None
    return Path(found)


class HubModel:
    """A model whose exports are published on the hub.

    Attributes:
        export_format: the kind of directory that ``save_pretrained`` writes.
    """

    export_format: ClassVar[Format]
    save_pretrained: Callable[..., None]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        **saved: Any,
    ) -> str:
        """Publish the model on the Hugging Face hub, in one commit.

        Args:
            repo_id: ``"org/name"``; made if the hub has none.
            private: whether a newly made one is private.
            revision: branch to commit to, made if missing; None is the main branch.
            token: with write access; None is the one of ``hf auth login``.
            commit_message: None names the program.
            saved: further arguments of ``save_pretrained``, such as ``card``.

        Returns:
            The commit's address.

        Raises:
            HubError: for a hub that cannot be reached or refuses.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / "export"
            self.save_pretrained(directory, **saved)
            # An encoder pushed over a classifier must not leave the old head behind.
            names = self.export_format.all_files
            stale = [name for name in names if not (directory / name).exists()]
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=directory,
                    revision=revision,
                    commit_message=commit_message or "Upload with ssl_vivit",
                    delete_patterns=stale,
                )
            except _FAILURES as error:
                raise HubError(
                    f"{repo_id} could not be pushed: {_reason(repo_id, revision, error)}"
                ) from None
        return str(commit.commit_url)


def _reason(repo_id: str, revision: str | None, error: BaseException) -> str:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # an answer, if not the wanted one, and nothing in the cache
    if isinstance(error, GatedRepoError):
        return f"the hub gates it; ask for access at {constants.ENDPOINT}/{repo_id}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the hub has no model of that name that this account may see; check the path or name, "
            "or log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the hub's model of that name has no revision {revision!r}"
    if isinstance(error, HFValidationError):
        return f"it is not a valid name on the hub ({_first_line(error)})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses this account ({status}); log in with `hf auth login`"
    if status is not None:
        return f"the hub answers {status}; try again later ({_first_line(error)})"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"the hub at {constants.ENDPOINT} cannot be reached, and no model of that name was "
            "downloaded before; check the path, the connection and HF_HUB_OFFLINE"
        )
    return f"the hub at {constants.ENDPOINT} cannot be reached ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
