"""The page of an evaluation, from hand-written tables and images: its text and the places of boxes."""

import re

from pdgen.evaluate.gallery import GalleryImage, ImageGallery, Mark
from pdgen.evaluate.page import RunCost, render_evaluation
from pdgen.evaluate.published import GENEVAL
from pdgen.evaluate.tables import Table
from pdgen.sample.strategies.table import STRATEGIES
from pdgen.train.monitor.curves import COLOURS, Point, draw_scatter

REASON = "expected red circle>=1, found 0 red; and 1 <b>blue</b>"
MARK = Mark("circle", 0.9, (8.0, 6.0, 24.0, 30.0))
IMAGE = GalleryImage("a.png", 64, 48, "a red circle", False, ("circle",), REASON, (MARK,), "")


def test_the_page():
    rows = [("color_attr", 0.5, 1234), ("overall", None, 60)]
    table = Table("Scores", ("score", "value", "prompts"), rows, "A note.")
    costs = [RunCost("one", 10.0, 0.5, 0.4, 0.6), RunCost("two", 2000.0, 0.75, None, None)]
    page = render_evaluation(
        "A run",
        ["Leaks: 2 prompts."],
        {"images": 60},
        [table],
        [GENEVAL],
        [ImageGallery("colors", "0 right, 1 wrong", [IMAGE])],
        costs,
    )
    assert "Leaks: 2 prompts." in page and page.index("Leaks") < page.index("Scores") < page.index("Published")
    assert "<td>color attr</td><td>0.500</td><td>1,234</td>" in page.replace("\n", "")
    assert "<td>overall</td><td>-</td>" in page
    assert re.search(r'<rect x="8.0" y="6.0" width="16.0" height="24.0"><title>circle 0.90', page)
    assert '<svg viewBox="0 0 64 48"' in page and "show detections" in page
    assert "1 &lt;b&gt;blue&lt;/b&gt;" in page
    assert "<td>0.870</td>" in page and "arXiv 2604.04746" in page
    assert "two: 0.750 at 2,000" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_without_images_or_costs():
    page = render_evaluation("A run", [], {}, [])
    assert "Images" not in page and "Cost" not in page and "Published" not in page


def test_scatter_draws_the_intervals_that_exist():
    without = draw_scatter([Point(1, 0.5, None, None, 0), Point(2, 0.6, None, None, 1)], "x", "y")
    both = draw_scatter([Point(1, 0.5, 0.4, 0.6, 0), Point(2, 0.6, 0.5, 0.7, 1)], "x", "y")
    assert both.count("stroke-opacity: 0.6") == 2 and "stroke-opacity: 0.6" not in without


def test_the_points_of_all_strategies_are_distinguishable():
    """By colour, and by their numbers in the legend."""
    svg = draw_scatter([Point(n, n, None, None, n) for n in range(len(STRATEGIES))], "x", "y")
    assert all(colour in svg for colour in COLOURS[: len(STRATEGIES)]) and len(set(COLOURS)) >= len(STRATEGIES)
    assert [int(n) for n in re.findall(r"text-anchor: start[^>]*>(\d+)<", svg)] == [*range(1, len(STRATEGIES) + 1)]
