"""A folder of labels in any format as checked files of COCO's form, one for each split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..annotations.check import Options, inspect_document, report
from ..annotations.formats import read, recognize, splits_of
from ..annotations.formats.source import Source
from ..annotations.splitting import shared_images, split_document
from ..errors import UserError, counted, listed
from ..files import read_state, shown, write_json
from ..makers.folders import is_made, new_folder, recipe

STARTS = {"val": ("val", "minival", "dev"), "test": ("test",), "train": ("train",)}
VAL_SHARE = 0.2
DECODED = 20_000
"""Of a larger set only the headers are read, as DATASETS.CHECK auto does."""


def role_of(split: str) -> str:
    """``train``, ``val`` or ``test`` for the name of a split; any other name is training data."""
    return next((role for role, starts in STARTS.items() if split.lower().startswith(starts)), "train")


def read_roles(folder: Path, images: str | None) -> dict[str, Source]:
    """{role: its labels} of a folder or file, all with the same classes.

    Raises:
        UserError: labels that cannot be read; two splits of one role; no training set.
    """
    paths: dict[str, list[str]] = {}
    for split, path in splits_of(folder).items():
        paths.setdefault(role_of(split), []).append(path)
    several = next((found for found in paths.values() if len(found) > 1), None)
    if several:
        raise UserError(
            f"{shown(folder)}: several sets of one kind, {listed(several, 4)}; name the file of one of them"
        )
    if "train" not in paths:
        raise UserError(f"{shown(folder)}: no training set among {listed(paths)}; name one train")
    sources = {role: read(path, images) for role, (path,) in paths.items()}
    names = {c["name"] for s in sources.values() if s.format != "coco" for c in s.document["categories"]}
    if any({c["name"] for c in s.document["categories"]} != names for s in sources.values() if s.format != "coco"):
        sources = {role: read(path, images, sorted(names)) for role, (path,) in paths.items()}
    return sources


def make_sets(
    folder: Path, images: str | None, output: Path, seed: int, say: Callable[[str], None]
) -> dict[str, tuple[Path, str]]:
    """{role: (annotations, image folder)}, written to ``output`` in COCO's form unless they are there already.

    Args:
        folder: or file of the labels.
        images: folder of the images, where they are not beside the labels.
        seed: of the split, where there is no validation set.
        say: is given what was found, a line at a time.

    Raises:
        UserError: labels or images that training cannot use; ``output`` was made from others.
    """
    made_by = recipe("auto", folder, *([images] if images else []), images=images, seed=seed)
    if is_made(output, made_by):
        roots = read_state(output / "images.json", {str: str}, f"remove {output.parent} and start again")
        return {role: (output / f"instances_{role}.json", root) for role, root in roots.items()}
    if output.exists():
        raise UserError(f"{output}: was made from other labels or another --seed; name another --output, or remove it")
    say(f"{shown(folder)}: {recognize(folder)}")
    sources = {role: _checked(role, source, folder, say) for role, source in read_roles(folder, images).items()}
    if "val" not in sources:
        train = sources["train"]
        parts = split_document(train.document, train.image_root, {"train": 1 - VAL_SHARE, "val": VAL_SHARE}, seed)
        sources |= {role: replace(train, document=document) for role, document in parts.items()}
        sizes = {role: len(document["images"]) for role, document in parts.items()}
        say(
            f"no validation set: {sizes['val']} of {sum(sizes.values())} images become one, stratified by class, "
            "near-duplicates kept together"
        )
    else:
        _warn_of_shared(sources, say)
    with new_folder(output, made_by) as part:
        for role, source in sources.items():
            write_json(part / f"instances_{role}.json", source.document)
        write_json(part / "images.json", {role: source.image_root for role, source in sources.items()})
    return {role: (output / f"instances_{role}.json", source.image_root) for role, source in sources.items()}


def _checked(role: str, source: Source, folder: Path, say: Callable[[str], None]) -> Source:
    """The set as the check fixes it, of which everything found is reported."""
    say(f"{role}, images in {shown(source.image_root)}:")
    for note in source.notes:
        say(f"  left out: {note}")
    options = Options(for_training=role == "train", decode=len(source.document["images"]) <= DECODED, listed=5)
    checked = inspect_document(source.document, folder, source.image_root, options)
    for line in report(checked).splitlines():
        say(f"  {line}")
    if checked.errors:
        raise UserError(
            f"{shown(folder)}: {counted(checked.errors, 'error')}, listed above; correct them, or write a copy without "
            "them: resnext-det check --fix OUT --fix-drop"
        )
    return replace(source, document=checked.fixed())


def _warn_of_shared(sources: dict[str, Source], say: Callable[[str], None]) -> None:
    def paths(role: str) -> list[Path]:
        return [Path(sources[role].image_root, r["file_name"]) for r in sources[role].document["images"]]

    for role in sources.keys() - {"train"}:
        shared = {one for one, _, _ in shared_images(paths(role), paths("train"))}
        if shared:
            say(
                f"warning: {counted(len(shared), 'image')} of {role} are in train too, or nearly so, such as "
                f"{shown(sorted(shared)[0])}: the numbers will be too good; resnext-det split makes other splits"
            )
