"""What CUDA's errors mean, and what to do about them: their own texts name neither.

torch raises them as RuntimeError, at the call in which the host notices, which may be long after the kernel that went
wrong. The texts are those of `cudaGetErrorString` (CUDA Runtime API, section Error Handling).
"""

import re

MISTAKES = {
    "no kernel image is available": (
        "this PyTorch has no code for the GPU; install one that has (torch.cuda.get_arch_list() says for which)"
    ),
    "driver version is insufficient": (
        "the NVIDIA driver is older than this PyTorch needs; renew the driver, or install a PyTorch for an older CUDA"
    ),
    "no CUDA-capable device": "no GPU is to be seen; look at CUDA_VISIBLE_DEVICES, and whether nvidia-smi shows one",
    "system not yet initialized": (
        "the machine's GPUs are not connected to each other; start NVIDIA's fabric manager (nvidia-fabricmanager)"
    ),
    "busy or unavailable": (
        "the GPU lets no further process in (exclusive mode), or is out of order; nvidia-smi shows who has it"
    ),
    "uncorrectable": "the GPU or its link is damaged; start again without it (nvidia-smi -q and dmesg say more)",
    "fallen off the bus": "the GPU is damaged; start again without it (nvidia-smi -q and dmesg say more)",
}
"""Errors that no change of the program would mend: part of the text → what is wrong, and what to do."""

TRACE = "start again with CUDA_LAUNCH_BLOCKING=1, and the traceback shows where"
DEFECTS = {
    "device-side assert": f"a kernel that began before this line found an index or a value out of range; {TRACE}",
    "illegal memory access": f"a kernel that began before this line left its memory, or the GPU is damaged; {TRACE}",
    "misaligned address": f"a kernel that began before this line went wrong; {TRACE}",
    "illegal instruction": f"a kernel that began before this line went wrong, or the GPU is damaged; {TRACE}",
    "launch failure": f"a kernel that began before this line went wrong, or the GPU is damaged; {TRACE}",
    "launch timed out": "a GPU with a display ends long kernels; take another one, or give it less at once",
}
"""Errors of a kernel, whose traceback is needed: part of the text → what it means, and what to do."""


def mistake_words(error: BaseException) -> str | None:
    """Return what to say of an error of CUDA that is no defect of the program; None for any other error."""
    return _words(error, MISTAKES)


def defect_words(error: BaseException) -> str | None:
    """Return what to add to the traceback of a kernel's error; None for any other error."""
    return _words(error, DEFECTS)


def _words(error: BaseException, table: dict[str, str]) -> str | None:
    text = str(error)
    if not isinstance(error, RuntimeError) or "cuda" not in text.lower():
        return None
    # NCCL tells CUDA's words under "Last error:", pages below its own.
    said = ((line.strip(), words) for line in text.splitlines() for part, words in table.items() if part in line)
    return next((f"{line}: {words}" for line, words in said), None)


def is_of_gpu(text: str) -> bool:
    """Return whether an error's text tells of a GPU."""
    return re.search(r"cuda|cudnn|cublas|\bHIP\b|nccl", text, re.IGNORECASE) is not None


def free_of(text: str) -> str:
    """Return what torch's text on a GPU whose memory is full says of it: `1.20 GiB of 79.10 GiB free`; else ""."""
    found = re.search(r"total capacity of ([0-9.]+ [KMGT]iB) of which ([0-9.]+ (?:bytes|[KMGT]iB)) is free", text)
    return "" if found is None else f"{found[2]} of {found[1]} free"
