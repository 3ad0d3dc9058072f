from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path):
    """Return a function that writes class folders of small images, say images(cat=5, dog=6), below a new folder."""

    def write(name: str = "pets", size: tuple[int, int] = (12, 10), **counts: int) -> Path:
        rng = np.random.default_rng(0)
        for label, count in counts.items():
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / name

    return write
