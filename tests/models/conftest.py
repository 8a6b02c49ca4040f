"""What several tests of networks start from."""

from functools import partial

import pytest
import timm


@pytest.fixture
def small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have backbones of few blocks and channels; position embeddings keep their size."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=2, embed_dim=64, num_heads=2))
