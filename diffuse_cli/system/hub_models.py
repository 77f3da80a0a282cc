"""Models on the Hugging Face Hub: download `hf://ORG/NAME[@REVISION][/FILE]`, and push models."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from diffuse_cli.system import (
    DiffuseError,
    ModelFileError,
    Notice,
    OutputError,
    Progress,
    UsageError,
    Work,
    files,
    hub,
    raise_if_full,
    shorten,
)
from diffuse_cli.system.file_types import WEIGHTS
from diffuse_cli.system.hub import HubListing

MAIN = "main"
"""The revision of a name without one."""

MODEL_FILE = "model.safetensors"
"""Name of the model file in a repository."""

FORM = re.compile(
    r"hf:/+(?!datasets/|spaces/|models/)(?P<name>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/pr/[^/]+|[^/]+))?(/(?P<path>.+))?"
)


class Name(NamedTuple):
    """Parts of `hf://ORG/NAME[@REVISION][/FILE]`."""

    repo: str
    revision: str
    file: str


def is_name(path: str | Path) -> bool:
    """Whether a path is a name on the Hub. A `Path` has lost one of its slashes."""
    return Path(path).parts[:1] == ("hf:",)


def model_name(path: str | Path) -> Name:
    """Return the parts of a model's name.

    Raises:
        ModelFileError: it is not a name of a model.
        UsageError: it leads out of a repository.
    """
    text = str(path).replace(os.sep, "/").rstrip("/")
    form, address = FORM.fullmatch(text), re.sub(r"^hf:/+", "hf://", text)
    if form is None:
        text = f"not a model: {files.show(address)}"
        raise ModelFileError(text, "Use hf://ORG/NAME", code="invalid_value", path=address)
    hub.check_repository_path(address, *form.group("name", "revision", "path"))
    return Name(form["name"], unquote(form["revision"] or MAIN), form["path"] or "")


def fetch_model(path: str | Path) -> Work[Path]:
    """Return the path of a model file. A model on the Hub is downloaded into the cache.

    Raises:
        ModelFileError: there is no such model or file, or it cannot be downloaded.
    """
    if not is_name(path):
        return Path(path)
    name = model_name(path)
    listing = _listing(name)
    return (yield from _download(listing, [_model_file(listing, name)]))


def fetch_source(path: str | Path) -> Work[Path]:
    """Return the path of another program's model. A model on the Hub is downloaded into the cache.

    The name can be of a file, or of a folder with a network and a scheduler of diffusers. Weights
    of diffusers come with the JSON files that describe them.

    Raises:
        ModelFileError: see `fetch_model`.
    """
    if not is_name(path):
        return Path(path)
    name = model_name(path)
    listing = _listing(name)
    names, folder = {file.name for file in listing.files}, name.file
    selected_names = [name.file] if name.file in names else []
    if selected_names:
        folder = posixpath.dirname(name.file)
        if not name.file.endswith((".safetensors", ".bin")):
            return (yield from _download(listing, selected_names))
    else:
        for inside in (folder, posixpath.join(folder, "unet")):
            weights = [posixpath.join(inside, weights_name) for weights_name in WEIGHTS]
            selected_names += [w for w in weights if w in names][:1]
    if not selected_names:
        title = _title(name)
        text = f"no weights of diffusers in {title}"
        hint = _hint(listing, title, (".pt", ".pth"))
        raise ModelFileError(text, hint, code="hub_missing", path=title)
    above = posixpath.dirname(folder)  # of the network's own folder, it is the pipeline's
    places = {folder, *(posixpath.join(folder, subfolder) for subfolder in ("unet", "scheduler"))}
    places.add(posixpath.join(above, "scheduler"))
    selected_names += [n for n in names if n.endswith(".json") and posixpath.dirname(n) in places]
    selected_names += names & {posixpath.join(above, "model_index.json")}
    yield from _download(listing, selected_names)
    return listing.snapshot / name.file


KNOWN: dict[Name, HubListing] = {}
"""Listings of the Hub. A name keeps its meaning while this process runs."""


def _listing(name: Name) -> HubListing:
    repo_name = name._replace(file="")
    if repo_name not in KNOWN:
        KNOWN[repo_name] = hub.list_repository(name.repo, name.revision, hub.MODEL)
    return KNOWN[repo_name]


def _title(name: Name) -> str:
    at = "" if name.revision == MAIN else f"@{quote(name.revision, safe='')}"
    return f"hf://{name.repo}{at}"


def _model_file(listing: HubListing, name: Name) -> str:
    file_name, title = name.file, _title(name)
    names = {file.name for file in listing.files}
    if (file_name or MODEL_FILE) in names:
        return file_name or MODEL_FILE
    if not file_name and names & {*WEIGHTS, *(f"unet/{weights}" for weights in WEIGHTS)}:
        hint = f"Convert it: diffuse convert {title} -o model.safetensors"
        text = f"{title} is a model of diffusers"
        raise ModelFileError(text, hint, code="model_unsupported", path=title)
    text = f"no {shorten(file_name or MODEL_FILE)} in {title}"
    hint = _hint(listing, title, (".safetensors",))
    raise ModelFileError(text, hint, code="hub_missing", path=title)


def _hint(listing: HubListing, title: str, extensions: tuple[str, ...]) -> str:
    names = [file.name for file in listing.files if file.name.endswith(extensions)]
    return f"Name one of its files, such as {title}/{shorten(names[0])}" if names else ""


def _download(listing: HubListing, names: Sequence[str]) -> Work[Path]:
    """Download files into the cache, and return the path of the first."""
    requested_files = [file for file in listing.files if file.name in {*names}]
    for num_cached, total in listing.download_missing(requested_files):
        yield Progress("downloading files", num_cached, total)
    if listing.why:
        yield Notice(f"{listing.title} is taken from the cache, as {listing.why}", warning=True)
    return listing.snapshot / names[0]


def check_unpublished(target: str, *, private: bool, owned: Sequence[str]) -> None:
    """Refuse a repository that already holds one of the files.

    Args:
        private: refuse a public repository, too.

    Raises:
        UsageError: not a name of a model, or a public repository.
        OutputError: it holds one of the files, or the Hub does not answer.
    """
    with _open_push(target) as (name, huggingface):
        try:
            repo_info = huggingface.HfApi().repo_info(name, repo_type=hub.MODEL.repo_type)
        except huggingface.errors.RepositoryNotFoundError:
            return
    title, names = hub.MODEL.title(name), {file.rfilename for file in repo_info.siblings or ()}
    if private and repo_info.private is False:
        text, hint = f"--private: {title} exists and is public", "Make it private on the Hub first"
        raise UsageError(text, hint, code="option_unsuited", path=title)
    if existing := next((file for file in owned if file in names), None):
        text = f"{title} holds {'a model' if existing == MODEL_FILE else existing} already"
        hint = "Pass --overwrite to replace it. The Hub keeps the old files in the history"
        raise OutputError(text, hint, code="output_exists", path=title)


@contextlib.contextmanager
def _open_push(target: str) -> Iterator[tuple[str, Any]]:
    """Yield the ORG/NAME to write to and huggingface_hub, and turn refusals into `OutputError`."""
    name = push_target(target)
    huggingface = hub.package(hub.MODEL._replace(error=OutputError), name)
    try:
        yield name, huggingface
    except Exception as error:
        raise_if_full(error)
        raise _refusal_error(error, name) from error


def upload(
    folder: Path, target: str, *, private: bool, message: str, owned: Collection[str] = ()
) -> str:
    """Push all files of a folder to a repository in one commit. A new repository is created.

    Args:
        owned: files to delete from the repository if the folder does not have them.

    Returns:
        The address of the commit.

    Raises:
        UsageError: not a name, or one with a revision or a file.
        OutputError: the Hub refuses it or does not answer.
    """
    with _open_push(target) as (name, huggingface):
        operations = [
            huggingface.CommitOperationAdd(path.relative_to(folder).as_posix(), str(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        huggingface.HfApi().create_repo(name, private=private or None, exist_ok=True)
        remote_files = {
            file.rfilename for file in huggingface.HfApi().repo_info(name).siblings or ()
        }
        deleted = remote_files & set(owned) - {operation.path_in_repo for operation in operations}
        operations += [huggingface.CommitOperationDelete(path) for path in sorted(deleted)]
        commit = huggingface.HfApi().create_commit(name, operations, commit_message=message)
    for listed_name in [key for key in KNOWN if key.repo == name]:
        del KNOWN[listed_name]
    return str(commit.commit_url)


def push_target(target: str) -> str:
    """Return the ORG/NAME of a repository to write to.

    Raises:
        UsageError: not a name, or one with a revision or a file.
    """
    form = FORM.fullmatch(target)
    if form is None or form["revision"] or form["path"]:
        text = f"not a model on the Hub: {files.show(target)}"
        raise UsageError(text, "Use hf://ORG/NAME", code="invalid_value", path=target)
    hub.check_repository_path(target, form["name"])
    return str(form["name"])


def _refusal_error(error: Exception, repo: str) -> OutputError:
    """Return the error for a refusal of the Hub."""
    from huggingface_hub import constants, errors

    title = hub.MODEL.title(repo)
    status = getattr(getattr(error, "response", None), "status_code", None)
    closed = status in (401, 403) and not isinstance(error, errors.GatedRepoError)
    if closed or isinstance(error, errors.LocalTokenNotFoundError):
        text = f"{constants.ENDPOINT} does not let you write to {title}"
        hint = f"{hub.LOGIN[0].upper()}{hub.LOGIN[1:]}, with a token that may write"
        return OutputError(text, hint, code="hub_denied", path=title)
    try:
        why = hub.reason(error, hub.MODEL, repo)
    except DiffuseError as refusal:
        return OutputError(refusal.message, refusal.hint, code=refusal.code, path=title)
    text = f"cannot push to {title}: {why}"
    hint = "Run the command again, or write the files to a folder with -o FOLDER"
    return OutputError(text, hint, code="hub_failed", path=title)
