"""The notebooks, as committed and when executed from top to bottom."""

import base64
import io
import re
import shutil
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell
from PIL import Image

ROOT = Path(__file__).parents[1]
NAMES = ("quickstart", "pretrained")
# smaller settings than those in the notebooks, and the official checkpoint of the converter's tests
SMALL = {
    "quickstart": "STEPS, WIDTH, TEST_IMAGES = 12, 8, 8",
    "pretrained": 'CHECKPOINT, CONFIG, IMAGES = "official.pth", "vp/CIFAR10/ddpmpp_nll_st", 4\n'
    'STEPS, INPAINTING_STEPS = 2, 3\nCHANGED = {"model.nf": 4, "model.num_res_blocks": 1, "model.ch_mult": (1, 2), '
    '"model.attn_resolutions": (4,), "data.image_size": 8, "model.dropout": 0.0, "sampling.rtol": 1e-2, '
    '"sampling.atol": 1e-2, "eval.rtol": 1e-2, "eval.atol": 1e-2}',
}


def read(name: str) -> tuple[nbformat.NotebookNode, list]:
    """The notebook, and its code cells."""
    notebook = nbformat.read(ROOT / f"colab/{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cells) -> list[np.ndarray]:
    outputs = [output.get("data", {}) for cell in cells for output in cell.outputs]
    files = [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def printed(cells) -> str:
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


@pytest.mark.parametrize("name", NAMES)
def test_committed_with_the_outputs_of_a_run(name):
    """The cells ran in order and without errors, their pictures show something, and no output names a local path."""
    notebook, cells = read(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert len(pictures(cells)) >= 5 and all(picture.std() > 5 for picture in pictures(cells))
    assert re.search(r"[12]\.\d{3} ± 0\.\d{3} bits/dim", printed(cells[-1:]))
    assert not re.search(r"/(tmp|root|home|work|usr)/|site-packages|http://localhost", nbformat.writes(notebook))
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert "google.colab" in cells[0].source and not cells[0].outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_executed_from_top_to_bottom(name, tmp_path, monkeypatch):
    notebook, cells = read(name)
    for cell in cells:
        cell.outputs = []
    settings = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(settings + 1, new_code_cell(SMALL[name]))
    shutil.copy(ROOT / "tests/fixtures/official.pth", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    bits = [float(number) for number in re.findall(r"([\d.]+) ± [\d.]+ bits/dim", printed(cells[-1:]))]
    assert len(bits) == {"quickstart": 2, "pretrained": 1}[name] and all(1 < value < 40 for value in bits)
    assert len(pictures(cells)) == len(pictures(read(name)[1]))
