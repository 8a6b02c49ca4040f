"""What torch has for ranks to exchange tensors with."""

import torch
import torch.distributed as dist


def backends() -> dict[str, str | None]:
    """Return, for gloo and NCCL, its version, or "" where it has none; None: torch was built without it."""
    has_nccl = dist.is_available() and dist.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None  # type: ignore[no-untyped-call]
    return {"gloo": "" if dist.is_available() and dist.is_gloo_available() else None, "NCCL": version}
