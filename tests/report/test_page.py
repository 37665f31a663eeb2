"""Pages are one escaped file; tables align numbers; contact sheets fit their grid."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from vfm.report import Page, draw_contact_sheet

EVIL = "<script>alert('x')</script>\"&"


def _png(width: int, height: int, dpi: int | None = None) -> bytes:
    buffer = io.BytesIO()
    options = {} if dpi is None else {"dpi": (dpi, dpi)}
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG", **options)
    return buffer.getvalue()


class _Tags(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _full_page() -> Page:
    page = Page(EVIL, EVIL)
    page.add_heading(EVIL)
    page.add_text(EVIL)
    page.add_facts({EVIL: EVIL, "noted": (0.5, EVIL)})
    page.add_table([{EVIL: EVIL, "n": 1}, {"n": 2}])
    page.add_table([], columns=[EVIL])
    page.add_table([])
    page.add_figure(_png(4, 3), EVIL)
    page.add_code(EVIL)
    return page


def test_every_text_is_escaped_and_tags_are_balanced() -> None:
    parser = _Tags()
    parser.feed(_full_page().to_html())
    assert parser.open == []
    tags = [tag for tag, _ in parser.seen]
    assert "script" not in tags
    assert tags.count("table") == 3
    image = next(attributes for tag, attributes in parser.seen if tag == "img")
    assert image["alt"] == EVIL


def test_page_needs_no_network_and_follows_the_colour_scheme() -> None:
    html = _full_page().to_html()
    assert not re.search(r"https?://|url\(|@import|<link", html)
    assert "prefers-color-scheme: dark" in html


def test_write_makes_the_folder_and_keeps_unicode(tmp_path: Path) -> None:
    page = Page("Größe · 猫")
    page.write(tmp_path / "new" / "page.html")
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert text == page.to_html()
    assert "Größe · 猫" in text


def test_figure_is_embedded_at_its_physical_size() -> None:
    page = Page("figures")
    page.add_figure(_png(300, 30, dpi=192), "fine")
    page.add_figure(_png(300, 30), "plain")
    html = page.to_html()
    assert base64.b64encode(_png(300, 30)).decode() in html
    assert re.findall(r'width="(\d+)"', html) == ["150", "300"]


def test_table_formats_numbers_by_column() -> None:
    page = Page("table")
    page.add_table(
        [
            {"name": "a", "f1": 0.97, "count": 1024, "rate": 3e-5, "ms": 123.456, "ok": True},
            {"name": 7, "f1": np.float32(0.5), "count": np.int64(50000), "rate": 1e-3, "ms": 1.5},
        ]
    )
    rows = re.findall(r"<tr>(.*)</tr>", page.to_html())
    cells = [re.findall(r"<td( class=\"number\")?>([^<]*)</td>", row) for row in rows]
    shown = [[text for _, text in row] for row in cells if row]
    assert shown == [
        ["a", "0.970", "1024", "3e-05", "123.5", "True"],
        ["7", "0.500", "50,000", "0.001", "1.5", "–"],  # noqa: RUF001
    ]
    assert [bool(mark) for mark, _ in cells[-1]] == [False, True, True, True, True, False]


def test_table_shows_the_columns_asked_for() -> None:
    rows = [{"label": "cat", "f1": 0.5, "support": 3}]
    page = Page("table")
    page.add_table(rows, columns=["support", "label"])
    assert re.findall(r"<th[^>]*>([^<]*)</th>", page.to_html()) == ["support", "label"]


def _sheet(*args: object, **options: object) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_contact_sheet(*args, **options))))  # type: ignore[arg-type]


def test_contact_sheet_has_the_expected_size_and_keeps_pixels_crisp() -> None:
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    pixels = _sheet([board] * 5, ["one\ntwo"] * 5, columns=3, cell=70)
    assert pixels.shape == (2 * (70 + 30 + 10) + 10, 3 * 80 + 10, 3)
    # 8 pixels fill the 64 inside the frame; without smoothing only black and white occur.
    assert set(np.unique(pixels[13:77, 13:77])) == {0, 255}


def test_contact_sheet_frames_right_and_wrong_and_takes_any_size() -> None:
    generator = np.random.default_rng(0)
    shapes = [(300, 20, 3), (5, 400, 4), (1, 1, 1)]
    images = [generator.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    long = "a very long caption that cannot fit below a cell"
    pixels = _sheet(images, [long, "", "x"], marks=[True, False, True])
    assert pixels.shape == (128 + 15 + 20, 3 * 138 + 10, 3)
    right, wrong = pixels[10, 10].astype(int), pixels[10, 148].astype(int)
    assert right.argmax() == 1
    assert wrong.argmax() == 0
    assert (pixels[138:, 138:148] == 255).all(), "the caption runs into the next cell"
    assert (pixels[138:, 10:138] < 128).any(), "the caption is missing"
