"""(a) What machine this is, and its ceilings: the largest product of matrices, the fastest copy on the device."""

import importlib.metadata
import platform
import re
import subprocess
import time
import tomllib

import torch

from benchmarks.gpu.sizes import Row, Rows, Sizes
from benchmarks.gpu.timing import cost_of
from benchmarks.programs import PROJECT

UNKNOWN = "unknown"


def measure(sizes: Sizes, device: torch.device) -> Rows:
    """Yield versions, and the ceilings."""
    yield {"what": "machine", **versions(device)}
    yield {"what": "packages", **packages()}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("TF32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        yield product(name, dtype, tf32, sizes, device)
    yield copy(sizes, device)


def versions(device: torch.device) -> Row:
    """Return card, driver, versions, date and commit."""
    on_gpu = device.type == "cuda"
    cudnn = torch.backends.cudnn.version() if on_gpu else UNKNOWN  # type: ignore[no-untyped-call]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else UNKNOWN  # type: ignore[no-untyped-call]
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    return {
        "card": properties.name if properties else f"none: {platform.processor() or platform.machine()}",
        "memory GB": round(properties.total_memory / 1e9, 1) if properties else 0,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "CUDA": torch.version.cuda or UNKNOWN,
        "cuDNN": str(cudnn),
        "NCCL": nccl,
        "Python": platform.python_version(),
        "date": time.strftime("%d %B %Y"),
        "commit": first_line("git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"),
    }


def packages() -> Row:
    """Return the version of each package that the project depends on, or that it is missing."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: Row = {}
    for name in (re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def first_line(*command: str) -> str:
    """Return the first line that a command prints; "unknown" where there is no such command, or it fails."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return lines[0].strip() if lines else UNKNOWN


def product(name: str, dtype: torch.dtype, tf32: bool, sizes: Sizes, device: torch.device) -> Row:
    """Time the product of two square matrices."""
    side = sizes.product
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        cost = cost_of(lambda: one @ other, device, sizes)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"what": f"product {side}³ {name}", "ms": cost.columns()["ms"], "TFLOP/s": 2 * side**3 / cost.seconds / 1e12}


def copy(sizes: Sizes, device: torch.device) -> Row:
    """Time a copy on the device: bytes read and written, both counted."""
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    cost = cost_of(lambda: target.copy_(source), device, sizes)
    gigabytes = 2 * sizes.copied_bytes / 1e9
    return {"what": f"copy of {sizes.copied_bytes} B", "ms": cost.columns()["ms"], "GB/s": gigabytes / cost.seconds}
