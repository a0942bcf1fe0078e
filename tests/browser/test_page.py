"""The page at /, as a person uses it: by mouse, finger, keyboard and screen reader."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import process
import pytest
from axe_core_python.selenium import Axe
from modelkit.store import Store
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PHONE, DESK = (360, 740), (1100, 900)
Point = tuple[float, float]
ONE: list[list[Point]] = [[(0.5, 0.15), (0.5, 0.5), (0.5, 0.85)]]
SEVEN: list[list[Point]] = [[(0.25, 0.2), (0.5, 0.2), (0.75, 0.2), (0.62, 0.5), (0.45, 0.85)]]
SMALL_SEVEN = [[(0.05 + x / 4, 0.6 + y / 4) for x, y in SEVEN[0]]]


def size(browser: Chrome, width: int, height: int) -> None:
    settings = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", settings)


@pytest.fixture(autouse=True)
def quiet(browser: Chrome) -> Iterator[None]:
    """Nothing that a page does is an error in the browser's console: a script, a style or a policy."""
    size(browser, *DESK)
    browser.get_log("browser")
    yield
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    told = [message for message in severe if "/model - Failed to load" not in message]  # 503 and 401 are asked for
    assert not told


def find(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def until(browser: Chrome, what: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda _: what())


def answered(browser: Chrome, label: str) -> None:
    until(browser, lambda: find(browser, "#label").text.startswith(f"{label} ("))


def opened(browser: Chrome, url: str) -> None:
    browser.get(url)
    until(browser, find(browser, "#about").is_displayed)


def draw(browser: Chrome, strokes: list[list[Point]], kind: str) -> None:
    pad = find(browser, "#pad")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
    width, height = pad.size["width"], pad.size["height"]
    if kind == "touch":
        left, top = (
            browser.execute_script(f"return arguments[0].getBoundingClientRect().{side}", pad) for side in "xy"
        )
        for stroke in strokes:
            for n, (x, y) in enumerate(stroke):
                point = {"x": left + x * width, "y": top + y * height}
                touch = {"type": "touchMove" if n else "touchStart", "touchPoints": [point]}
                browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        return
    actions = ActionBuilder(browser, mouse=PointerInput("mouse", "mouse"), duration=20)
    pointer = actions.pointer_action
    for stroke in strokes:
        (x, y), *rest = [(int((x - 0.5) * width), int((y - 0.5) * height)) for x, y in stroke]
        pointer.move_to(pad, x, y).pointer_down()
        for x, y in rest:
            pointer.move_to(pad, x, y)
        pointer.pointer_up()
    actions.perform()


@pytest.mark.parametrize("kind", ["mouse", "touch"])
@pytest.mark.parametrize(("digit", "strokes"), [("1", ONE), ("7", SEVEN), ("7", SMALL_SEVEN)])
def test_a_drawn_digit_is_recognised(
    browser: Chrome, mnist: str, shot: Callable[[], None], digit: str, strokes: list[list[Point]], kind: str
) -> None:
    size(browser, *(PHONE if kind == "touch" else DESK))
    opened(browser, mnist)
    draw(browser, strokes, kind)
    answered(browser, digit)
    shot()
    bars = browser.find_elements(By.CSS_SELECTOR, "progress")
    assert len(bars) == 10
    assert sum(float(bar.get_attribute("value") or 0) for bar in bars) == pytest.approx(1, abs=1e-4)
    find(browser, "#clear").click()
    assert find(browser, "#label").text == "Nothing asked yet"


def test_a_digit_can_be_drawn_with_the_keyboard_alone(browser: Chrome, mnist: str) -> None:
    opened(browser, mnist)
    while browser.switch_to.active_element.get_attribute("id") != "pad":
        ActionChains(browser).send_keys(Keys.TAB).perform()
    ActionChains(browser).send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 14).perform()
    answered(browser, "1")
    assert find(browser, "#pen").text == "Pen down"
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert find(browser, "#label").text == "Nothing asked yet"


def test_what_is_drawn_reaches_the_model_as_mnists_own_digits_are(browser: Chrome, mnist: str) -> None:
    opened(browser, mnist)
    browser.execute_script(
        "window.bodies = []; const send = window.fetch;"
        "window.fetch = (path, options) => { if (options?.body) bodies.push(options.body);"
        "return send(path, options); };"
    )
    for strokes in (SEVEN, SMALL_SEVEN):
        draw(browser, strokes, "mouse")
        answered(browser, "7")
        image = json.loads(browser.execute_script("return bodies.at(-1)"))
        assert len(image) == 784
        inked = [(i % 28, i // 28) for i, value in enumerate(image) if value > 64]
        height = max(y for _, y in inked) - min(y for _, y in inked) + 1
        assert 18 <= height <= 21
        total = sum(image)
        for axis in (lambda i: i % 28, lambda i: i // 28):
            assert sum(value * (axis(i) + 0.5) for i, value in enumerate(image)) / total == pytest.approx(14, abs=0.5)
        find(browser, "#clear").click()


def test_the_form_has_the_features_and_answers_while_one_types(
    browser: Chrome, iris: str, shot: Callable[[], None]
) -> None:
    opened(browser, iris)
    answered(browser, "versicolor")
    length = find(browser, "#feature-petal_length")
    assert find(browser, "label[for=feature-petal_length]").text == "petal length"
    assert "1 to 6.9 in training" in find(browser, "#features").text
    length.clear()
    length.send_keys("1.4")
    answered(browser, "setosa")
    slider = find(browser, "#feature-petal_length ~ input, input[aria-label='petal_length, slider']")
    assert slider.get_attribute("value") == "1.4"
    slider.send_keys(Keys.END)
    answered(browser, "virginica")
    assert length.get_attribute("value") == "6.9"
    shot()


def test_it_says_which_model_answers(browser: Chrome, mnist: str, trained: Path) -> None:
    opened(browser, mnist)
    manifest = Store(trained, "mnist").load().manifest
    about = find(browser, "#facts").text
    assert browser.title == "Model mnist"
    for word in (manifest.digest, manifest.trial, f"{100 * manifest.metrics.validation.accuracy:.1f} %"):
        assert word in about
    for name, value in manifest.parameters.items():
        assert f"{name}\n{value}" in about


def test_it_says_where_the_model_comes_from_back_to_the_first(
    browser: Chrome, tmp_path: Path, shot: Callable[[], None]
) -> None:
    digests = [models.promote(tmp_path, "iris", models.iris_constant(index)) for index in range(3)]
    with process.server(tmp_path) as (_, __, url):
        opened(browser, url)
        until(browser, find(browser, "#lineage").is_displayed)
        ancestors = browser.find_elements(By.CSS_SELECTOR, "#ancestors > li")
        assert len(ancestors) == 3
        for item, digest in zip(ancestors, digests[::-1], strict=True):
            assert f"Digest\n{digest}" in item.text
            for word in ("Experiment\nsearch", f"Trial\n{digest[:8]}", f"Data\n{'0' * 64}", "Image\nnot told"):
                assert word in item.text
        shot()
        browser.get("about:blank")


def test_a_category_is_chosen_by_its_name(browser: Chrome, tmp_path: Path, shot: Callable[[], None]) -> None:
    models.promote(tmp_path, "colours", models.red_or_not(), models.COLOURS, ["warm", "cold"])
    with process.server(tmp_path, name="colours") as (_, __, url):
        opened(browser, url)
        answered(browser, "warm")
        find(browser, "#feature-colour option[value=blue]").click()
        answered(browser, "cold")
        shot()
        browser.get("about:blank")


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("screen", [PHONE, DESK], ids=["phone", "desk"])
def test_a_phone_needs_no_sideways_scrolling_and_no_accessibility_rule_is_broken(
    browser: Chrome, mnist: str, iris: str, shot: Callable[[], None], path: str, screen: tuple[int, int]
) -> None:
    for url in (iris, mnist):
        size(browser, *screen)
        browser.get(url + path)
        until(browser, lambda: find(browser, "article, #about").is_displayed())
        if path == "/" and url == mnist:
            draw(browser, SEVEN, "mouse")
            answered(browser, "7")
        shot()
        assert browser.execute_script("return document.documentElement.scrollWidth") <= screen[0]
        broken = Axe().run(browser)["violations"]
        assert not [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in broken]


def test_a_screen_reader_hears_what_is_what(browser: Chrome, iris: str) -> None:
    opened(browser, iris)
    answered(browser, "versicolor")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    heard = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]}
    for role, name in (
        ("heading", "Model iris"),
        ("spinbutton", "petal length"),
        ("slider", "petal_length, slider"),
        ("region", "Which model answers"),
        ("progressbar", "probability of setosa"),
        ("rowheader", "setosa"),
    ):
        assert (role, name) in heard
    assert any(role == "status" for role, _ in heard)


def test_the_page_asks_no_other_server(browser: Chrome, mnist: str) -> None:
    opened(browser, mnist)
    for path in ("/", "/docs"):
        browser.get(mnist + path)
        until(browser, lambda: find(browser, "article, #about").is_displayed())
        asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert len(asked) >= 3
        assert all(name.startswith(mnist) for name in asked)


def test_a_new_model_is_shown_as_soon_as_it_answers(browser: Chrome, tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_constant(0))
    with process.server(tmp_path, "--poll", "0.01") as (_, __, url):
        opened(browser, url)
        answered(browser, "setosa")
        better = models.promote(tmp_path, "iris", models.iris_constant(2))

        def shown() -> bool:
            find(browser, "input[type=range]").send_keys(Keys.ARROW_RIGHT)
            return better in find(browser, "#facts").text

        until(browser, shown)
        answered(browser, "virginica")
        browser.get("about:blank")


def test_before_there_is_a_model_it_says_so_and_then_shows_the_first(browser: Chrome, tmp_path: Path) -> None:
    with process.server(tmp_path, "--poll", "0.01") as (_, __, url):
        browser.get(url)
        until(browser, lambda: "run its search first" in find(browser, "#problem").text)
        models.promote(tmp_path, "iris", models.iris_constant(1))
        answered(browser, "versicolor")
        assert not find(browser, "#problem").is_displayed()
        browser.get("about:blank")


def test_with_keys_it_asks_for_one(browser: Chrome, tmp_path: Path) -> None:
    models.promote(tmp_path, "iris", models.iris_constant(1))
    (tmp_path / "keys").write_text("a-key-for-the-browser")
    with process.server(tmp_path, "--api-keys", str(tmp_path / "keys")) as (_, __, url):
        browser.get(url)
        until(browser, lambda: find(browser, "#key").is_displayed())
        find(browser, "#api-key").send_keys("a-key-for-the-browser", Keys.ENTER)
        answered(browser, "versicolor")
        assert not find(browser, "#key").is_displayed()
        browser.get("about:blank")
