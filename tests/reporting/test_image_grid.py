"""Images side by side."""

import numpy as np
from PIL import Image

from score_st.reporting import image_grid


def test_sheet():
    """Each image in its place, two white pixels apart, levels stretched to 255, pixels enlarged without smoothing."""
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    sheet = image_grid.sheet(images, num_levels=16)
    pixels = np.asarray(sheet)[::16, ::16]
    assert sheet.size == (32 * 16, 22 * 16) and set(np.unique(sheet)) == {0, 17, 34, 51, 68, 255}
    assert [pixels[2 + i // 3 * 10, 2 + i % 3 * 10] for i in range(5)] == [0, 17, 34, 51, 68]
    assert (pixels[:2] == 255).all() and (pixels[12:, 22:] == 255).all()


def test_files(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    image_grid.grid(frames[0], 256, tmp_path / "new/grid.png", columns=4)
    image_grid.animation(frames, 256, tmp_path / "new/steps.gif")
    with Image.open(tmp_path / "new/grid.png") as grid, Image.open(tmp_path / "new/steps.gif") as steps:
        assert grid.width > 3 * grid.height and steps.n_frames == 3
        durations = [steps.seek(i) or steps.info["duration"] for i in range(3)]
    assert durations == [80, 80, 2000]
