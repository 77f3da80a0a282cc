"""What the hub says of a data set, and its files in the hub's own cache, also without a network."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from diffuse_cli import files
from diffuse_cli.data.sources._rows import needed
from diffuse_cli.errors import DataError, OutputError
from diffuse_cli.files import brief

OFFLINE = "HF_HUB_OFFLINE"
LOGIN = "log in with `hf auth login`"

_PART = re.compile(r"-\d+-of-(\d+)(?=\.)")
"""What is in the name of a shard: which it is, of how many."""


class File(NamedTuple):
    """A file of a data set: its path there, its bytes, and its SHA-256 if the hub says it."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """A data set at a commit.

    Attributes:
        repo: ORG/NAME.
        commit: the hash of the revision.
        files: in the byte order of their names.
        why: why the hub was not asked; empty if it was.
    """

    repo: str
    commit: str
    files: tuple[File, ...]
    why: str = ""

    @property
    def title(self) -> str:
        """What is typed for it."""
        return f"hf://datasets/{self.repo}"

    @property
    def snapshot(self) -> Path:
        """The folder of its files at the commit."""
        return _folder(self.repo) / "snapshots" / self.commit

    def path(self, file: File) -> Path:
        """Where a file is once it is downloaded."""
        return self.snapshot / file.name

    def check_online(self, missing: int, total: int) -> None:
        """Refuse to download without a hub.

        Raises:
            DataError
        """
        if self.why:
            raise DataError(
                f"{missing:,} of {total:,} files of {self.title} are not in the cache, and "
                f"{self.why}",
                "Type the command again with a network",
            )


def listed(repo: str, revision: str) -> Listing:
    """A data set as the hub has it, else as it was when the hub was last asked, else what is in
    the cache.

    Raises:
        DataError: there is none, or no way to know.
    """
    hub = needed("huggingface_hub", "hub", Path(f"hf:/datasets/{repo}"))
    hub.logging.set_verbosity_error()
    hub.utils.disable_progress_bars()
    try:
        found = hub.HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        why = _reason(error, repo, revision)
        listing = _recorded(repo, revision, why) or _in_cache(repo, revision, why)
        if listing is None:
            raise DataError(
                f"hf://datasets/{repo} is not in the cache, and {why}",
                "Type the command again with a network",
            ) from error
        return listing
    entries = [
        File(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None) for s in found.siblings or ()
    ]
    listing = _made(repo, found.sha, entries, "")
    for record in map(_record, (repo, repo), (revision, found.sha)):
        if record is not None:
            with contextlib.suppress(OutputError):
                files.write_json(record, {"commit": found.sha, "files": entries})
    return listing


def downloaded(listing: Listing, file: File) -> None:
    """Bring a file into the cache, whole or not at all.

    Raises:
        DataError: it cannot be had, or it is not what the hub says.
    """
    import huggingface_hub as hub

    try:
        path = Path(
            hub.hf_hub_download(
                listing.repo, file.name, repo_type="dataset", revision=listing.commit
            )
        )
    except Exception as error:
        why = _reason(error, listing.repo, listing.commit)
        raise DataError(
            f"cannot download {brief(file.name)} of {listing.title}: {why}",
            "Type the command again: what is whole is kept",
        ) from error
    size = path.stat().st_size
    if (file.size is not None and size != file.size) or (
        file.sha256 is not None and files.sha256(path) != file.sha256
    ):
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise DataError(
            f"{brief(file.name)} of {listing.title} is not what the hub says it is, and was not "
            "kept",
            "Type the command again",
        )


def _made(repo: str, commit: str, entries: list[File], why: str) -> Listing:
    safe = [f for f in entries if not {"..", ""} & {*f.name.split("/")} and "\0" not in f.name]
    ordered = sorted(safe, key=lambda f: f.name.encode("utf-8", "surrogateescape"))
    return Listing(repo, commit, tuple(ordered), why)


def _reason(error: Exception, repo: str, revision: str) -> str:
    """Why the hub did not answer.

    Raises:
        DataError: it did, and there is no such data.
    """
    from huggingface_hub import constants, errors

    name = f"hf://datasets/{repo}"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/datasets/{repo}"
        raise DataError(f"{name} is gated", f"Accept its terms at {page}, and {LOGIN}") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise DataError(f"{name} has no revision {brief(revision)}") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise DataError(
            f"there is no data set {name}, or it is private", f"Check its name, or {LOGIN}"
        ) from error
    if isinstance(error, errors.HFValidationError):
        raise DataError(f"not a name of a data set: {name}", "It is ORG/NAME") from error
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{OFFLINE} is set"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"{constants.ENDPOINT} answers {error.response.status_code}"
    return f"{constants.ENDPOINT} does not answer ({brief(error, 80) or type(error).__name__})"


# -- without a network ----------------------------------------------------------------------------


def _folder(repo: str) -> Path:
    """The hub's cache of a data set."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}"


def _record(repo: str, revision: str) -> Path | None:
    """The file that says what a revision was when the hub was last asked."""
    cache = files.cache_folder()
    return cache / "hub" / f"{quote(f'{repo}@{revision}', safe='@')}.json" if cache else None


def _recorded(repo: str, revision: str, why: str) -> Listing | None:
    record = _record(repo, revision)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        said = json.loads(record.read_bytes()) if record else {}
        return _made(repo, str(said["commit"]), [File(*entry) for entry in said["files"]], why)
    return None


def _in_cache(repo: str, revision: str, why: str) -> Listing | None:
    """What another program has downloaded of a revision."""
    folder, commit = _folder(repo), revision
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / revision).read_text().strip()
    root = folder / "snapshots" / commit
    names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    if not names or "/" in commit:
        return None
    listing = _made(repo, commit, [File(name, None, None) for name in names], why)
    shards = Counter((_PART.sub("", n), int(m[1])) for n in names if (m := _PART.search(n)))
    for (_, count), there in shards.items():
        if there < count:
            listing.check_online(count - there, count)
    return listing
