"""The arrays of the published programs, and the weights they were computed with."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
FOLDER = (ROOT / os.environ.get("ESL_REFERENCE_DIR", "../shared/reference")).resolve()

DEVICE = torch.device(os.environ.get("ESL_TEST_DEVICE", "cpu"))
"""Where networks and losses are computed."""

needs_reference = pytest.mark.skipif(
    not (FOLDER / "seed.txt").exists(),
    reason=f"{FOLDER}: no reference arrays there; set ESL_REFERENCE_DIR to their folder",
)


def arrays(name: str) -> dict[str, NDArray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def filled(network: nn.Module, prefix: str = "") -> nn.Module:
    """Return the network on `DEVICE`, in float64, with the reference weights of its own names, each after `prefix`."""
    specification = importlib.util.spec_from_file_location("reference_weights", FOLDER / "weights.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    seed = int((FOLDER / "seed.txt").read_text())
    state: dict[str, Tensor] = module.fill({prefix + name: t for name, t in network.state_dict().items()}, seed)
    network.double().load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return network.to(DEVICE)


def on_device(values: NDArray) -> Tensor:
    return torch.from_numpy(values).to(DEVICE)


def relative_difference(result: NDArray | Tensor, expected: NDArray) -> float:
    """Return the largest difference, relative to the largest expected value."""
    actual = result.cpu().numpy() if isinstance(result, Tensor) else result
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
