"""``hf://USER/MODEL``: a detector's folder on the Hugging Face Hub, which huggingface_hub keeps in its own cache."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from ..errors import UserError
from ..files import shown

logger = logging.getLogger(__name__)

FILES = ("detector.*", "model_*.pth", "last_checkpoint", "config.yaml")
"""What is fetched: an export, or what a training writes."""


def local(address: str | os.PathLike) -> str:
    """The local folder of ``hf://USER/MODEL`` or ``hf://USER/MODEL@REVISION``; any other path as it is.

    The commit is logged: name it as the revision, and nobody can put other files in their place.

    Raises:
        UserError: another form, no huggingface_hub, or nothing that can be fetched.
    """
    text = os.fspath(address)
    if not text.startswith("hf://"):
        return text
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text)
    if found is None:
        raise UserError(f"{shown(text)}: give hf://USER/MODEL, or hf://USER/MODEL@REVISION")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{text}: needs huggingface_hub: pip install 'resnext-det[hub]'") from error
    try:
        folder = snapshot_download(found[1], revision=found[2], allow_patterns=list(FILES))
    except Exception as error:  # no connection, no such model, no rights: its libraries raise a dozen kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{text}: cannot be fetched ({shown(lines[0])}); give a local folder") from error
    logger.info("%s: commit %s, in %s", text, Path(folder).name, folder)
    return folder
