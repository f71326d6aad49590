"""Pages of `pwoa report --html` in headless Chromium: `make report-test`, where there is one (CI has none, so
its name is no test_*.py).

A copy of a page, in a frame of the width, gets a probe in place of its Content-Security-Policy, which writes
what it measures into the title around it; the console is that of the page itself.
"""
import html
import json
import os
import re
import shutil
import subprocess

import pytest
from helpers.report_folders import NASTY, compared, run_at
from helpers.report_folders import html as page_of
from helpers.report_samples import report

from pwoa_cli.files.plain import write_json

BROWSER = os.environ.get("CHROMIUM") or shutil.which("google-chrome") or "chromium"
PROBE = """<script>addEventListener("load", () => {
  const number = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map(
      (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce(
      (sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const c = number(getComputedStyle(one).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const width = document.documentElement.clientWidth, faint = [], wide = [];
  for (const one of document.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect(), style = getComputedStyle(one);
    const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (own && box.width && !["title", "desc", "STYLE", "SCRIPT"].includes(one.tagName)) {
      const ink = number(one.namespaceURI.endsWith("svg") ? style.fill : style.color);
      const [a, b] = [light(ink), light(ground(one))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(one.textContent.trim().slice(0, 40));
    }
    if (box.right > width + 0.5 && !one.closest(".scroll")) wide.push(one.outerHTML.slice(0, 80));
  }
  const images = [...document.images].filter((one) => !one.naturalWidth).length;
  const small = [...document.querySelectorAll("svg text")].map((one) => one.getBoundingClientRect().height);
  const scrolled = [...document.querySelectorAll(".scroll")].filter(
      (one) => one.scrollWidth > one.clientWidth + 1);
  parent.document.title = JSON.stringify({
    inner: innerWidth, width: document.documentElement.scrollWidth, dark: matchMedia(
        "(prefers-color-scheme: dark)").matches, faint, wide, images, text: Math.min(...small, 99),
    scrolled: scrolled.map((one) => one.textContent.trim().slice(0, 60))});
});</script>"""


# Chromium's own window is never below 500 pixels; a frame has the theme of what is around it
FRAME = ('<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title></title>'
         '<body style="margin: 0">'
         '<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe>')


def browser(tmp_path, path, *, theme, more=()):
    return subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,900",
         f"--blink-settings=preferredColorScheme={('dark', 'light').index(theme)}", *more, path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(params=["run", "bare", "comparison", "names"])
def page(tmp_path, request):
    if request.param == "comparison":
        text = compared(tmp_path, names=("a", "b" * 80, "<b>c"))
    elif request.param == "run":
        text = page_of(run_at(tmp_path / "run"))
    else:
        long = NASTY * 8 + "x" * 300
        fields = {"notes": [long], "layers": [{"name": long, "shape": (512, 512, 3, 3), "nonzero": 10**6,
                                               "total": 512 * 512 * 9}]} if request.param == "names" else {}
        (tmp_path / "one").mkdir()
        write_json(tmp_path / "one" / "report.json", report(**fields))
        text = page_of(tmp_path / "one")
    path = tmp_path / "page.html"
    path.write_text(text)
    return path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_overflows_or_is_faint_and_the_console_is_silent(tmp_path, page, width, theme):
    quiet = browser(tmp_path, page, theme=theme, more=["--dump-dom"])
    assert "<h1>" in quiet.stdout
    assert not [line for line in quiet.stderr.splitlines() if ":CONSOLE" in line], quiet.stderr
    framed = tmp_path / "framed.html"
    text, changed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert changed == 1
    framed.write_text(FRAME.format(width=width, page=html.escape(text.replace("</body>", f"{PROBE}</body>"))))
    dom = browser(tmp_path, framed, theme=theme, more=["--dump-dom"]).stdout
    found = json.loads(html.unescape(re.findall(r"<title>(\{.*?)</title>", dom, re.DOTALL)[0]))
    assert found["inner"] == width and found["dark"] == (theme == "dark")
    assert found["width"] <= width and found["wide"] == [] and found["faint"] == [] and found["images"] == 0
    assert found["text"] >= 9 and (width < 1400 or found["scrolled"] == [])


def test_a_page_can_be_printed(tmp_path, page):
    browser(tmp_path, page, theme="dark", more=[f"--print-to-pdf={tmp_path / 'page.pdf'}"])
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
