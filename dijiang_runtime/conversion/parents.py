"""Where a parent comes from: a local folder, or a repository of the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from dijiang_runtime.conversion.errors import ConversionError
from dijiang_runtime.conversion.folder import TOKENIZER_FILES

# What is read, and nothing else: no pickles, no code, no second copy in another layout.
HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent on this machine."""

    folder: Path
    hub: str | None = None
    """`owner/name@commit` where it was downloaded."""


def find_parent(name: str, revision: str | None = None) -> Parent:
    """A parent's folder, downloaded to the hub's cache if it is a hub id.

    Args:
        name: A folder, or a hub id like `EleutherAI/pythia-70m`. A folder of that name comes first.
        revision: Branch, tag or commit on the hub. Default: its main branch.

    Raises:
        ConversionError: there is no such folder or repository, or it cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConversionError(f"{name} is a local folder; --revision is for hub ids.")
        return Parent(folder)
    if folder.exists():
        raise ConversionError(f"{name} is a file; give the folder that holds config.json.")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ConversionError(f"There is no folder {name}, and it is no hub id (owner/name).")
    return _download(name, revision)


def _download(repo: str, revision: str | None) -> Parent:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # The cache has a folder for every commit, named by it.
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(HUB_FILES)))
    except GatedRepoError as exc:
        raise ConversionError(
            f"{repo} asks for consent: accept its terms on the hub, then `hf auth login`."
        ) from exc
    except RepositoryNotFoundError as exc:
        raise ConversionError(
            f"There is neither a folder nor a hub repository {repo}. "
            "A private repository needs `hf auth login`."
        ) from exc
    except RevisionNotFoundError as exc:
        raise ConversionError(f"{repo} has no revision {revision!r} on the hub.") from exc
    except HFValidationError as exc:
        raise ConversionError(f"There is no folder {repo}, and it is no hub id: {exc}") from exc
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as exc:
        raise ConversionError(
            f"There is no folder {repo}, and the hub cannot be reached to download it. Copy the "
            "model's folder here and give its path, or try again with a connection."
        ) from exc
    if not any(folder.glob("*.safetensors")):
        raise ConversionError(
            f"{repo} has no safetensors at this revision, and pickles are never loaded. Its "
            "automatic conversion may be at a --revision like refs/pr/1; see the hub's page."
        )
    return Parent(folder, f"{repo}@{folder.name}")
