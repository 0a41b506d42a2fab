"""Exported models on the Hugging Face Hub, read through the cache of huggingface_hub."""

import re
from functools import cache
from pathlib import Path

from warm_lightning.errors import UserError, check, error_text
from warm_lightning.interop.exported import CONFIG, WEIGHTS

ADDRESS = re.compile(r"hf://([^/@\s]+/[^/@\s]+)(?:@(\S+))?")
"""The address of a model: its owner and name, and the branch, tag or commit."""


@cache  # a command that reads the files twice reads one revision
def download(address: str) -> Path:
    """Download an exported model from the Hub, and return its folder in the cache of huggingface_hub.

    Only the weights as safetensors and the configuration as YAML are downloaded. The environment variables of
    huggingface_hub hold: HF_HOME for the cache, HF_HUB_OFFLINE for the cache alone, HF_TOKEN for private models.

    Args:
        address: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION for a branch, tag or commit.

    Raises:
        UserError: huggingface_hub is not installed; the model is neither on the Hub nor in the cache; or `warm export`
            did not write it.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(f"{address}: not the address of a model: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    name, revision = found.groups()
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise UserError(
            f"{address}: models on the Hub need huggingface_hub: pip install 'warm-lightning[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address}: its owner gives access on request: ask on its page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{address}: there is no such model on the Hub, or it is private: check the name, or use `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address}: this model has no branch, tag or commit {revision}: check the name") from error
    except errors.LocalEntryNotFoundError as error:
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise UserError(
            f"{address}: is not in the cache of huggingface_hub, and the Hub is turned off (HF_HUB_OFFLINE) or cannot "
            f"be reached: go online, or copy the cache ($HF_HOME) of a machine where you ran `{command}`"
        ) from error
    except Exception as error:  # a download fails in as many ways as networks and file systems do
        raise UserError(
            f"{address}: cannot be downloaded ({error_text(error, 200)}): check the name, or try again"
        ) from error
    for file in (CONFIG, WEIGHTS):
        check((folder / file).is_file(), f"{address}: has no {file}, so that it is no model that `warm export` wrote")
    return folder
