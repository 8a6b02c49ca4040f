"""The two formats: a network as the bytes of a file, and such bytes as something that computes.

Both begin with torch.export, which follows the network once and keeps what it computes as a graph; torch.onnx makes
ONNX of it, and there folds batch norm into the convolutions before it.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from esl_dist.errors import UserError
from esl_dist.inference.exporting.deployed import BATCH, HEIGHT, LOGITS, PICTURES, WIDTH, Deployed, Sides
from esl_dist.inference.exporting.files import METADATA

OPSET = 20
"""Version of ONNX's operators: that of 1.15 (2023), which onnxruntime knows since 1.17."""
LARGEST_ONNX = 2**31 - 2**20
"""Bytes of weights: a message of protobuf, and with it a file of ONNX, has at most 2 GiB."""
FOLLOWED_AT = (2, 97, 131)
"""Batch, height and width of the picture with which a network of any is followed: two that are neither equal nor even,
so that what holds for those alone is not taken for a rule."""
ERRORS_ALONE = 3
"""onnxruntime's level of what it prints."""

Compute = Callable[[Tensor], Tensor]
"""Pictures → logits, as `Deployed.forward`."""


@contextmanager
def in_silence() -> Iterator[None]:
    """Keep from the terminal what exporters say of their own steps, and their warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def followed(deployed: Deployed, sides: Sides) -> ExportedProgram:
    """Follow a network with pictures of `sides`; those that are names stay open.

    Raises:
        Exception: of many types: it does what holds for one size alone.
    """
    shape = [one if isinstance(one, int) else known for one, known in zip(sides, FOLLOWED_AT, strict=True)]
    open_sides = {place: Dim.DYNAMIC for place, one in enumerate(sides) if isinstance(one, str)}
    with torch.no_grad():
        example = torch.zeros(*shape, 3, dtype=torch.uint8)
        program = torch.export.export(deployed, (example,), dynamic_shapes={PICTURES: open_sides or None})
    for node in program.graph.nodes:
        # Which line of which file of this machine has made it.
        node.meta.pop("stack_trace", None)
    return program


def as_torch_export(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """Return a file of torch.export, which holds the metadata as a text."""
    content = io.BytesIO()
    texts = {METADATA: json.dumps(metadata, ensure_ascii=False)}
    torch.export.save(program, content, extra_files=texts)
    return content.getvalue()


def as_onnx(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """Return a file of ONNX, whose properties are the metadata, each as JSON.

    Raises:
        UserError: it would have more bytes than such a file may.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise UserError(
            f"the network has {size / 2**30:.1f} GiB of weights, and a file of ONNX at most 2; give a name that ends "
            "in .pt2"
        )
    made = torch.onnx.export(
        program, (), input_names=[PICTURES], output_names=[LOGITS], opset_version=OPSET, dynamo=True, verbose=False
    )
    assert made is not None
    content: bytes = _plain(made.model_proto, metadata).SerializeToString()
    return content


def _plain(model: Any, metadata: Mapping[str, Any]) -> Any:
    """Name a model's sides, put the metadata into it, and take out how and where it was made."""
    # Shapes in between have names that nobody needs, and nodes say where this machine keeps its code.
    del model.graph.value_info[:]
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
    _name_sides(model.graph.input[0], (BATCH, HEIGHT, WIDTH, ""))
    _name_sides(model.graph.output[0], (BATCH, "", HEIGHT, WIDTH))
    del model.metadata_props[:]
    for key, content in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(content, ensure_ascii=False))
    return model


def _name_sides(value: Any, names: Sequence[str]) -> None:
    for side, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
        if not side.HasField("dim_value"):
            side.dim_param = name


def by_torch(content: bytes) -> Compute:
    """Return what a file of torch.export that this process has made computes."""
    return torch.export.load(io.BytesIO(content)).module()


def by_onnxruntime(content: bytes) -> Compute | None:
    """Return what a file of ONNX computes; None: onnxruntime, which would say, is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = ERRORS_ALONE, torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def compute(pictures: Tensor) -> Tensor:
        (logits,) = session.run([LOGITS], {PICTURES: pictures.numpy()})
        return torch.from_numpy(logits)

    return compute
