"""Exported files from outside: which kinds there are, what they take to be made, and what one says of itself.

What a file says is plain values in JSON under names that end in no version of this project's code: ONNX has a place for
pairs of text, a zip archive for files. They are read without torch, and nothing of a file is executed or unpickled.
"""

import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from esl_dist.errors import UserError
from esl_dist.files import parsed_json

FORMAT = "esl-dist export"
FORMAT_VERSION = 1
METADATA = "metadata.json"
"""Name of the text in a file of torch.export; in ONNX each key of the metadata stands by itself."""

PACKAGES: dict[str, tuple[str, ...]] = {".onnx": ("onnx", "onnxscript"), ".pt2": ()}
"""Suffix of a file → packages of the extra `onnx` that it takes to write one."""
LARGEST_METADATA = 2**20
"""Bytes; 255 classes take a fiftieth."""


def refuse_unwritable_kind(setting: str, file: str) -> None:
    """Make sure that a file's suffix says what to write, and that what it takes is installed.

    Raises:
        UserError: it does not, or is not.
    """
    packages = PACKAGES.get(Path(file).suffix.lower())
    if packages is None:
        raise UserError(f"{setting}={file}: expected a name that ends in {' or '.join(PACKAGES)}")
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"{setting}={file} needs {' and '.join(missing)}: pip install 'esl-dist[onnx]'")


def is_export(file: Path) -> bool:
    """Say whether a file is one that an export has written."""
    return metadata_of(file) is not None


def metadata_of(file: Path) -> dict[str, Any] | None:
    """Return what an exported file says of itself; None: it is none, damaged, or cannot be read here."""
    try:
        read = _metadata_of_onnx if file.suffix.lower() == ".onnx" else _metadata_of_archive
        content = read(file)
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile):
        # What zipfile raises of a file that is encrypted, packed in an unknown way, or damaged.
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _metadata_of_onnx(file: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return {pair.key: parsed_json(pair.value) for pair in model.metadata_props}


def _metadata_of_archive(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(f"/extra/{METADATA}") and entry.file_size <= LARGEST_METADATA:
                return parsed_json(archive.read(entry).decode())
    return None
