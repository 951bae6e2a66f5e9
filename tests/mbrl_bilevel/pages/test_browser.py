"""The page in headless Chromium, where there is one: drawn, quiet, quick, and it answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mbrl_bilevel.pages.page import write_page

Make = Callable[..., Path]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium and no google-chrome is here")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0"),
)
#: What a reader does, and what the page then shows.
READER = """
<script>
setTimeout(async () => {
  const said = document.documentElement.dataset;
  const traces = () => document.querySelectorAll("#plot-1 .scatterlayer .trace").length;
  const table = [...document.querySelectorAll("table.sortable")].find(
    (one) => one.tHead.textContent.includes("RMSE (target"));
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent.trim());
  const before = traces();
  document.querySelector("button[data-of=plot-1]").click();
  await new Promise((done) => setTimeout(done, 500));
  said.hid = before - traces();
  const heads = table.querySelectorAll("th button");
  heads[3].click();
  said.up = [heads[3].parentElement.ariaSort, column(2)[0], column(2).at(-1)].join();
  heads[3].click();
  said.down = [heads[3].parentElement.ariaSort, column(2)[0], column(2).at(-1)].join();
  const ink = () => getComputedStyle(document.querySelector("#plot-1 .xtick text")).fill;
  const theme = document.getElementById("theme");
  for (const name of ["light", "dark"]) {
    theme.value = name;
    theme.dispatchEvent(new Event("change"));
    await new Promise((done) => setTimeout(done, 500));
    said[name] = ink();
  }
}, 1000);
</script>
"""


def browse(page: Path, *flags: str) -> tuple[str, str]:
    """The page's elements after it was shown, and what the console said."""
    assert BROWSER is not None
    profile = page.with_suffix(".profile")
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.fixture
def page(tmp_path: Path, trained: Make, compared: Make, forgot: Make, classified: Make) -> Path:
    runs = [compared("c", [0, 1]), trained("<b>t</b>", [0, 1]), forgot("f"), classified("k")]
    write_page(runs, tmp_path / "page.html")
    return tmp_path / "page.html"


def test_every_plot_is_drawn_and_nothing_is_said_nor_asked_for(page: Path) -> None:
    """The page's policy forbids every request, so that one would be told on the console."""
    elements, console = browse(page, "--virtual-time-budget=20000")
    assert console == ""
    plots = elements.count('class="canvas')
    assert plots > 10
    assert f'data-drawn="{plots} of {plots}"' in elements
    for part in elements.split('class="canvas')[1:]:
        assert "main-svg" in part
        assert re.search(r'class="trace scatter', part)


def test_a_request_and_an_error_would_be_told(page: Path) -> None:
    """So that the silence above means something."""
    text = page.read_text().replace("</main>", '<img src="http://localhost:9/x.png"></main>')
    page.write_text(text)
    _, console = browse(page, "--virtual-time-budget=5000")
    assert "localhost:9" in console


def test_lines_can_be_hidden_tables_sorted_and_the_theme_changed(page: Path) -> None:
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.*", "", page.read_text(), count=1)
    page.write_text(text.replace("</body>", f"{READER}</body>"))
    elements, console = browse(page, "--virtual-time-budget=20000")
    assert console == ""
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', elements.partition("<head>")[0]))
    assert said["hid"] == "2"  # the line and its band
    assert said["up"] == "ascending,bilevel,mse"
    assert said["down"] == "descending,mse,bilevel"
    assert {said["light"], said["dark"]} == {"rgb(26, 29, 33)", "rgb(232, 234, 237)"}


def test_the_first_plot_comes_within_two_seconds(page: Path) -> None:
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip("the machine is busy with other work: a time would mean nothing")
    elements, _ = browse(page)  # in real time, up to the load event
    found = re.search(r'data-first-plot-ms="(\d+)"', elements)
    assert found is not None
    assert int(found[1]) < 2000
