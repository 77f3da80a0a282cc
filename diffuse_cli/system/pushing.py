"""A folder to a repository of the hub, in one commit."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from diffuse_cli.system import files
from diffuse_cli.system.errors import DiffuseError, OutputError, UsageError
from diffuse_cli.system.hub import LOGIN, MODEL, check_within, package, reason
from diffuse_cli.system.hub_models import FORM, KNOWN, MODEL_FILE
from diffuse_cli.system.memory import raise_if_full


def check_free(target: str) -> None:
    """Refuse a repository that holds a model already.

    Raises:
        UsageError: not a name.
        OutputError: it does, or the hub does not answer.
    """
    name = pushed(target)
    hub = package(MODEL._replace(error=OutputError), name)
    try:
        found = hub.HfApi().repo_info(name, repo_type=MODEL.repo_type)
    except hub.errors.RepositoryNotFoundError:
        return
    except Exception as error:
        raise_if_full(error)
        raise _refused(error, name) from error
    if any(file.rfilename == MODEL_FILE for file in found.siblings or ()):
        raise OutputError(
            f"{MODEL.title(name)} holds a model already",
            "Type --overwrite to replace it; the hub keeps it in the history",
        )


def upload(
    folder: Path, target: str, *, private: bool, message: str, owned: Collection[str] = ()
) -> str:
    """Make all files of a folder one commit of a repository, which is made if there is none.

    Args:
        owned: files that go if the folder has none of their names.

    Returns:
        The address of the commit.

    Raises:
        UsageError: not a name, or one with a revision or a file.
        OutputError: the hub does not take it.
    """
    name = pushed(target)
    hub = package(MODEL._replace(error=OutputError), name)
    operations = [
        hub.CommitOperationAdd(path.relative_to(folder).as_posix(), str(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    try:
        hub.HfApi().create_repo(name, private=private or None, exist_ok=True)
        there = {file.rfilename for file in hub.HfApi().repo_info(name).siblings or ()}
        gone = there & set(owned) - {operation.path_in_repo for operation in operations}
        operations += [hub.CommitOperationDelete(path) for path in sorted(gone)]
        made = hub.HfApi().create_commit(name, operations, commit_message=message)
    except Exception as error:
        raise_if_full(error)
        raise _refused(error, name) from error
    for known in [own for own in KNOWN if own.repo == name]:
        del KNOWN[known]
    return str(made.commit_url)


def pushed(target: str) -> str:
    """The ORG/NAME of a repository to write to.

    Raises:
        UsageError: not a name, or one with a revision or a file.
    """
    form = FORM.fullmatch(target)
    if form is None or form["revision"] or form["path"]:
        raise UsageError(f"not a model on the hub: {files.show(target)}", "Type hf://ORG/NAME")
    check_within(target, form["name"])
    return str(form["name"])


def _refused(error: Exception, repo: str) -> OutputError:
    """What the hub refuses, as one line."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    closed = status in (401, 403) and not isinstance(error, errors.GatedRepoError)
    if closed or isinstance(error, errors.LocalTokenNotFoundError):
        return OutputError(
            f"{constants.ENDPOINT} does not let you write to {MODEL.title(repo)}",
            f"{LOGIN[0].upper()}{LOGIN[1:]}, with a token that may write",
        )
    try:
        why = reason(error, MODEL, repo)
    except DiffuseError as said:
        return OutputError(said.message, said.hint)
    return OutputError(
        f"cannot push to {MODEL.title(repo)}: {why}",
        "Type the command again, or keep the folder with -o FOLDER",
    )
