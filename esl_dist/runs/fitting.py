"""Whether what a checkpoint holds fits the run that its manifest describes: tensors, optimisers, counts.

It is held to networks and optimisers that the run's configuration gives on torch's meta device, where they take no
memory. What passes can be loaded, and trained on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from esl_dist.adaptation.optimisers import SGD, Adam, AdamW
from esl_dist.checked import Content, OtherVersionError, one_of
from esl_dist.config import PRECISIONS
from esl_dist.errors import UserError
from esl_dist.models.sound_tensors import FLOATS, problem_of_storage, refuse_tensors

REMEDY = "choose another checkpoint"
NOT_NEGATIVE = ("exp_avg_sq", "step")
"""An optimiser's second moments and counts."""
LARGEST = torch.finfo(torch.float32).max
STATE_KEYS: dict[type[Optimizer], set[str]] = {
    **{kind: {"momentum_buffer"} for kind in (SGD, torch.optim.SGD)},
    **{kind: {"step", "exp_avg", "exp_avg_sq"} for kind in (Adam, AdamW, torch.optim.Adam, torch.optim.AdamW)},
}
COUNTS = ("epochs", "in_epoch", "totals")
SHOWN_NAMES = 3


class BrokenCheckpointError(UserError):
    """A checkpoint that is not as it was saved, or cannot be read: the one before may be used."""


@contextmanager
def told_as_broken(path: Path) -> Iterator[None]:
    """Turn whatever a checkpoint that does not fit may raise into a BrokenCheckpointError.

    Want of memory says nothing about the checkpoint, and stays as it is.
    """
    try:
        yield
    except (MemoryError, BrokenCheckpointError, OtherVersionError):
        raise
    except UserError as error:
        raise BrokenCheckpointError(str(error)) from error
    except OSError as error:
        raise BrokenCheckpointError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    except Exception as error:  # torch's restricted unpickler, and safetensors, raise many kinds
        if "allocate memory" in str(error):
            raise
        raise BrokenCheckpointError(
            f"{path}: refused: it is damaged or holds more than tensors and plain values ({type(error).__name__}); "
            f"{REMEDY}"
        ) from error


def refuse_other_tensors(state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> None:
    """Make sure that a state dict fits a network's, which may be on the meta device.

    Raises:
        UserError: names, shapes or types are not those of the network, or it cannot compute with the numbers
            (`sound_tensors.refuse_tensors`).
    """
    for names, what in ((own.keys() - state.keys(), "lacks"), (state.keys() - own.keys(), "has no place for")):
        if names:
            shown = ", ".join(ascii(name) for name in sorted(names)[:SHOWN_NAMES])
            raise UserError(f"{file}: it {what} {len(names)} tensors, such as {shown}; {REMEDY}")
    for name, tensor in state.items():
        _refuse_other_form(Content(state, file, REMEDY).inner(name, tensor), own[name])
    refuse_tensors(state, str(file), own)


def _refuse_other_form(content: Content, own: Tensor) -> None:
    tensor, shape = content.value, list(own.shape)
    is_plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not is_plain or list(tensor.shape) != shape:
        found = list(tensor.shape) if is_plain else type(tensor).__name__
        problem = f"expected a tensor of shape {shape}, got {found}"
    elif tensor.dtype != own.dtype and not (tensor.dtype in FLOATS and own.dtype in FLOATS):
        problem = f"expected {own.dtype}, got {tensor.dtype}"
    elif (of_storage := problem_of_storage(tensor)) is not None:
        problem = f"it {of_storage}"
    else:
        return
    raise UserError(f"{content.place()}: {problem}; {REMEDY}")


def _refuse_other_state(content: Content, own: Tensor) -> None:
    _refuse_other_form(content, own)
    if str(content.key).endswith(NOT_NEGATIVE):
        # The second moment of a gradient may overflow, and its parameter then rests.
        if not bool((content.value >= 0).all()):
            raise UserError(f"{content.place()}: expected numbers of at least 0; {REMEDY}")
    elif not bool(content.value.isfinite().all()):
        raise UserError(f"{content.place()}: it holds numbers that are not finite; {REMEDY}")


def refuse_other_training(training: Content, optimizers: Mapping[str, Optimizer]) -> None:
    """Make sure that a training may go on from a checkpoint's third file.

    Args:
        training: optimisers, loss scaler and, unless an early version wrote it, counts, precision and journal.
        optimizers: those of the run, by name; their parameters may be on the meta device.

    Raises:
        UserError: a part is missing or is not what `Checkpoint.training` says.
    """
    states = training.at("optimizers")
    if not isinstance(states.value, dict) or states.value.keys() != optimizers.keys():
        states.refuse(f"the optimisers {', '.join(optimizers)}")
    for name, optimizer in optimizers.items():
        _refuse_other_groups(states.at(name).at("param_groups"), optimizer)
        _refuse_other_states(states.at(name).at("state"), optimizer)
    _refuse_other_scaler(training.at("scaler"))
    if (precision := training.get("precision")) is not None:
        one_of(*PRECISIONS)(precision)
    if (counts := training.get("corrupt_samples")) is not None and counts.mapping():
        for key in COUNTS:
            counts.at(key).whole_numbers(2)
        if (drawn := counts.get("drawn")) is not None:
            drawn.whole_numbers(len(drawn.entries()))
    if (journal := training.get("journal")) is not None:
        losses = journal.at("losses").items()
        for _, loss in losses:
            loss.number()
        for _, share in journal.at("shares").items() if journal.get("shares") is not None else []:
            share.whole_numbers(2)
        journal.at("skipped").whole_number()
        # Their mean is asked for.
        journal.at("updates").whole_number(minimum=1 if losses else 0)


def _refuse_other_groups(content: Content, optimizer: Optimizer) -> None:
    """Compare the groups' settings; only the learning rate may differ, which every step sets anew."""
    own = optimizer.state_dict()["param_groups"]
    groups = content.entries()
    if len(groups) != len(own):
        content.refuse(f"{len(own)} groups of parameters")
    for group, own_group in zip(groups, own, strict=True):
        for key, value in own_group.items():
            if group.get(key) is None and (value is None or value is False):
                # Another version of torch has more switches, or fewer.
                continue
            found = group.at(key)
            if key == "lr":
                found.number(0, LARGEST)
            elif repr(found.value) != repr(value):
                # By what is written: True is no 1, and a tensor has no one answer.
                found.refuse(f"{value!r}" if key != "params" else f"{len(value)} parameters, numbered on")


def _refuse_other_states(content: Content, optimizer: Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(content.value, dict):
        content.refuse("states by the number of their parameter")
    for number, values in content.value.items():
        state = content.inner(number, values)
        if type(number) is not int or not 0 <= number < len(parameters):
            content.refuse(f"numbers of parameters below {len(parameters)}")
        # A parameter without a gradient yet has none.
        keys = STATE_KEYS.get(type(optimizer))
        if not isinstance(values, dict) or (values and keys is not None and values.keys() != keys):
            state.refuse(" and ".join(sorted(keys or {"the state of a parameter"})))
        for key, value in values.items():
            if key == "step":
                _refuse_other_state(state.inner(key, value), torch.zeros(()))
            elif value is not None or key != "momentum_buffer":
                _refuse_other_state(state.inner(key, value), parameters[number])


def _refuse_other_scaler(content: Content) -> None:
    if content.mapping():
        for key in ("scale", "growth_factor"):
            content.at(key).number(torch.finfo(torch.float32).tiny, LARGEST)
        content.at("backoff_factor").number(0, 1)
        content.at("growth_interval").whole_number(minimum=1)
        content.at("_growth_tracker").whole_number()
