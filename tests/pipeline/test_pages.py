"""The dashboard's pages in a real Chromium, with a group that counts."""

import json
import time

import pytest

from tests.support import firefox
from tests.support.chromium import BINARY, Chromium
from tests.support.dashboard import Dashboard
from tests.support.group import SERVICES
from tests.support.rtsp import free_port
from tests.support.walk import LINE, make_walk, walking_model

pytestmark = pytest.mark.skipif(not BINARY, reason="this machine has no Chromium: .ci/run installs it")
# whether every canvas shows more than two brightnesses
PAINTED = """(all => all.length && [...all].every(canvas => canvas.width > 10 && new Set(canvas.getContext("2d")
    .getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 0)).size > 2))
    (document.querySelectorAll("canvas"))"""


@pytest.fixture
def browser():
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture
def make(group, tmp_path):
    """A group whose sources show a square that walks to and fro, and the URL of its pages."""
    walk, model = make_walk(tmp_path / "walk.mp4"), walking_model(tmp_path / "walk.onnx")

    def start(*names, **settings):
        port = free_port()
        source = {"url": str(walk), "loop": True, "realtime": True, "lines": {"fixed": LINE}}
        settings = {"dashboard__listen": f"127.0.0.1:{port}", "engine__model": str(model), **settings}
        g = group(dict.fromkeys(names, source), **settings)
        g.start(*SERVICES[:-1], *(f"decoder.{name}" for name in names), "dashboard.0")
        dashboard = Dashboard(port)
        dashboard.wait()
        g.wait_counts(len(names))
        return g, dashboard

    return start


def check_quiet(browser, dashboard):
    """No error in the console, and nothing was asked of anybody else."""
    assert browser.errors == []
    own = (dashboard.url, f"ws://{dashboard.host}", "about:", "blob:", "data:")
    assert [url for url in browser.requests if not url.startswith(own)] == []


def test_every_page_shows_what_it_is_about(make, browser, tmp_path):
    """In light and dark, on a phone and on a desk. How soon the first picture is there is printed."""
    areas = json.dumps({"hall": {"lines": ["cam.fixed"]}})
    g, dashboard = make("cam", data_dir=str(tmp_path / "data"), areas=areas)
    g.start("history.0")
    for dark in (False, True):
        for width in (390, 1600):
            began_s = time.monotonic()
            browser.open(f"{dashboard.url}/", width=width, dark=dark)
            browser.wait(PAINTED)
            print(f"{width} px, dark {dark}: picture and boxes after {time.monotonic() - began_s:.2f} s")
            browser.wait("document.body.innerText.includes('cam') && document.body.innerText.includes('hall')")
            for page, words in (
                ("#/camera/cam", ("fixed", "people")),
                ("#/edit/cam", ("in the settings file", "Add line")),
                ("#/charts", ("cam",)),
                ("#/health", ("infer_tiles.0", "dashboard.0", "ready")),
            ):
                browser.open(f"{dashboard.url}/{page}", width=width, dark=dark)
                for word in words:
                    browser.wait(f"document.body.innerText.includes({json.dumps(word)})")
                assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (page, width)
    check_quiet(browser, dashboard)


def test_a_line_is_drawn_by_hand_and_counts(make, browser):
    """Two clicks on the picture, a name, save: fusion counts at it within a second."""
    g, dashboard = make("cam")
    browser.open(f"{dashboard.url}/#/edit/cam")
    browser.wait(PAINTED)
    browser.js("[...document.querySelectorAll('button')].find(b => b.innerText === 'Add line').click()")
    left, top, width, height = browser.js(
        "(r => [r.left, r.top, r.width, r.height])(document.querySelector('canvas').getBoundingClientRect())"
    )
    for share in (0.15, 0.85):
        browser.click(left + 0.4 * width, top + share * height)
    browser.wait("document.querySelector('form input[type=text], form input:not([type])')")
    browser.js("""(input => { input.value = "drawn"; input.dispatchEvent(new Event("input", {bubbles: true})); })(
        document.querySelector('form input[type=text], form input:not([type])'))""")
    browser.wait("/it would have counted/.test(document.body.innerText)")
    began_s = time.monotonic()
    browser.js("[...document.querySelectorAll('button')].find(b => /^Save/.test(b.innerText)).click()")
    g.wait_for(lambda: "drawn" in g.of("status")[-1]["lines"], "the line is counted", 5)
    print(f"known to subscribers {time.monotonic() - began_s:.2f} s after it was saved: a status comes once a second")
    points = dashboard.json("/api/v1/sources/cam")["lines"]["drawn"]["points"]
    assert [round(x, 1) for x, _ in points] == [0.4, 0.4] and points[0][1] < 0.2 < 0.8 < points[1][1]
    g.wait_for(lambda: any(c["line"] == "drawn" for c in g.of("crossings")), "somebody crosses it", 20)
    check_quiet(browser, dashboard)


def test_twelve_cameras_on_one_page(make, browser):
    names = [f"cam{number}" for number in range(12)]
    _, dashboard = make(*names)
    browser.open(f"{dashboard.url}/", width=3840, height=2160)
    browser.wait("document.querySelectorAll('canvas').length === 12")
    browser.wait(PAINTED, 30)
    check_quiet(browser, dashboard)


def test_video_off_shows_boxes_and_no_picture(make, browser):
    _, dashboard = make("cam", dashboard__video="off")
    browser.open(f"{dashboard.url}/#/camera/cam")
    browser.wait(PAINTED)  # the boxes, on a grid
    assert not [url for url in browser.requests if "picture" in url]
    check_quiet(browser, dashboard)


def test_a_login_by_token(make, browser, tmp_path):
    from peoplecounter.deploy.dashboard.tokens import add_user

    token = add_user(tmp_path / "tokens", "wall", "view")
    _, dashboard = make("cam", dashboard__token_file=str(tmp_path / "tokens"))
    browser.open(f"{dashboard.url}/")
    browser.wait("document.querySelector('input[type=password]')")
    browser.js(f"""(input => {{ input.value = {json.dumps(token)};
        input.dispatchEvent(new Event("input", {{bubbles: true}})); input.form.requestSubmit(); }})(
        document.querySelector('input[type=password]'))""")
    browser.wait(PAINTED)
    browser.open(f"{dashboard.url}/#/health")
    browser.wait("document.body.innerText.includes('infer_tiles.0')")
    assert not browser.js("[...document.querySelectorAll('button')].some(b => /Restart/.test(b.innerText))")


def test_pages_come_back_with_their_server(make, browser):
    g, dashboard = make("cam")
    browser.open(f"{dashboard.url}/")
    browser.wait(PAINTED)
    g.signal("dashboard.0", 9)
    browser.wait("/no connection/i.test(document.body.innerText)")
    g.start("dashboard.0")
    browser.wait("!/no connection/i.test(document.body.innerText)", 20)
    browser.js("document.querySelector('canvas').getContext('2d').clearRect(0, 0, 5000, 5000)")
    browser.wait(PAINTED)


@pytest.mark.skipif(not firefox.BINARY, reason="this machine has no Firefox: .ci/run installs it")
def test_firefox_shows_the_same(make):
    _, dashboard = make("cam")
    browser = firefox.Firefox()
    try:
        for page, word in (("", "cam"), ("#/camera/cam", "fixed"), ("#/edit/cam", "in the settings file")):
            browser.open(f"{dashboard.url}/{page}")
            browser.wait(PAINTED)
            browser.wait(f"document.body.innerText.includes({json.dumps(word)})")
        assert browser.errors == []
    finally:
        browser.close()
