"""Hugging Face's hub: what it says of a data set or a model, and its files in the hub's own cache,
also without a network."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from diffuse_cli.system import files
from diffuse_cli.system.errors import (
    DataError,
    DiffuseError,
    ModelFileError,
    OutputError,
    UsageError,
    extra_package,
)
from diffuse_cli.system.files import brief
from diffuse_cli.system.memory import raise_if_full

OFFLINE = "HF_HUB_OFFLINE"
LOGIN = "log in with `hf auth login`"

_PART = re.compile(r"-\d+-of-(\d+)(?=\.)")
"""What is in the name of a shard: which it is, of how many."""


class Kind(NamedTuple):
    """What a repository of the hub holds.

    Attributes:
        one: the word for it.
        prefix: of its name, as it is typed.
        repo_type: the hub's name of the kind.
        error: makes the error that is raised where it cannot be had.
    """

    one: str
    prefix: str
    repo_type: str
    error: Callable[..., DiffuseError]

    def title(self, repo: str) -> str:
        """Return the name that is typed for a repository."""
        return f"hf://{self.prefix}{repo}"


DATASET = Kind("data set", "datasets/", "dataset", DataError)
MODEL = Kind("model", "", "model", ModelFileError)


def check_within(typed: str, *parts: str | None) -> None:
    """Refuse parts of a name that lead out of their repository, as they are or percent-encoded.

    Raises:
        UsageError
    """
    for part in filter(None, parts):
        for text in (part, unquote(part)):
            steps = re.split(r"[/\\]", text)
            if steps[0] == "" or {".", ".."} & {*steps}:
                raise UsageError(f"{files.show(typed)}: {brief(part)} leads out of a repository")


class HubFile(NamedTuple):
    """A file of a repository: its path there, its bytes, and its SHA-256 if the hub says it."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class HubListing:
    """A repository at a commit.

    Attributes:
        repo: ORG/NAME.
        commit: the hash of the revision.
        files: in the byte order of their names.
        why: why the hub was not asked; empty if it was.
        kind: what it holds.
    """

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    why: str = ""
    kind: Kind = DATASET

    @property
    def title(self) -> str:
        """What is typed for it."""
        return self.kind.title(self.repo)

    @property
    def snapshot(self) -> Path:
        """The folder of its files at the commit."""
        return _folder(self.kind, self.repo) / "snapshots" / self.commit

    def path(self, file: HubFile) -> Path:
        """Return the path of a file once it is downloaded."""
        return self.snapshot / file.name

    def check_online(self, missing: int, total: int) -> None:
        """Refuse to download without a hub.

        Raises:
            DataError, ModelFileError: by the kind.
        """
        if self.why:
            raise self.kind.error(
                f"{missing:,} of {total:,} files of {self.title} are not in the cache, and "
                f"{self.why}",
                "Type the command again with a network",
            )


def package(kind: Kind, repo: str) -> Any:
    """huggingface_hub, which prints nothing.

    Raises:
        DataError, ModelFileError: it is not installed.
    """
    text = f"huggingface_hub is needed to read {brief(kind.title(repo))}"
    hub = extra_package("huggingface_hub", "hub", text, kind.error)
    hub.logging.set_verbosity_error()
    hub.utils.disable_progress_bars()
    return hub


def listed(repo: str, revision: str, kind: Kind = DATASET) -> HubListing:
    """Return a repository as the hub has it, else as it was when the hub was last asked, else what
    is in the cache.

    Raises:
        DataError, ModelFileError: there is none, or no way to know.
    """
    hub = package(kind, repo)
    try:
        found = hub.HfApi().repo_info(
            repo, repo_type=kind.repo_type, revision=revision, files_metadata=True
        )
    except Exception as error:
        raise_if_full(error)
        why = reason(error, kind, repo, revision)
        listing = _recorded(kind, repo, revision, why) or _in_cache(kind, repo, revision, why)
        if listing is None:
            raise kind.error(
                f"{kind.title(repo)} is not in the cache, and {why}",
                "Type the command again with a network",
            ) from error
        return listing
    entries = [
        HubFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None) for s in found.siblings or ()
    ]
    listing = _made(kind, repo, found.sha, entries, "")
    for name in dict.fromkeys((revision, found.sha)):
        if record := _record(kind, repo, name):
            with contextlib.suppress(OutputError):
                files.write_json(record, {"commit": found.sha, "files": entries})
    return listing


def downloaded(listing: HubListing, file: HubFile) -> None:
    """Bring a file into the cache, whole or not at all.

    Raises:
        DataError, ModelFileError: it cannot be had, or it is not what the hub says.
    """
    import huggingface_hub as hub

    kind, repo, commit = listing.kind, listing.repo, listing.commit
    try:
        found = hub.hf_hub_download(repo, file.name, repo_type=kind.repo_type, revision=commit)
    except Exception as error:
        raise_if_full(error)
        why = reason(error, kind, repo, commit)
        raise kind.error(
            f"cannot download {brief(file.name)} of {listing.title}: {why}",
            "Type the command again: what is whole is kept",
        ) from error
    path = Path(found)
    size = path.stat().st_size
    if (file.size is not None and size != file.size) or (
        file.sha256 is not None and files.sha256(path) != file.sha256
    ):
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise kind.error(
            f"{brief(file.name)} of {listing.title} is not what the hub says it is, and was not "
            "kept",
            "Type the command again",
        )


def _made(kind: Kind, repo: str, commit: str, entries: list[HubFile], why: str) -> HubListing:
    safe = [f for f in entries if not {"..", ""} & {*f.name.split("/")} and "\0" not in f.name]
    ordered = sorted(safe, key=lambda f: f.name.encode("utf-8", "surrogateescape"))
    return HubListing(repo, commit, tuple(ordered), why, kind)


def reason(error: Exception, kind: Kind, repo: str, revision: str = "main") -> str:
    """Why the hub did not answer.

    Raises:
        DataError, ModelFileError: it did, and there is no such repository, or it is closed.
    """
    from huggingface_hub import constants, errors

    name = kind.title(repo)
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{kind.prefix}{repo}"
        raise kind.error(f"{name} is gated", f"Accept its terms at {page}, and {LOGIN}") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise kind.error(f"{name} has no revision {brief(revision)}") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise kind.error(
            f"there is no {kind.one} {name}, or it is private", f"Check its name, or {LOGIN}"
        ) from error
    if isinstance(error, errors.HFValidationError):
        raise kind.error(f"not a name of a {kind.one}: {name}", "It is ORG/NAME") from error
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{OFFLINE} is set"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"{constants.ENDPOINT} answers {error.response.status_code}"
    return f"{constants.ENDPOINT} does not answer ({brief(error, 80) or type(error).__name__})"


# -- without a network ----------------------------------------------------------------------------


def _folder(kind: Kind, repo: str) -> Path:
    """Return the hub's cache of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind.repo_type}s--{repo.replace('/', '--')}"


def _record(kind: Kind, repo: str, revision: str) -> Path | None:
    """Return the file that says what a revision was when the hub was last asked."""
    cache = files.cache_folder()
    own = repo if kind is DATASET else f"{kind.repo_type}s/{repo}"
    return cache / "hub" / f"{quote(f'{own}@{revision}', safe='@')}.json" if cache else None


def _recorded(kind: Kind, repo: str, revision: str, why: str) -> HubListing | None:
    record = _record(kind, repo, revision)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        said = json.loads(record.read_bytes()) if record else {}
        entries = [HubFile(*entry) for entry in said["files"]]
        return _made(kind, repo, str(said["commit"]), entries, why)
    return None


def _in_cache(kind: Kind, repo: str, revision: str, why: str) -> HubListing | None:
    """Return the files of a revision that another program has downloaded."""
    folder, commit = _folder(kind, repo), revision
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / revision).read_text().strip()
    root = folder / "snapshots" / commit
    names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    if not names or "/" in commit:
        return None
    listing = _made(kind, repo, commit, [HubFile(name, None, None) for name in names], why)
    shards = Counter((_PART.sub("", n), int(m[1])) for n in names if (m := _PART.search(n)))
    for (_, count), there in shards.items():
        if there < count:
            listing.check_online(count - there, count)
    return listing
