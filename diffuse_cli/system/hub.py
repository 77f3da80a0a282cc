"""Data sets and models on the Hugging Face Hub, listed and downloaded into the Hub's own cache.

Files in the cache also work without a network.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from diffuse_cli.system import (
    DataError,
    DiffuseError,
    ModelFileError,
    OutputError,
    UsageError,
    extra_package,
    files,
    raise_if_full,
    shorten,
)

OFFLINE = "HF_HUB_OFFLINE"
AT_ONCE = 8
"""Number of files that are downloaded at a time."""
LOGIN = "log in with `hf auth login`"

_PART = re.compile(r"-\d+-of-(\d+)(?=\.)")
"""Number of a shard and the number of shards, in the name of its file."""


class RepositoryKind(NamedTuple):
    """Kind of a repository on the Hub.

    Attributes:
        one: the word for it.
        prefix: the prefix of its names after `hf://`.
        repo_type: the Hub's name of the kind.
        error: the exception to raise if a repository cannot be read.
    """

    one: str
    prefix: str
    repo_type: str
    error: Callable[..., DiffuseError]

    def title(self, repo: str) -> str:
        """Return the `hf://` name of a repository."""
        return f"hf://{self.prefix}{repo}"


DATASET = RepositoryKind("data set", "datasets/", "dataset", DataError)
MODEL = RepositoryKind("model", "", "model", ModelFileError)


def check_repository_path(typed: str, *parts: str | None) -> None:
    """Refuse parts of a name that lead out of their repository, percent-encoded or not.

    Raises:
        UsageError
    """
    for part in filter(None, parts):
        for text in (part, unquote(part)):
            steps = re.split(r"[/\\]", text)
            if steps[0] == "" or {".", ".."} & {*steps}:
                line = f"{files.show(typed)}: {shorten(part)} leads out of a repository"
                address = re.sub("^hf:/+", "hf://", typed)
                raise UsageError(line, code="invalid_value", path=address)


class HubFile(NamedTuple):
    """A file of a repository: its path, its bytes, and its SHA-256 if the Hub lists it."""

    name: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class HubListing:
    """A repository at a commit.

    Attributes:
        repo: ORG/NAME.
        commit: the hash of the revision.
        files: the files, in the byte order of their names.
        why: the reason why the Hub did not answer, empty if it did.
        kind: the kind of repository.
    """

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    why: str = ""
    kind: RepositoryKind = DATASET

    @property
    def title(self) -> str:
        """The `hf://` name of the repository."""
        return self.kind.title(self.repo)

    @property
    def snapshot(self) -> Path:
        """Folder of the files at the commit."""
        return _folder(self.kind, self.repo) / "snapshots" / self.commit

    def path(self, file: HubFile) -> Path:
        """Return the path of a file once it is downloaded."""
        return self.snapshot / file.name

    def check_online(self, missing: int, total: int) -> None:
        """Refuse to download while the Hub does not answer.

        Raises:
            DataError, ModelFileError: by the kind.
        """
        if self.why:
            raise self.kind.error(
                f"{missing:,} of {total:,} files of {self.title} are not in the cache, and "
                f"{self.why}",
                "Run the command again with a network connection",
                code="hub_failed",
                path=self.title,
            )

    def download_file(self, file: HubFile) -> None:
        """Download a file into the cache, whole or not at all.

        Raises:
            DataError, ModelFileError: it cannot be downloaded, or its size or SHA-256 is wrong.
        """
        import huggingface_hub as hub

        kind, repo, commit = self.kind, self.repo, self.commit
        try:
            location = hub.hf_hub_download(
                repo, file.name, repo_type=kind.repo_type, revision=commit
            )
        except Exception as error:
            raise_if_full(error)
            why = reason(error, kind, repo, commit)
            text = f"cannot download {shorten(file.name)} of {self.title}: {why}"
            hint = "Run the command again. It keeps complete files"
            raise kind.error(text, hint, code="hub_failed", path=self.title) from error
        path = Path(location)
        size = path.stat().st_size
        if (file.size is not None and size != file.size) or (
            file.sha256 is not None and files.sha256(path) != file.sha256
        ):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise kind.error(
                f"{shorten(file.name)} of {self.title} does not match its size or checksum on "
                "the Hub, and was deleted",
                "Run the command again",
                code="hub_failed",
                path=self.title,
            )

    def download_missing(self, hub_files: Sequence[HubFile]) -> Iterator[tuple[int, int]]:
        """Download files that are not in the cache, and yield the number of files there and of all.

        Raises:
            DataError, ModelFileError: see `download_file`, or the Hub does not answer.
        """
        missing = [file for file in hub_files if not self.path(file).is_file()]
        total, num_cached = len(hub_files), len(hub_files) - len(missing)
        if not missing:
            return
        yield num_cached, total
        self.check_online(len(missing), total)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="diffuse-hub") as pool:
            try:
                for _ in pool.map(self.download_file, missing):
                    num_cached += 1
                    yield num_cached, total
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def package(kind: RepositoryKind, repo: str) -> Any:
    """Import huggingface_hub, and turn off its output.

    Raises:
        DataError, ModelFileError: it is not installed.
    """
    text = f"huggingface_hub is needed to read {shorten(kind.title(repo))}"
    hub = extra_package("huggingface_hub", "hub", text, kind.error)
    hub.logging.set_verbosity_error()
    hub.utils.disable_progress_bars()
    return hub


def list_repository(repo: str, revision: str, kind: RepositoryKind = DATASET) -> HubListing:
    """Return a repository's listing: from the Hub, else from its last answer, else from the cache.

    Raises:
        DataError, ModelFileError: there is no such repository, or no way to know.
    """
    hub = package(kind, repo)
    try:
        answer = hub.HfApi().repo_info(
            repo, repo_type=kind.repo_type, revision=revision, files_metadata=True
        )
    except Exception as error:
        raise_if_full(error)
        why = reason(error, kind, repo, revision)
        request = (kind, repo, revision, why)
        listing = _last_listing(*request) or _cached_listing(*request)
        if listing is None:
            text = f"{kind.title(repo)} is not in the cache, and {why}"
            hint = "Run the command again with a network connection"
            raise kind.error(text, hint, code="hub_failed", path=kind.title(repo)) from error
        return listing
    entries = [
        HubFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None) for s in answer.siblings or ()
    ]
    listing = _make_listing(kind, repo, answer.sha, entries, "")
    for name in dict.fromkeys((revision, answer.sha)):
        if record := _record(kind, repo, name):
            with contextlib.suppress(OutputError):
                files.write_json(record, {"commit": answer.sha, "files": entries})
    return listing


def _make_listing(
    kind: RepositoryKind, repo: str, commit: str, hub_files: list[HubFile], why: str
) -> HubListing:
    safe = [f for f in hub_files if not {"..", ""} & {*f.name.split("/")} and "\0" not in f.name]
    ordered = sorted(safe, key=lambda f: f.name.encode("utf-8", "surrogateescape"))
    return HubListing(repo, commit, tuple(ordered), why, kind)


def reason(error: Exception, kind: RepositoryKind, repo: str, revision: str = "main") -> str:
    """Return the reason why the Hub did not answer.

    Raises:
        DataError, ModelFileError: it did answer, and the repository does not exist or is closed.
    """
    from huggingface_hub import constants, errors

    name = kind.title(repo)
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{kind.prefix}{repo}"
        text, hint = f"{name} is gated", f"Accept its terms at {page}, and {LOGIN}"
        raise kind.error(text, hint, code="hub_denied", path=name) from error
    if isinstance(error, errors.RevisionNotFoundError):
        text = f"{name} has no revision {shorten(revision)}"
        raise kind.error(text, code="hub_missing", path=name) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        text = f"there is no {kind.one} {name}, or it is private"
        hint = f"Check its name, or {LOGIN}"
        raise kind.error(text, hint, code="hub_missing", path=name) from error
    if isinstance(error, errors.HFValidationError):
        text = f"not a name of a {kind.one}: {name}"
        hint = f"Use {kind.title('ORG/NAME')}"
        raise kind.error(text, hint, code="invalid_value", path=name) from error
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{OFFLINE} is set"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"{constants.ENDPOINT} answers {error.response.status_code}"
    return f"{constants.ENDPOINT} does not answer ({shorten(error, 80) or type(error).__name__})"


def _folder(kind: RepositoryKind, repo: str) -> Path:
    """Return the Hub's cache folder of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind.repo_type}s--{repo.replace('/', '--')}"


def _record(kind: RepositoryKind, repo: str, revision: str) -> Path | None:
    """Return the file with the Hub's last answer about a revision."""
    cache = files.cache_folder()
    name = repo if kind is DATASET else f"{kind.repo_type}s/{repo}"
    return cache / "hub" / f"{quote(f'{name}@{revision}', safe='@')}.json" if cache else None


def _last_listing(kind: RepositoryKind, repo: str, revision: str, why: str) -> HubListing | None:
    record = _record(kind, repo, revision)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        answer = json.loads(record.read_bytes()) if record else {}
        entries = [HubFile(*entry) for entry in answer["files"]]
        return _make_listing(kind, repo, str(answer["commit"]), entries, why)
    return None


def _cached_listing(kind: RepositoryKind, repo: str, revision: str, why: str) -> HubListing | None:
    """Return the files of a revision that another program has downloaded."""
    folder, commit = _folder(kind, repo), revision
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / revision).read_text().strip()
    root = folder / "snapshots" / commit
    names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    if not names or "/" in commit:
        return None
    listing = _make_listing(kind, repo, commit, [HubFile(name, None, None) for name in names], why)
    shards = Counter((_PART.sub("", n), int(m[1])) for n in names if (m := _PART.search(n)))
    for (_, count), num_cached in shards.items():
        if num_cached < count:
            listing.check_online(count - num_cached, count)
    return listing
