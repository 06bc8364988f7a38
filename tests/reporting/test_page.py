"""report.html: what it shows, that nothing in it runs, and that everybody can read it; also in a browser."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.workdirs import make_workdir, write

from score_st.reporting import page

HOSTILE = """<img src=x onerror=alert(1)>&"'$x^$ </script><script>alert(2)</script> ${title} $nav"""
TRACE = "profile/plugins/profile/steps_3-5/"
VOID = {"meta", "link", "img", "br", "use", "path"}
CHROMIUM = shutil.which("chromium")


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
        """The attributes of all elements of these names."""
        return [attributes for name, attributes in self.elements if name in names]


def test_what_is_shown(tmp_path):
    text = page.render([make_workdir(tmp_path / "run")])
    document = Document(text)
    assert not document.open and text.isascii() and "left out" not in text
    headings = ["Training", "Loss and gradient over diffusion time", "Samples during training", "Samplers"]
    headings += ["Bits/dim and their terms", "Sample quality", "Configuration", "Speed"]
    assert document.texts["h1"] == ["run"] and document.texts["h2"] == headings
    assert document.texts["dd"] == ["1.875 ± 0.062", "12.5", "6.50", "80", "0:00:16"]
    words = " ".join(svg["aria-label"] for svg in document.of("svg"))
    assert "loss, run: from 8 at 10 to 1 at 80, lowest 1 at 80, highest 8 at 10" in words
    assert "NLL [bits/dim], run: from 2.5 at 40 to 1.875 at 80" in words and "trace  −3.2500" in words
    alts = [image["alt"] for image in document.of("img")]
    assert alts == [
        "Samples of run after 40 updates: 2.500 bits/dim",
        "Samples of run after 80 updates: 1.875 bits/dim",
    ]
    assert document.of("img")[1]["width"] == "640" and len(text) < 600_000
    cells = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))
    for row in ("seed 7 42", "ddim 9.25 6.50 6.50", "ode – – 7.50", "heun – – –"):
        assert row in cells
    assert "NLL 1.8750 0.0625 2.0000 −3.2500 0.1250 3.0000" in cells
    assert "differ from configs/mine.py setting here there seed 7 42 Settings" in cells
    assert "default data.centered True False data.dataset DIGITS CIFAR10" in cells
    assert "Parameters of the network: 1,004 name shape size Dense_0/bias 4 4 Dense_0/kernel 250×4 1,000" in cells
    assert "training, share of time spent waiting for data (median) 1.25%" in cells
    assert "training, TFLOP/s of a device (median) 12.5 training, MFU in bfloat16 (median) 25.0%" in cells
    assert "goodput: share of time in steps (last) 75.0%" in cells
    assert "The longest operations of 50.0 ms: steps 3 to 5 of training on TPU v4" in cells
    assert "conv.1 jit_train_step 1,200 30.500 61.0%" in cells
    assert document.of("a")[-1]["href"] == TRACE


def test_side_by_side(tmp_path):
    runs = [make_workdir(tmp_path / name, k) for name, k in (("a", 1.0), ("b", 2.0))]
    text = page.render([*runs, runs[0]])
    document = Document(text)
    assert document.texts["h1"] == ["a | b"] and "left out" not in text
    settings = re.search(r"Settings that differ.*?</table>", text[text.index('id="configuration"') :], re.DOTALL)[0]
    assert re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", settings) == ["setting", "a", "b", "training.k", "1.0", "2.0"]
    ratio = next(svg["aria-label"] for svg in document.of("svg") if "ratio, b" in svg["aria-label"])
    assert "ratio, b: from 1 at 1e-05 to 1 at 1" in ratio


def test_older_runs_have_no_table_of_parameters(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    (workdir / "parameters.json").unlink()
    text = page.render([workdir])
    assert "All settings" in text and "Parameters" not in text and "left out" not in text


def test_everybody_can_read_it(tmp_path):
    """Names of pictures and tables, order of headings, links that lead somewhere, contrast (WCAG 2.2 AA)."""
    document = Document(page.render([make_workdir(tmp_path / "run")]))
    assert document.of("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in document.of("svg"))
    assert all(len(image["alt"]) > 20 for image in document.of("img"))
    levels = [int(name[1]) for name, _ in document.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1
    assert len(document.of("caption")) == len(document.of("table")) and all("scope" in th for th in document.of("th"))
    ids = [element["id"] for _, element in document.elements if "id" in element]
    assert len(set(ids)) == len(ids) and {a["href"] for a in document.of("a")} <= {f"#{name}" for name in ids} | {
        TRACE
    }
    css = "".join(document.texts["style"])
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in css.split("@media screen")[:2]]
    assert [len(scheme) for scheme in schemes] == [14, 14]
    for colors in schemes:
        for back in ("page", "card"):
            assert all(contrast(colors[name], colors[back]) >= 4.5 for name in ("ink", "soft", "link"))
        assert all(contrast(colors[f"s{i}"], colors["page"]) >= 4.5 for i in range(1, 9))


def contrast(a: str, b: str) -> float:
    """The contrast ratio of two colors #rrggbb by WCAG 2."""
    channels = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in (a, b)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return high / low


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.fixture
def hostile(tmp_path):
    """A run whose name, settings, samplers, terms and figures are HTML."""
    name = HOSTILE.replace("/", "\N{FRACTION SLASH}")
    workdir = make_workdir(tmp_path / name)
    names = "config.json", "config_base.json", "eval/samplers.json", "eval/bpd.json", "eval/quality.json"
    for file in (*names, "parameters.json", "profile/operations.json"):
        value = json.loads((workdir / file).read_text())
        texts = {"FID": HOSTILE, "ddim": HOSTILE, "prior": HOSTILE, "configs/mine.py": HOSTILE, "DIGITS": HOSTILE}
        texts |= {"jax": HOSTILE, "f": HOSTILE, "dir": HOSTILE, "Dense_0/bias": HOSTILE}
        texts |= {"steps_3-5": HOSTILE, "conv.1": HOSTILE, "TPU v4": HOSTILE}
        text = json.dumps(value)
        for old, new in texts.items():
            text = text.replace(f'"{old}"', json.dumps(new))
        (workdir / file).write_text(text)
    return workdir


def test_nothing_in_it_runs(hostile):
    text = page.render([hostile])
    document = Document(text)
    assert not document.open and "left out" not in text
    assert not document.of("script", "iframe", "object", "embed", "form", "foreignobject", "base")
    for _, attributes in document.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(
                ("#", "data:image/", "data:,", "profile/plugins/profile/%3Cimg")
            )
    assert document.texts["h1"] == [hostile.name]
    assert HOSTILE in document.texts["th"] and HOSTILE in document.texts["td"] and HOSTILE in document.texts["span"]


# JSON, but not of this package
VALID = '{"figures": {"a": 3}, "samplers": {"ode": 3}, "nll": "x", "t": [1], "versions": [1]}'
DAMAGED = ["", "{", "[1]", "\x00\xff", "[" * 10**5, VALID]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_are_left_out(tmp_path, capsys, content):
    workdir = make_workdir(tmp_path / "run")
    (workdir / "metrics.jsonl").write_text(
        '{"step": 10, "loss": 2}\nno JSON\n\n[3]\n{"loss": 1}\n{"step": 20, "loss": 1}\n{"st'
    )
    damaged = [
        *workdir.glob("*.json"),
        *workdir.glob("eval/*"),
        *workdir.glob("snapshots/*"),
        *workdir.glob("profile/*"),
    ]
    for path in damaged:
        path.write_text(content, "latin-1")
    page.refresh(workdir)
    document = Document((workdir / "report.html").read_text())
    notes = " ".join(document.texts["li"])
    assert document.texts["h1"] == ["run"] and "Training" in document.texts["h2"] and capsys.readouterr().err == ""
    assert "metrics.jsonl of run: damaged lines left out: 2, 3, 4, 5, 7 (5 in all)" in notes
    names = [path.name for path in damaged if path.suffix == ".png" or content != VALID]
    assert all(f"{name} of run left out" in notes for name in names)
    assert content != VALID or {"Summary left out", "Samplers left out", "Versions left out"} <= set(
        re.findall(r"\w+ left out", notes)
    )


def test_no_page_is_a_warning(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    page.refresh(tmp_path)
    assert capsys.readouterr().err.startswith("warning: report.html was not written: ")


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
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', dialogs, page.render([hostile]))
    write(tmp_path / "page.html", text.replace("</body>", ours))
    shown = browse(tmp_path / "page.html", "--virtual-time-budget=3000", "--dump-dom")
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", shown, re.DOTALL)[1]))
    assert found.pop("wide") <= 1400 and found.pop("narrow") <= 400
    assert found == {"title": hostile.name, "scripts": 2, "images": 2, "fetched": []}


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_screenshots_in_light_and_dark(tmp_path):
    write(tmp_path / "page.html", page.render([make_workdir(tmp_path / "run")]))
    for name, flags, low, high in (
        ("light", [], 200, 256),
        ("dark", ["--blink-settings=preferredColorScheme=0"], 0, 80),
    ):
        browse(tmp_path / "page.html", f"--screenshot={tmp_path}/{name}.png", *flags)
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert low < pixels.mean() < high and pixels.std() > 10
