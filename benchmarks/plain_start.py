"""A plain start: `plain_start.py WEIGHTS PICTURE LABEL RESULT` takes one step on labels and saves the network.

It imports torch and OpenCV, reads one picture with its label, and does as `launch/train.py` does in its first step with
source_only, batch_size=1 and the network `tiny`. What the program adds to that is in the ratio of `start_up.py`.
"""

import sys
from pathlib import Path

# The package of this checkout, whichever one the environment has.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.plain_step import AUXILIARY_WEIGHT, IGNORED, PlainDeepLab, sgd

CLASSES = 19
RATE = 2.5e-4
MEAN = np.array((104.00698793, 116.66876762, 122.67891434), np.float32)


def main(weights: str, picture: str, label: str, result: str) -> None:
    """Take the step, say so, and save."""
    network = PlainDeepLab("tiny", CLASSES).train()
    network.load_state_dict(torch.load(weights, weights_only=True))
    optimizer = sgd(network, RATE)
    pixels, ids = cv2.imread(picture), cv2.imread(label, cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    assert ids is not None
    image = torch.from_numpy((pixels - MEAN).transpose(2, 0, 1)[None].copy())
    labels = torch.from_numpy(ids[None].astype(np.int64))
    logits = {
        level: F.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=True)
        for level, scores in network(image).items()
    }
    main_loss, auxiliary_loss = (
        F.cross_entropy(logits[level], labels, ignore_index=IGNORED) for level in ("main", "auxiliary")
    )
    (main_loss + AUXILIARY_WEIGHT * auxiliary_loss).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    print(f"step 1, loss {main_loss.item()}", flush=True)
    torch.save(network.state_dict(), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
