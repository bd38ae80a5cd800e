"""The gains report: everything measured is on the page, with its machine and command; nothing comes from elsewhere."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from peoplecounter.common.errors import AppError
from peoplecounter.deploy.report import charts, gains

RESULTS = Path(__file__).parents[1] / "bench" / "results"
ROW = {
    "optimization": "Nothing <b>", "what": "as before", "unit": "ms", "before": 2.0, "before_spread": [1.9, 2.1],
    "after": 1.0, "after_spread": [0.9, 1.1], "ratio": 2.0, "turns": 3,
}  # fmt: skip
FILE = {"date": "2026-01-01", "cpu": "<script>alert(1)</script>", "cores": 2, "python": "3.11", "command": "make bench"}


class Page(HTMLParser):
    """What a page shows, and which elements it has."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.links, self.open = "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def save(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_results_of_this_project_are_on_the_page_with_machine_and_command():
    html = gains.build(gains.read([RESULTS]))
    page = Page(html)
    assert not page.open  # every element is closed
    assert not page.links and "url(" not in html and "script" not in page.tags
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        for run in content.get("gains", []):
            for row in run["rows"]:
                assert row["optimization"] in page.text and row["what"] in page.text
        if "merge" in content or "killed" in content or "gains" in content:
            assert content["command"] in page.text
    assert "H200" in page.text and "2 cores of" in page.text
    titles = ("Optimizations, off and on", "Where the milliseconds go", "Latency distributions", "Engines", "Merging")
    assert all(title in page.text for title in titles)
    assert page.tags.count("svg") >= 5


def test_a_result_is_text_not_html(tmp_path):
    html = gains.build(gains.read([save(tmp_path / "a.json", {**FILE, "gains": [{"rows": [ROW]}]})]))
    assert "Nothing <b>" in Page(html).text and "script" not in Page(html).tags
    assert "2.00 ms" in html and "1.90 … 2.10" in html


def test_of_what_was_measured_again_the_later_counts(tmp_path):
    again = {"rows": [{**ROW, "after": 1.5, "ratio": 1.333}], "why again": "because", "command": "again"}
    html = gains.build(gains.read([save(tmp_path / "a.json", {**FILE, "gains": [{"rows": [ROW]}], "again": again})]))
    assert "1.50 ms" in html and "because" in html and ">2.00</span>" not in html


@pytest.mark.parametrize(
    "content, message",
    [
        ("no json", "is not JSON"),
        ([], "contains no command"),
        ({"a": 1}, "contains no command"),
        (FILE, "nothing for the report"),
        ({**FILE, "gains": [{"rows": [{"optimization": "x", "what": "y"}]}]}, "damaged"),
    ],
)
def test_a_file_that_is_not_a_result_gives_a_clear_error(tmp_path, content, message):
    with pytest.raises(AppError, match=message):
        gains.build(gains.read([save(tmp_path / "a.json", content)]))


def test_a_missing_file_and_an_empty_folder_give_clear_errors(tmp_path):
    with pytest.raises(AppError, match="cannot be read"):
        gains.read([tmp_path / "none.json"])
    with pytest.raises(AppError, match="No results"):
        gains.read([tmp_path])


def test_bars_lie_where_their_times_are():
    svg = charts.waterfall([charts.Bar("a", 0, 5, "decode"), charts.Bar("b", 5, 10, "fusion")])
    rects = [dict(part.split("=") for part in rect.replace("'", "").split()[:4]) for rect in svg.split("<rect ")[1:]]
    first, second = ({key: float(value) for key, value in rect.items()} for rect in rects)
    assert first["x"] + first["width"] == pytest.approx(second["x"], abs=0.11)
    assert first["width"] == pytest.approx(second["width"], abs=0.11)
