"""report.html: what it shows, that nothing in it runs, and that everybody can read it; also in a browser."""

import html.parser
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_st import config, report
from score_st.reporting import figures
from score_st.reporting import page as run_page

ROOT = Path(__file__).parents[2]
HOSTILE = """<img src=x onerror=alert(1)>&"'$x^$ </script><script>alert(2)</script> ${title} $nav"""
VOID = {"meta", "link", "img", "br", "use", "path"}
CHROMIUM = shutil.which("chromium")


def write(path: Path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def made(workdir: Path, k: float = 1.0) -> Path:
    """A workdir with every file that the page reads, and known numbers."""
    flat = config.load(ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py")
    base = {"file": "configs/mine.py", "config": flat.to_dict()}
    settings = json.loads(config.to_json(flat)) | {"seed": 7}
    settings["training"]["k"] = k
    steady = {"gradient_norm": 2.0, "steps_per_s": 5.0, "data_wait": 0.0125}
    lines = [{"step": 10 * i, "loss": 8 / i, "tau": 0.01 / i, "eval_loss": 9 / i} | steady for i in range(1, 9)]
    lines += [{"step": 40, "nll": 2.5, "nelbo": 2.75}, {"step": 80, "nll": 1.875, "nelbo": 2.0}]
    t = np.geomspace(1e-5, 1, 5)
    curve = {name: (t**0.1).tolist() for name in ("loss", "std", "weight", "bits", "gradient_variance")}
    terms = {"prior": 2.0, "trace": -3.25, "reconstruction": 0.125, "offset": 3.0}
    bpd = {"nll": 1.875, "nll_terms": terms, "nll_stderr_images": 0.0625, "nll_nfe": 75.0, "images": 297, "step": 80}
    points = lambda *pairs: [{"nfe": n, "distance": d} for n, d in pairs]
    found = {"ode": points((60, 7.5)), "ddim": points((11, 9.25), (21, 6.5)), "heun": points((math.nan, math.nan))}
    write(workdir / "config.json", settings)
    write(workdir / "config_base.json", base)
    write(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(workdir / "eval/loss_by_time.json", {"t": t.tolist(), **curve})
    write(workdir / "eval/bpd.json", bpd | {"versions": {"jax": "1.2.3"}})
    write(workdir / "eval/samplers.json", {"figure": "FID", "num": 200, "samplers": found})
    figure = {"value": 12.5, "std": None, "samples": 50, "features": "f", "resizing": "tf1", "reference": "train"}
    write(workdir / "eval/quality.json", {"figures": {"FID": figure}})
    (workdir / "snapshots").mkdir()
    for step, size in ((40, 16), (80, 2000)):  # the second is made smaller
        Image.fromarray(np.arange(size**2, dtype=np.uint8).reshape(size, size)).save(
            workdir / f"snapshots/{step:08}.png"
        )
    return workdir


class Document(html.parser.HTMLParser):
    """Elements as (name, attributes), the text inside each, and whether all that was opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        if name not in VOID:
            assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def of(self, *names) -> list[dict]:
        return [attributes for name, attributes in self.elements if name in names]

    def rows(self) -> str:
        return " | ".join(text for name in ("th", "td") for text in self.texts.get(name, []))


def test_what_is_shown(tmp_path):
    text = run_page.render([made(tmp_path / "run")])
    page = Document(text)
    assert not page.open and text.isascii() and "left out" not in text
    headings = ["Training", "Loss and gradient by time", "Samples over training", "Samplers"]
    headings += ["Bits/dim and their terms", "Sample quality", "Configuration", "Speed"]
    assert page.texts["h1"] == ["run"] and page.texts["h2"] == headings
    assert page.texts["dd"] == ["1.875 ± 0.062", "12.5", "6.50", "80", "0:00:16"]
    words = " ".join(svg["aria-label"] for svg in page.of("svg"))
    assert "loss, run: from 8 at 10 to 1 at 80, lowest 1 at 80, highest 8 at 10" in words
    assert "NLL [bits/dim], run: from 2.5 at 40 to 1.875 at 80" in words and "trace  −3.2500" in words
    alts = [image["alt"] for image in page.of("img")]
    assert alts == [
        "Samples of run after 40 updates: 2.500 bits/dim",
        "Samples of run after 80 updates: 1.875 bits/dim",
    ]
    assert page.of("img")[1]["width"] == "640" and len(text) < 600_000
    cells = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))
    for row in ("seed 7 42", "ddim 9.25 6.50 6.50", "ode – – 7.50", "heun – – –"):
        assert row in cells
    assert "NLL 1.8750 0.0625 2.0000 −3.2500 0.1250 3.0000" in cells
    assert "differ from configs/mine.py setting here there seed 7 42 Settings" in cells
    assert "default data.centered True False data.dataset DIGITS CIFAR10" in cells
    assert "training, share of time that waits for data (median) 1.25%" in cells


def test_side_by_side(tmp_path):
    runs = [made(tmp_path / name, k) for name, k in (("a", 1.0), ("b", 2.0))]
    text = run_page.render([*runs, runs[0]])
    page = Document(text)
    assert page.texts["h1"] == ["a | b"] and "left out" not in text
    settings = re.search(r"Settings that differ.*?</table>", text[text.index('id="configuration"') :], re.DOTALL)[0]
    assert re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", settings) == ["setting", "a", "b", "training.k", "1.0", "2.0"]
    ratio = next(svg["aria-label"] for svg in page.of("svg") if "ratio, b" in svg["aria-label"])
    assert "ratio, b: from 1 at 1e-05 to 1 at 1" in ratio
    report.main(["--workdir", *map(str, runs), "--out", str(tmp_path / "new/page.html")])
    assert Document((tmp_path / "new/page.html").read_text()).texts["h1"] == ["a | b"]


def test_everybody_can_read_it(tmp_path):
    """Names of pictures and tables, order of headings, links that lead somewhere, contrast (WCAG 2.2 AA)."""
    page = Document(run_page.render([made(tmp_path / "run")]))
    assert page.of("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.of("svg"))
    assert all(len(image["alt"]) > 20 for image in page.of("img"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1
    assert len(page.of("caption")) == len(page.of("table")) and all("scope" in th for th in page.of("th"))
    ids = [element["id"] for _, element in page.elements if "id" in element]
    assert len(set(ids)) == len(ids) and {a["href"] for a in page.of("a")} <= {f"#{name}" for name in ids}
    css = "".join(page.texts["style"])
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in css.split("@media screen")[:2]]
    assert [len(scheme) for scheme in schemes] == [14, 14]
    for colours in schemes:
        for back in ("page", "card"):
            assert all(contrast(colours[name], colours[back]) >= 4.5 for name in ("ink", "soft", "link"))
        assert all(contrast(colours[f"s{i}"], colours["page"]) >= 4.5 for i in range(1, 9))


def contrast(a: str, b: str) -> float:
    """Of two colours #rrggbb, by WCAG 2."""
    channels = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in (a, b)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return high / low


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#767676", "#ffffff") == pytest.approx(
        4.54, abs=0.01
    )


@pytest.fixture
def hostile(tmp_path):
    """A run whose name, settings, samplers, terms and figures are HTML."""
    name = HOSTILE.replace("/", "\N{FRACTION SLASH}")
    workdir = made(tmp_path / name)
    for file in ("config.json", "config_base.json", "eval/samplers.json", "eval/bpd.json", "eval/quality.json"):
        value = json.loads((workdir / file).read_text())
        texts = {"FID": HOSTILE, "ddim": HOSTILE, "prior": HOSTILE, "configs/mine.py": HOSTILE, "DIGITS": HOSTILE}
        texts |= {"jax": HOSTILE, "f": HOSTILE, "dir": HOSTILE}
        text = json.dumps(value)
        for old, new in texts.items():
            text = text.replace(f'"{old}"', json.dumps(new))
        (workdir / file).write_text(text)
    return workdir


def test_nothing_in_it_runs(hostile):
    text = run_page.render([hostile])
    page = Document(text)
    assert not page.open and "left out" not in text
    assert not page.of("script", "iframe", "object", "embed", "form", "foreignobject", "base")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/", "data:,"))
    assert page.texts["h1"] == [hostile.name]
    assert HOSTILE in page.texts["th"] and HOSTILE in page.texts["td"] and HOSTILE in page.texts["span"]


VALID = '{"figures": {"a": 3}, "samplers": {"ode": 3}, "nll": "x", "t": [1]}'  # JSON, but not of this package
DAMAGED = ["", "{", "[1]", "\x00\xff", VALID]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_are_left_out(tmp_path, capsys, content):
    workdir = made(tmp_path / "run")
    (workdir / "metrics.jsonl").write_text(
        '{"step": 10, "loss": 2}\nno JSON\n\n[3]\n{"loss": 1}\n{"step": 20, "loss": 1}\n{"st'
    )
    damaged = [*workdir.glob("*.json"), *workdir.glob("eval/*"), *workdir.glob("snapshots/*")]
    for path in damaged:
        path.write_text(content, "latin-1")
    run_page.refresh(workdir)
    page = Document((workdir / "report.html").read_text())
    notes = " ".join(page.texts["li"])
    assert page.texts["h1"] == ["run"] and "Training" in page.texts["h2"] and capsys.readouterr().err == ""
    assert "metrics.jsonl of run: damaged lines left out: 2, 3, 4, 5, 7 (5 in all)" in notes
    names = [path.name for path in damaged if path.suffix == ".png" or content != VALID]
    assert all(f"{name} of run left out" in notes for name in names)
    assert content != VALID or {"Summary left out", "Samplers left out"} <= set(re.findall(r"\w+ left out", notes))


def test_no_page_is_a_warning(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    run_page.refresh(tmp_path)
    assert capsys.readouterr().err.startswith("warning: report.html was not written: ")


def test_long_curves_are_thinned():
    x = np.arange(100_000.0)
    drawn = figures.chart([figures.Panel("y", [figures.Curve("a", x, 1 + x % 7)])], "x")
    assert len(drawn) < 40_000 and "highest 4.0" in drawn


def test_it_needs_no_jax():
    code = "import sys, score_st.report; print('jax' in sys.modules)"
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr
    assert time.perf_counter() - began < 3


def browse(page: Path, *flags: str) -> str:
    """What headless Chromium prints of a page."""
    user = f"--user-data-dir={page.parent}/user"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", user, *flags]
    return subprocess.run([*command, f"file://{page}"], capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_in_a_browser(hostile, tmp_path):
    """Without its policy against scripts, no dialog opens, nothing is fetched, and 400 pixels are wide enough."""
    ours = """<iframe width=400></iframe><pre></pre><script>
        const root = document.documentElement, frame = document.querySelector("iframe");
        const fetched = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
        const found = {title: document.title, scripts: document.scripts.length, fetched, wide: root.scrollWidth,
            images: [...document.images].filter(image => image.naturalWidth > 0).length};
        frame.onload = () => { found.narrow = frame.contentDocument.documentElement.scrollWidth;
            document.querySelector("pre").textContent = JSON.stringify(found) };
        frame.srcdoc = root.outerHTML.split("<iframe")[0];
        </script></body>"""
    dialogs = "<script>alert = () => document.title = 'ran'</script>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', dialogs, run_page.render([hostile]))
    write(tmp_path / "page.html", text.replace("</body>", ours))
    shown = browse(tmp_path / "page.html", "--virtual-time-budget=3000", "--dump-dom")
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", shown, re.DOTALL)[1]))
    assert found.pop("wide") <= 1400 and found.pop("narrow") <= 400
    assert found == {"title": hostile.name, "scripts": 2, "images": 2, "fetched": []}


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_screenshots_in_light_and_dark(tmp_path):
    write(tmp_path / "page.html", run_page.render([made(tmp_path / "run")]))
    for name, flags, low, high in (
        ("light", [], 200, 256),
        ("dark", ["--blink-settings=preferredColorScheme=0"], 0, 80),
    ):
        browse(tmp_path / "page.html", f"--screenshot={tmp_path}/{name}.png", *flags)
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert low < pixels.mean() < high and pixels.std() > 10
