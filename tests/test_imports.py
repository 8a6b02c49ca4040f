"""Imports run one way, as `esl_dist/__init__.py` says; only `ranks` and batch norm know torch.distributed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: list[set[str]] = [
    {
        *(
            "config",
            "config_files",
            "config_groups",
            "config_types",
            "config_use",
            "config_values",
            "yaml_text",
            "environment",
            "errors",
            "files",
            "checked",
            "called",
            "recipes",
            "recipes_by_name",
        ),
        *("command_line", "early", "endings", "gpu_errors", "machine", "made_with", "slurm", "stop_signals", "urls"),
    },
    {"data", "models"},
    {"adaptation"},
    {"reporting", "ranks"},
    {"runs"},
    {"prediction"},
    {"training", "inference"},
    {"doctor"},
    {"programs"},
    {"cli"},
    {"launch", "shards", "__main__"},
]
"""Parts of the project from the bottom up. A part imports itself and parts below; at the bottom, each other.

`ranks` imports the bottom alone.
"""

RANKS_ARE_KNOWN_TO = ("esl_dist/ranks/", "esl_dist/models/batch_norm.py")


def part_of(module: str) -> str:
    """Return the part that a module belongs to: esl_dist.data.labels → data, launch.train → launch."""
    names = module.split(".")
    return names[1] if names[0] == "esl_dist" and len(names) > 1 else names[0]


def level(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything that is imported, at any depth; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            # It is there after a plain `import torch`.
            yield node.lineno, "torch.distributed"


def violations(root: Path) -> list[str]:
    """Return "file:line: what is wrong" for every import in `root` that should not be there."""
    found = []
    for path in sorted(file for folder in ("esl_dist", "launch", "shards") for file in root.glob(f"{folder}/**/*.py")):
        name = path.relative_to(root).as_posix()
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module == "esl_dist":
            found += [f"{name}:{line}: imports {other}" for line, other in imported(ast.parse(path.read_text()))]
            continue
        part = part_of(module)
        if not any(part in parts for parts in LAYERS):
            found.append(f"{name}: {part} is in no layer")
            continue
        for line, other in imported(ast.parse(path.read_text())):
            if (fault := _fault(name, part, other)) is not None:
                found.append(f"{name}:{line}: {fault}")
    return found


def _fault(name: str, part: str, other: str) -> str | None:
    if other.startswith("."):
        return f"{other} is relative"
    if other.startswith(("torch.distributed", "accelerate")):
        return None if name.startswith(RANKS_ARE_KNOWN_TO) else f"{other} is for ranks"
    if other.split(".")[0] not in ("esl_dist", "launch", "shards"):
        return None
    other_part = part_of(other)
    if not any(other_part in parts for parts in LAYERS):
        return f"{other}: {other_part} is in no layer"
    if part == "ranks" and other_part != part and level(other_part) > 0:
        return f"{part} imports {other_part}"
    if other_part == part or level(other_part) < level(part) or level(part) == level(other_part) == 0:
        return None
    return f"{part} imports {other_part}"


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_imports_run_one_way() -> None:
    assert violations(ROOT) == []


def test_every_part_is_looked_at() -> None:
    names = {part.name.removesuffix(".py") for part in (ROOT / "esl_dist").iterdir() if not part.name.startswith("__")}
    assert names == set().union(*LAYERS[:-1])


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("esl_dist/data/a.py", "from esl_dist.training.step import MicroBatch", "data imports training"),
        ("esl_dist/models/a.py", "import esl_dist.training.step", "models imports training"),
        ("esl_dist/adaptation/methods/a.py", "from esl_dist import ranks", "adaptation imports ranks"),
        ("esl_dist/data/a.py", "from esl_dist.models import deeplab", "data imports models"),
        ("esl_dist/models/a.py", "from esl_dist.data.labels import IGNORE_INDEX", "models imports data"),
        ("esl_dist/models/a.py", "from esl_dist.adaptation import losses", "models imports adaptation"),
        ("esl_dist/adaptation/a.py", "from esl_dist.reporting import scores", "adaptation imports reporting"),
        ("esl_dist/reporting/a.py", "def f():\n    import esl_dist.runs", "reporting imports runs"),
        ("esl_dist/config.py", "from esl_dist.data import labels", "config imports data"),
        ("esl_dist/reporting/a.py", "from esl_dist.ranks.collectives import rank", "reporting imports ranks"),
        ("esl_dist/ranks/a.py", "from esl_dist.runs import checkpoints", "ranks imports runs"),
        ("esl_dist/ranks/a.py", "from esl_dist.models import deeplab", "ranks imports models"),
        ("esl_dist/runs/a.py", "from esl_dist.training import step", "runs imports training"),
        ("esl_dist/runs/a.py", "from esl_dist.prediction import predictions", "runs imports prediction"),
        ("esl_dist/prediction/a.py", "from esl_dist.inference import scoring", "prediction imports inference"),
        ("esl_dist/training/a.py", "from esl_dist.inference import scoring", "training imports inference"),
        ("esl_dist/inference/a.py", "from esl_dist.training import step", "inference imports training"),
        ("esl_dist/training/a.py", "from launch.train import main", "training imports launch"),
        ("launch/a.py", "from shards.prepare import main", "launch imports shards"),
        ("esl_dist/data/a.py", "from ..training import step", "is relative"),
        ("esl_dist/data/a.py", "import torch.distributed as dist", "is for ranks"),
        ("esl_dist/data/a.py", "from torch import distributed", "is for ranks"),
        ("esl_dist/models/deeplab.py", "from torch.distributed import all_reduce", "is for ranks"),
        ("esl_dist/models/a.py", "import torch\ntorch.distributed.get_rank()", "is for ranks"),
        ("launch/a.py", "from accelerate import Accelerator", "is for ranks"),
        ("esl_dist/data/a.py", "import esl_dist", "esl_dist is in no layer"),
        ("esl_dist/tools/a.py", "", "tools is in no layer"),
        ("esl_dist/runs/a.py", "from esl_dist.tools import a", "tools is in no layer"),
        ("esl_dist/__init__.py", "from esl_dist.config import Train", "imports esl_dist.config"),
    ],
)
def test_a_wrong_import_is_found(name: str, line: str, fault: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {name: line})
    (found,) = violations(tmp_path)
    assert found.startswith(name)
    assert fault in found


def test_right_imports_are_let_through(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "launch/train.py": "from esl_dist.training.loop import train\nfrom esl_dist.config import Train",
            "esl_dist/ranks/a.py": "import torch.distributed as dist\nfrom accelerate import Accelerator",
            "esl_dist/models/batch_norm.py": "import torch.distributed as dist",
            "esl_dist/reporting/a.py": "from esl_dist.data.labels import IGNORE_INDEX",
            "esl_dist/adaptation/a.py": "from esl_dist.models.deeplab import upsample\nimport numpy",
            "esl_dist/adaptation/methods/a.py": "from esl_dist.adaptation.losses import entropy_loss",
            "esl_dist/config_files.py": "from esl_dist.errors import UserError",
        },
    )
    assert violations(tmp_path) == []
