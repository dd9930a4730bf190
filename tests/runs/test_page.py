"""The page to draw on, in a real browser: Debian's chromium and chromium-driver, if they are installed."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trained import PAGE, page_data, trained_model

from lit_mnist import preprocess
from lit_mnist.images import normalise
from lit_mnist.load import Trained
from lit_mnist.mnist_files import read_files
from lit_mnist.page import render

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)

# As people write them, on a sheet of 280 x 280.
STROKES: dict[int, list[list[tuple[int, int]]]] = {
    0: [[(140, 60), (95, 90), (80, 140), (95, 190), (140, 220), (185, 190), (200, 140), (185, 90), (140, 60)]],
    1: [[(140, 50), (140, 230)]],
    2: [[(85, 95), (110, 60), (160, 60), (185, 95), (165, 140), (85, 220), (200, 220)]],
    3: [[(90, 70), (140, 55), (180, 85), (140, 130), (185, 170), (150, 220), (85, 210)]],
    4: [[(110, 60), (80, 150), (190, 150)], [(170, 80), (160, 230)]],
    5: [[(185, 60), (105, 60), (95, 130), (150, 120), (185, 165), (150, 215), (85, 210)]],
    7: [[(80, 70), (200, 70), (165, 140), (130, 230)]],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1400"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser: Any) -> Any:
    browser.get(PAGE.as_uri())
    return browser


def draw(page: Any, strokes: list[list[tuple[int, int]]]) -> None:
    from selenium.webdriver import ActionChains

    pad = page.find_element("id", "pad")
    scale = pad.size["width"] / 280
    for stroke in strokes:
        actions = ActionChains(page, duration=10)
        for i, (x, y) in enumerate(stroke):
            actions.move_to_element_with_offset(pad, int((x - 140) * scale), int((y - 140) * scale))
            if i == 0:
                actions.click_and_hold()
        actions.release().perform()


def shown(page: Any) -> str:
    return str(page.find_element("id", "digit").text)


def seen(page: Any) -> np.ndarray:
    return np.array(page.execute_script("return Array.from(seen())"), dtype=np.uint8).reshape(28, 28)


def test_the_page_that_ships_is_what_the_code_makes_of_its_weights() -> None:
    text = PAGE.read_text()
    run = Path("runs/documented-seed-0/checkpoints/step=06000.ckpt")
    assert render(Trained(trained_model(), run)) == text
    assert "98.44%" in text  # of the README's table, seed 0


def test_a_name_cannot_change_the_page() -> None:
    page = render(Trained(trained_model(), Path("<script>alert(1)</script>.ckpt")))
    assert "<script>alert" not in page
    assert "script&gt;.ckpt" in page
    assert page_data(page)["side"] == 28


@needs_browser
def test_probabilities_of_1000_test_images_are_those_of_the_port(page: Any) -> None:
    images = read_files("data").test.tensors[0][:1000]
    script = """
        const images = bytesOf(arguments[0]);
        return Array.from({ length: images.length / 784 }, (_, i) =>
          Array.from(forward(images.subarray(784 * i, 784 * (i + 1))).probabilities));
    """
    theirs = page.execute_script(script, base64.b64encode(images.numpy().tobytes()).decode())
    with torch.inference_mode():
        ours = trained_model()(images).numpy()
    assert np.abs(np.array(theirs) - ours).max() < 1e-5
    assert (np.argmax(theirs, axis=1) == ours.argmax(axis=1)).all()


@needs_browser
def test_drawings_are_preprocessed_to_the_same_bytes_as_by_predict(page: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(1, 60, 2)
        ink = np.zeros((height + 20, width + 20))
        top, left = rng.integers(0, 20, 2)
        ink[top : top + height, left : left + width] = rng.integers(0, 256, (height, width)) / 255
        if not (ink > 0.2).any():
            continue
        theirs = page.execute_script("return Array.from(normalise(...arguments))", ink.ravel().tolist(), *ink.shape)
        np.testing.assert_array_equal(np.array(theirs).reshape(28, 28), normalise(ink))


@needs_browser
@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_drawn_with_the_pointer_is_read(digit: int, page: Any) -> None:
    draw(page, STROKES[digit])
    assert shown(page) == str(digit)
    assert page.find_element("id", "brief").get_attribute("textContent") == f"It reads {digit}"  # shown on a phone
    assert f"It reads {digit}," in page.find_element("id", "spoken").get_attribute("textContent")
    # And `predict` sees the same in a picture of the drawing.
    url = page.execute_script("return sheet.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    difference = seen(page).astype(int) - preprocess(picture)[0, 0].numpy().astype(int)
    assert np.abs(difference).max() <= 2


@needs_browser
def test_the_keyboard_draws_takes_back_and_clears(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    pad = page.find_element("id", "pad")
    pad.send_keys(*[Keys.ARROW_UP] * 10, " ", *[Keys.ARROW_DOWN] * 20, " ")
    assert shown(page) == "1"
    pad.send_keys(Keys.DELETE)
    assert shown(page) == "?"
    pad.send_keys(Keys.BACKSPACE)
    assert shown(page) == "1"
    pad.send_keys(Keys.BACKSPACE)
    assert shown(page) == "?"


@needs_browser
def test_test_digits_are_seen_as_they_are_and_buttons_undo_and_clear(page: Any) -> None:
    examples = page_data(PAGE.read_text())["examples"]
    buttons = page.find_elements("css selector", "#examples button")
    assert len(buttons) == len(examples) == 20
    for button, example in zip(buttons, examples, strict=True):
        button.click()
        assert seen(page).tobytes() == base64.b64decode(example["pixels"])
    page.find_element("id", "clear").click()
    assert shown(page) == "?"
    page.find_element("id", "undo").click()
    assert seen(page).tobytes() == base64.b64decode(examples[-1]["pixels"])
    draw(page, [[(20, 20), (60, 20)]])  # on top of it: now the sheet is preprocessed
    assert seen(page).tobytes() != base64.b64decode(examples[-1]["pixels"])


@needs_browser
def test_the_page_shows_six_maps_after_convolution_and_after_pooling(page: Any) -> None:
    draw(page, STROKES[7])
    sizes = page.execute_script(
        "return ['conv', 'pool'].map((id) => [...document.querySelectorAll(`#${id} .map`)].map((c) => c.width))"
    )
    assert sizes == [[28] * 6, [14] * 6]
    script = """
        const map = document.querySelectorAll("#conv .map")[0].getContext("2d").getImageData(0, 0, 28, 28).data;
        return Array.from({ length: 784 }, (_, i) => map[4 * i + 3]);
    """
    shown = np.array(page.execute_script(script)) / 255
    with torch.inference_mode():
        pixels = torch.from_numpy(seen(page) / 255).float()[None, None]
        maps = trained_model().model.conv(pixels).relu()[0]
    assert np.abs(shown.reshape(28, 28) - (maps[0] / maps.max()).numpy()).max() < 0.005


@needs_browser
def test_nothing_is_said_on_the_console_and_nothing_asked_of_the_network(browser: Any) -> None:
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(PAGE.as_uri())
    draw(browser, STROKES[2])
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert PAGE.as_uri() in urls
    assert all(url == PAGE.as_uri() or url.startswith("data:") for url in urls)
    assert "http" not in PAGE.read_text().replace("https://creativecommons.org/licenses/by-sa/3.0/", "").replace(
        "http-equiv", ""
    )


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 1000), (390, 844), (320, 568)])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(
    scheme: str, width: int, height: int, browser: Any
) -> None:
    from axe_core_python.selenium import Axe

    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(PAGE.as_uri())
        draw(browser, STROKES[3])
        assert Axe().run(browser)["violations"] == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
