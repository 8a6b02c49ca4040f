"""Compiled passes are one graph a domain without a break, on one rank and on several, and learn what plain ones do."""

import time
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from esl_dist.config import Domain
from esl_dist.errors import UserError
from esl_dist.models.batch_norm import DomainBatchNorm2d, finish_pass, set_domain
from esl_dist.models.deeplab import DeepLab, ResidualBlock
from esl_dist.models.weights import initialise
from esl_dist.ranks import collectives
from esl_dist.ranks.collectives import rank
from esl_dist.ranks.heartbeat import PROGRESS
from esl_dist.training import compilation
from esl_dist.training.compilation import compile_segmentation, refuse_without_compiler
from tests.grids import grid
from tests.on_ranks import run_on_ranks

CPU = torch.device("cpu")
Learned = dict[str, Tensor]


class OneBlock(nn.Module):
    """A pass as the segmentation network makes it, of a single block: what compiles in seconds."""

    def __init__(self, per_picture: bool) -> None:
        super().__init__()
        norm = partial(DomainBatchNorm2d, per_domain=True, per_picture=per_picture)
        self.block = ResidualBlock(3, 4, False, 1, 1, norm)

    def forward(self, images: Tensor, domain: Domain) -> dict[str, Tensor]:
        set_domain(self, domain)
        features = self.block(images)
        finish_pass(self)
        return {"main": features}


def network(kind: str, per_picture: bool) -> nn.ModuleDict:
    torch.manual_seed(0)
    if kind == "block":
        return nn.ModuleDict({"segmentation": OneBlock(per_picture)}).double().train()
    segmentation = DeepLab("tiny", 4, True, True, per_picture)
    initialise(segmentation)
    return nn.ModuleDict({"segmentation": segmentation}).double().train()


def learned_in_two_passes_each(networks: nn.ModuleDict) -> Learned:
    """Return gradients and statistics after two passes of each domain."""
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(rank()), dtype=torch.float64)
    for domain in ("source", "target", "source", "target"):
        logits = networks["segmentation"](images, domain)
        torch.stack([scores.pow(3).sum() for scores in logits.values()]).sum().backward()
    gradients = {name: one.grad for name, one in networks.named_parameters() if one.grad is not None}
    return {**gradients, **dict(networks.named_buffers())}


def both_ways(kind: str, per_picture: bool, backend: str) -> tuple[Learned, Learned, int, int]:
    """Return what plain and compiled networks learn, the graphs that were compiled, and the breaks in them."""
    from torch._dynamo.utils import counters

    torch.set_num_threads(1)
    torch._dynamo.reset()
    counters.clear()
    compiled = network(kind, per_picture)
    compile_segmentation(compiled, backend)
    before = counters["stats"]["unique_graphs"]
    found = learned_in_two_passes_each(compiled)
    graphs = counters["stats"]["unique_graphs"] - before
    return learned_in_two_passes_each(network(kind, per_picture)), found, graphs, sum(counters["graph_break"].values())


WAYS = [(per_picture, ranks) for per_picture in (False, True) for ranks in (1, 2)]
BACKENDS = (("block", "aot_eager"), ("network", "eager"))
CASES = [(kind, per_picture, backend, ranks) for kind, backend in BACKENDS for per_picture, ranks in WAYS]
# On two ranks inductor is held, of the whole network, in tests/exact/test_ways_to_compute.py.
CASES += [("block", per_picture, "inductor", 1) for per_picture in (False, True)]
STAY = [("network", True, "eager", 1)]


@pytest.mark.parametrize(("kind", "per_picture", "backend", "ranks"), grid(CASES, stay=STAY))
def test_a_pass_is_one_graph_a_domain_and_learns_the_same(
    kind: str, per_picture: bool, backend: str, ranks: int
) -> None:
    for plain, compiled, graphs, breaks in run_on_ranks(both_ways, kind, per_picture, backend, ranks=ranks):
        assert (graphs, breaks) == (2, 0)
        assert plain.keys() == compiled.keys()
        for name, value in plain.items():
            scale = max(1.0, float(value.abs().max()))
            assert float((compiled[name] - value).abs().max()) <= 1e-10 * scale, name


def test_a_compiler_that_does_not_work_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> object:
        raise RuntimeError("No working C++ compiler found\nsecond line")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(UserError, match=r"^compile=true: .*No working C\+\+ compiler found; .*compile=false$"):
        refuse_without_compiler(CPU)


def test_other_ranks_see_that_a_rank_which_compiles_gets_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiled_once_seen(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        deadline, before = time.monotonic() + 60, PROGRESS.work
        while PROGRESS.work == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert PROGRESS.work > before
        return graph

    monkeypatch.setattr(collectives, "BEAT_SECONDS", 0.01)
    graph = torch.fx.symbolic_trace(nn.ReLU())
    assert compilation._told(compiled_once_seen, graph, []) is graph
    assert capsys.readouterr().out.startswith("compiled segmentation: 3 operations, ")
