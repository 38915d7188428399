"""Download exported directories from the Hugging Face hub, and push them to it."""

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
from ssl_vivit.exported.directory import Format, similar_entry

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Errors that the hub's client raises for a missing or unexpected answer. The first is the error
# class of the client's HTTP library.
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
    """Return the local directory of an export; download a hub model into the cache first.

    An existing path is preferred to a hub model of that name. Only files of the exported format are
    downloaded, never code.

    Args:
        path: a directory, or ``"org/name"`` on the hub.
        kind: the kind of export.
        revision: branch, tag or commit on the hub; None is the main branch.
        token: access token for private models; None is the token of ``hf auth login``.
        cache_dir: cache of downloaded files; None is ``HF_HUB_CACHE``.

    Raises:
        HubError: if the hub cannot be reached, or does not have the model or revision.
        ExportError: if a revision is given for a local directory.
    """
    local = Path(path)
    if not isinstance(path, str) or local.exists() or not REPO_ID.fullmatch(path):
        if revision is not None:
            raise ExportError(
                f"revision {revision!r} applies to models on the hub, but {path} is a local path; "
                "omit revision"
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
            f"there is no directory {path}{similar_entry(local)}, and it cannot be loaded from the hub: "
            f"{_reason(path, revision, error)}"
        ) from None
    return Path(found)


class HubModel:
    """Base class of models that can be published on the hub.

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
            repo_id: repository ``"org/name"``; created if it does not exist.
            private: make a newly created repository private.
            revision: branch to commit to, created if missing; None is the main branch.
            token: access token with write permission; None is the token of ``hf auth login``.
            commit_message: message of the commit; None is "Upload with ssl_vivit".
            saved: further arguments of ``save_pretrained``, such as ``card``.

        Returns:
            URL of the commit.

        Raises:
            HubError: if the hub cannot be reached or rejects the request.
        """
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch) / "export"
            self.save_pretrained(directory, **saved)
            # Files in the repository that the new export lacks are deleted, such as the head of an
            # earlier classifier.
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
        error = error.__cause__  # the hub answered with an error, and the cache lacks the model
    if isinstance(error, GatedRepoError):
        return f"access is restricted; request it at {constants.ENDPOINT}/{repo_id}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "no such model is visible to this account; check the path or name, "
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
