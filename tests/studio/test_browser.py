"""The page in a real headless Chromium: what a person does, from the prompt to the exported correction."""

import io
import time
import zipfile

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("starlette", reason="the extra studio is not installed")

from pdgen.data.records import RecordSource
from pdgen.sequence.trajectory import Text
from tests.studio.running import running_studio
from tests.studio.webdriver import Browser, find_browser, running_driver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="neither Chromium nor its driver is installed"),
]
PLAN = "<ins>o</ins> <des>oo</des>"


@pytest.fixture(scope="module")
def driver():
    with running_driver() as address:
        yield address


@pytest.fixture
def browser(driver, tmp_path):
    browser = Browser(driver, tmp_path / "profile")
    yield browser
    browser.close()


def visit(browser, address):
    browser.open(f"{address}/")
    browser.wait("return document.body.dataset.ready === 'true'")


def draw(browser, prompt, button="#create button.main"):
    """Send a prompt; return the name of the trajectory that appears."""
    before = browser.run("return document.querySelectorAll('#list li').length")
    browser.type("#prompt", prompt)
    browser.click(button)
    browser.wait(f"return document.querySelectorAll('#list li').length > {before}")
    return browser.wait("return document.querySelector('#rows .row')?.id.slice(4)")


def wait_for(browser, name, *states):
    wanted = " || ".join(f"p === '{state}'" for state in states)
    browser.wait(f"const p = document.getElementById('row-{name}')?.dataset.progress; return {wanted}")


def card(name, number, button):
    """The selector of a card's button."""
    names = {"edit": 1, "paint": 1, "again": "last-of-type"}
    return f"#row-{name} .card:nth-child({number}) .menu button:nth-of-type({names.get(button, button)})"


def fill(browser, **fields):
    for field, text in fields.items():
        browser.type(f"dialog [name={field}]", text)
    browser.click("dialog button[value=ok]")


def test_from_a_prompt_to_an_exported_correction(browser, running, tmp_path):
    visit(browser, running.address)
    browser.type("#seed", "22")
    name = draw(browser, "a red circle")
    wait_for(browser, name, "done")
    stages = running.view(name)["stages"]
    assert browser.run(f"return document.querySelectorAll('#row-{name} .card').length") == len(stages)
    assert browser.run(f"return document.querySelector('#row-{name} img').naturalWidth") == stages[1]["width"]
    # Another plan: a branch beside it.
    browser.click(card(name, 1, "edit"))
    fill(browser, text=PLAN)
    branch = f"{name}-1"
    wait_for(browser, branch, "done")
    assert running.view(branch)["stages"][0]["text"] == PLAN
    assert browser.run(f"return !!document.querySelector('#row-{branch} .card.differs')")
    # What was wrong with the first plan becomes data that can be read.
    browser.click(f"#row-{name} .card:nth-child(1) .menu > div > button:last-child")
    browser.run("document.querySelector('dialog select').value = arguments[0]", branch)
    fill(browser, reason="It is not what was asked.", correction="Draw a circle.")
    browser.wait("return document.getElementById('corrections').textContent !== 'Corrections: 0'")
    zipfile.ZipFile(io.BytesIO(running.http.get("/api/corrections").content)).extractall(tmp_path / "data")
    records = [*RecordSource(tmp_path / "data" / "records")]
    texts = {segment.text for record in records for segment in record.segments if isinstance(segment, Text)}
    assert "It is not what was asked. <refine>Draw a circle.</refine>" in texts
    assert browser.faults() == []


def test_painting_on_a_picture_branches_from_it(browser, running):
    (name,) = running.create(stages=2)
    running.wait(name)
    visit(browser, running.address)
    wait_for(browser, name, "idle", "done")
    browser.click(card(name, 2, "paint"))
    browser.wait("return !!document.querySelector('dialog canvas')")
    browser.run("document.querySelector('dialog input[type=color]').value = '#00ff00'")
    browser.drag("dialog canvas", [(-80, 0), (0, 20), (80, 0)])
    browser.click("dialog button[value=ok]")
    branch = f"{name}-1"
    wait_for(browser, branch, "idle", "done")
    images = [
        PIL.Image.open(io.BytesIO(running.http.get(running.view(one)["stages"][1]["url"]).content))
        for one in (name, branch)
    ]
    changed = (np.asarray(images[0]) != np.asarray(images[1])).any(-1)
    assert 0.01 < changed.mean() < 0.6
    # Of a brush on a picture of 32 pixels most is its smooth edge.
    assert (np.asarray(images[1])[changed] == (0, 255, 0)).all(-1).mean() > 0.15


def test_several_sketches_and_one_is_picked(browser, running):
    (name,) = running.create(stages=2)
    running.wait(name)
    visit(browser, running.address)
    wait_for(browser, name, "idle", "done")
    again = f"#row-{name} .card:nth-child(2) .menu .line"
    browser.click(f"{again} button")
    for number in range(1, 5):
        wait_for(browser, f"{name}-{number}", "idle", "done")
    picked = next(
        one for one in (f"{name}-{n}" for n in range(1, 5)) if running.view(one)["summary"]["progress"] == "idle"
    )
    browser.click(f"#row-{picked} [data-action=run]")
    wait_for(browser, picked, "done")


def test_a_reload_and_a_second_browser_see_the_same(browser, running, driver, tmp_path):
    visit(browser, running.address)
    name = draw(browser, "o o o", "#create-step")
    wait_for(browser, name, "idle")
    browser.click(f"#row-{name} [data-action=run]")
    visit(browser, running.address)  # in the middle
    second = Browser(driver, tmp_path / "second", (390, 844))
    try:
        visit(second, running.address)
        for one in (browser, second):
            wait_for(one, name, "done")
            count = one.run(f"return document.querySelectorAll('#row-{name} .card').length")
            assert count == len(running.view(name)["stages"])
        assert second.run("return document.documentElement.scrollWidth <= innerWidth")
        other = draw(second, "x x x")
        wait_for(second, other, "done")
        browser.wait(f"return document.getElementById('list').textContent.includes('{other}')")
    finally:
        second.close()


def test_the_server_is_killed_and_started_again(browser, sampler, tmp_path):
    with running_studio(sampler, tmp_path / "out") as first:
        visit(browser, first.address)
        name = draw(browser, "o", "#create-step")
        wait_for(browser, name, "idle")
    browser.wait("return document.getElementById('status').classList.contains('fault')")
    with running_studio(sampler, tmp_path / "out") as second:
        visit(browser, second.address)
        wait_for(browser, name, "idle")
        browser.click(f"#row-{name} [data-action=run]")
        wait_for(browser, name, "done")


def test_keys_and_labels(browser, running):
    begin = time.monotonic()
    visit(browser, running.address)
    assert time.monotonic() - begin < 10
    unnamed = """
    const name = (e) => e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length || e.title;
    const all = [...document.querySelectorAll('button, input, textarea, select, a')];
    return all.filter((e) => !name(e)).map((e) => e.outerHTML);
    """
    assert browser.run(unnamed) == []
    key = "new KeyboardEvent('keydown', {key: 'n', bubbles: true})"
    browser.run(f"document.activeElement.blur(); document.body.dispatchEvent({key})")
    assert browser.run("return document.activeElement.id") == "prompt"
