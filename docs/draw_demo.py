"""Draw docs/demo.png from the folder that `make demo` leaves: `python docs/draw_demo.py experiments/demo`.

A row a scene of the target's validation set, evenly chosen; the picture, its labels, and what networks of the demo make
of it in the colours of the classes, with their mIoU on the whole set.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esl_dist.data.layouts import read_layout

PROJECT = Path(__file__).resolve().parent.parent
NETWORKS = {
    "source_only": "source only",
    "advent": "AdvEnt",
    "advent_esl": "AdvEnt + ESL",
    "self_training": "self-training",
}
"""Name of a run of the demo → its title."""
SCENES = range(0, 100, 25)
TITLE_HEIGHT, GAP = 22, 3


def main(demo: Path) -> None:
    """Predict with each network, and lay the pictures side by side."""
    data = demo / "toytown/target_val"
    columns = {
        "target picture": [Image.open(data / f"images/{scene:05d}.png").convert("RGB") for scene in SCENES],
        "ground truth": [painted(data / f"labels/{scene:05d}.png", demo / "toytown") for scene in SCENES],
    }
    for name, title in NETWORKS.items():
        miou = 100 * float(json.loads((demo / f"scores/{name}.json").read_text())["miou"])
        columns[f"{title}: {miou:.1f} mIoU"] = predictions(demo, name)
    side_by_side(columns).save(PROJECT / "docs/demo.png", optimize=True)


def painted(label: Path, root: Path) -> Image.Image:
    """Return a label in the colours of its classes; what is no class is black."""
    colors = np.zeros((256, 3), np.uint8)
    for item in next(
        iter(read_layout(PROJECT / "configs/datasets/toytown.yaml", "target_val", root).class_sets.values())
    ):
        colors[list(item.ids)] = item.color
    return Image.fromarray(colors[np.asarray(Image.open(label))])


def predictions(demo: Path, name: str) -> list[Image.Image]:
    """Return what the network of a run makes of the scenes."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"checkpoint={demo}/snapshots/{name}", f"data.path={demo}/shards/target_val", f"predictions={folder}"]
        subprocess.run([sys.executable, str(PROJECT / "launch/evaluate.py"), *words, "workers=0"], check=True)
        return [Image.open(f"{folder}/{scene:05d}.png").convert("RGB") for scene in SCENES]


def side_by_side(columns: dict[str, Sequence[Image.Image]]) -> Image.Image:
    """Return one picture of columns of pictures of one size, a title above each."""
    width, height = next(iter(columns.values()))[0].size
    rows = len(next(iter(columns.values())))
    whole = Image.new("RGB", (len(columns) * (width + GAP) - GAP, TITLE_HEIGHT + rows * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(whole)
    for column, (title, pictures) in enumerate(columns.items()):
        left = column * (width + GAP)
        draw.text((left + width // 2, TITLE_HEIGHT // 2), title, "black", ImageFont.load_default(13), anchor="mm")
        for row, picture in enumerate(pictures):
            whole.paste(picture, (left, TITLE_HEIGHT + row * (height + GAP)))
    return whole


if __name__ == "__main__":
    main(Path(sys.argv[1]))
