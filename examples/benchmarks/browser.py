"""Goes through the page of a run in a real browser, as somebody would, and says what it found.

    python examples/benchmarks/browser.py RUN PHOTO OUT [--data DIR] [--chromium /usr/bin/chromium]

Needs `pip install playwright` and Chromium. Opens `fastmask app RUN`, tries the photo and files that are none, browses,
filters, goes through photos by keyboard, marks a number twice and a label, looks into the table of fixes, takes them
back. Writes pictures of the page, 1200 and 390 pixels wide, light and dark, to OUT. Exits 1 where the page did not do
what it should, asked another host for anything, or complained in its console. Nothing is written beside the run.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

LAUNCH = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, NARROW = (1200, 900), (390, 844)
# milliseconds that a busy machine may take for anything
PATIENCE = 180_000
BEGINNING = "Predictions are shown here"


@contextmanager
def served(run: Path, fixes: Path, data: str | None) -> Iterator[str]:
    """The address of the page of a run, in a process of its own."""
    options = [] if data is None else ["--data", data]
    command = [sys.executable, "-m", "fastmask", "app", str(run), "--fixes", str(fixes), "--port", "7900", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = []
            for line in process.stderr or ():
                said.append(line)
                if found := re.search(r"Open (http://\S+)", line):
                    yield found[1]
                    break
            else:
                raise SystemExit("".join(said))
        finally:
            process.terminate()


class Watch:
    """What pages complain of, and whom else they ask."""

    def __init__(self, address: str) -> None:
        self.address, self.asked = address, 0
        self.complaints: list[str] = []
        self.others: list[str] = []

    def open(self, browser: Browser, size: tuple[int, int], scheme: str) -> Page:
        """The page in a window of a size, light or dark."""
        window = {"width": size[0], "height": size[1]}
        page = browser.new_context(viewport=window, color_scheme=scheme).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", self.hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.see(request.url))
        page.goto(self.address)
        expect(page.get_by_role("tab", name="Try a photo")).to_be_visible()
        return page

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def see(self, url: str) -> None:
        self.asked += 1
        if not url.startswith((self.address, "data:", "blob:")):
            self.others.append(url)


def shoot(page: Page, out: Path, name: str, whole: bool = True) -> None:
    """A picture of the page once it has come to rest."""
    page.mouse.move(0, 0)
    time.sleep(1)
    page.screenshot(path=out / f"app-{name}.png", full_page=whole)


def fits(page: Page, name: str) -> None:
    """Nothing sticks out at the side."""
    over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert over <= 0, f"{name}: {over} pixels stick out at the side"


def send(page: Page, photo: Path) -> None:
    page.locator("#fm-photo input[type=file]").first.set_input_files(photo)


def try_photos(page: Page, photo: Path, folder: Path, out: Path, name: str) -> None:
    """A photo, where its networks look, and files that are no photos."""
    expect(page.locator("#fm-said")).to_contain_text(BEGINNING)
    send(page, photo)
    expect(page.locator("#fm-said .fm-bars").first).to_be_visible()
    expect(page.locator("#fm-tried-heat img")).to_be_visible()
    fits(page, name)
    shoot(page, out, f"try-{name}")
    first = page.locator("#fm-tried-heat figcaption").inner_text()
    page.locator("#fm-tried-head input[type=radio]").nth(1).check()
    expect(page.locator("#fm-tried-heat figcaption")).not_to_have_text(first)
    bad = {"text.jpg": b"no photo", "empty.jpg": b"", "cut.jpg": photo.read_bytes()[:300], "drawing.svg": b"<svg/>"}
    for wrong, content in bad.items():
        (folder / wrong).write_bytes(content)
        page.get_by_role("button", name="Remove Image").click()
        expect(page.locator("#fm-said")).to_contain_text(BEGINNING)
        send(page, folder / wrong)
        expect(page.locator("#fm-said .fm-bad")).to_contain_text(wrong)
    shoot(page, out, f"bad-{name}")


def too_large(page: Page, folder: Path, watch: Watch) -> None:
    """A file that is too long is refused before it is sent."""
    with (folder / "long.jpg").open("wb") as opened:
        opened.truncate(40 * 2**20)
    page.get_by_role("button", name="Remove Image").click()
    expect(page.locator("#fm-said")).to_contain_text(BEGINNING)
    before = len(watch.complaints)
    send(page, folder / "long.jpg")
    said = page.get_by_text(re.compile("exceed the maximum", re.I)).first
    expect(said).to_be_visible()
    expect(said).to_be_hidden()
    # Gradio asks how far it is with what it has not sent
    kept = [line for line in watch.complaints[before:] if "upload_progress" not in line and "Response" not in line]
    watch.complaints[before:] = kept


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)


def current(page: Page) -> str:
    return page.locator("#fm-grid [aria-current]").get_attribute("data-row") or ""


def browse(page: Page, out: Path, name: str) -> None:
    """The first mistakes, a photo, filters, pages, the keyboard."""
    page.get_by_role("tab", name="Browse").click()
    expect(page.locator("#fm-grid button").first).to_be_visible()
    expect(page.locator("#fm-heat img")).to_be_visible()
    assert page.locator("#fm-grid button").count() <= 24
    fits(page, name)
    shoot(page, out, f"browse-{name}")
    total = re.search(r"(\d+) photos", page.locator(".fm-header").inner_text())
    assert total is not None
    choose(page, "Show", "all")
    expect(page.locator("#fm-where")).to_contain_text(f"of {total[1]}")
    turn_by_key(page)
    page.locator("#fm-grid button").nth(2).click()
    for button, number in (("Next ›", 2), ("‹ Previous", 1), ("Next ›", 2)):
        page.get_by_role("button", name=button).click()
        expect(page.locator("#fm-where")).to_contain_text(f"page {number}")
        # a page that is turned to begins with its first photo
        expect(page.locator("#fm-grid button").first).to_have_attribute("aria-current", "true")
    page.locator("#fm-grid button").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#fm-grid button").last).to_have_attribute("aria-current", "true")
    last = page.locator("#fm-facts").inner_text()
    page.keyboard.press("Home")
    expect(page.locator("#fm-grid button").first).to_have_attribute("aria-current", "true")
    expect(page.locator("#fm-facts")).not_to_have_text(last)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#fm-grid button").nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#fm-grid button").nth(1)).not_to_be_focused()
    page.get_by_role("button", name="Previous photo").click()
    page.get_by_label("Search").fill("no such person")
    expect(page.locator("#fm-grid")).to_contain_text("No photo matches.")
    page.get_by_label("Search").fill("")
    expect(page.locator("#fm-where")).to_contain_text(f"of {total[1]}")


def turn_by_key(page: Page) -> None:
    """The arrow keys go on where no photo has the focus, and from the last photo of a page to the next page."""
    page.locator("h1").click()
    first = current(page)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#fm-grid button").nth(1)).to_have_attribute("aria-current", "true")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(f'#fm-grid [data-row="{first}"]')).to_have_attribute("aria-current", "true")
    last = page.locator("#fm-grid button").last
    last.focus()
    page.keyboard.press("Enter")
    row = current(page)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#fm-where")).to_contain_text("page 2")
    expect(page.locator("#fm-grid button").first).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#fm-where")).to_contain_text("page 1")
    expect(page.locator(f'#fm-grid [data-row="{row}"]')).to_be_focused()


def mark_number(page: Page, fixes: Path) -> None:
    """A number is marked, and marked again; the photo after is looked at, and this one again; it is taken back."""
    page.locator("#fm-grid button").first.click()
    choose(page, "Label of", "age")
    right, said = (
        page.get_by_role("spinbutton", name=re.compile("Correct number")),
        page.locator("#fm-form-said .fm-good"),
    )
    expect(right).to_be_visible()
    labelled = re.search(r"Label: .*\((\d+)\)", page.locator("#fm-form").inner_text())
    one, two, three = [n for n in ("21", "22", "23", "24") if labelled is None or n != labelled[1]][:3]
    for value, whole in ((one, False), (two, False), (three, True)):
        if whole:
            page.locator("#fm-back").click()
            expect(said).to_contain_text("Removed: age")
            page.get_by_role("radio", name=re.compile("^all .* photos")).check()
        right.fill(value)
        page.locator("#fm-write").click()
        expect(said).to_contain_text(f"is {value} ")
        written = pd.read_csv(fixes, dtype=str, keep_default_na=False).to_dict("records")
        assert [row["value"] for row in written] == [value], written
        page.get_by_role("button", name="Next photo").click()
        expect(page.locator("#fm-grid button").nth(1)).to_have_attribute("aria-current", "true")
        expect(said).to_be_hidden()
        page.locator("#fm-grid button").first.click()
        expect(page.locator("#fm-facts")).to_contain_text(f"→ {value}")
        choose(page, "Label of", "age")
        expect(page.locator("#fm-form .fm-good").first).to_contain_text("Marked: age")
        expect(right).to_have_value(value)
    page.locator("#fm-back").click()
    expect(said).to_contain_text("Removed: age")
    assert pd.read_csv(fixes).empty
    assert page.locator(".toast-body").count() == 0, page.locator(".toast-body").all_inner_texts()
    assert "common." not in page.locator("body").inner_text()


def mark(page: Page, fixes: Path, out: Path, name: str) -> None:
    """A label is marked, stands in the table of fixes, and is taken back from the list of all."""
    expect(page.locator("#fm-grid button").first).to_be_visible()
    page.locator("#fm-grid button").first.click()
    expect(page.locator("#fm-facts")).to_contain_text("Photo")
    choose(page, "Label of", "mask")
    right = page.get_by_role("combobox", name="Correct label", exact=True)
    expect(right).to_be_visible()
    right.click()
    labelled = re.search(r"Label: (\w+)", page.locator("#fm-form").inner_text())
    options = page.get_by_role("option").all_inner_texts()
    other = next(text.strip(" ✓\n") for text in options if labelled and labelled[1] not in text)
    page.get_by_role("option", name=re.compile(other)).click()
    page.locator("#fm-write").click()
    expect(page.locator("#fm-form-said .fm-good")).to_contain_text("Written to")
    expect(page.locator("#fm-grid .fm-marked").first).to_be_visible()
    written = pd.read_csv(fixes, dtype=str, keep_default_na=False).to_dict("records")
    assert [row["value"] for row in written] == [other], written
    shoot(page, out, f"mark-{name}")
    page.get_by_role("tab", name="Marked labels").click()
    expect(page.locator("#fm-marks tr")).to_have_count(2)
    fits(page, name)
    shoot(page, out, f"marks-{name}")
    page.get_by_role("button", name=re.compile("^Remove mask")).click()
    expect(page.locator("#fm-marks")).to_contain_text("No label is marked")
    assert pd.read_csv(fixes).empty


def tab_order(page: Page) -> list[str]:
    """What the tab key goes through in the tab of trying a photo; all of it has a name."""
    page.get_by_role("tab", name="Try a photo").click()
    page.locator("body").click(position={"x": 1, "y": 1})
    names: list[str] = []
    for _ in range(14):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(e => e === document.body ? '' : (e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || e.name ||"
            " e.tagName).trim().split('\\n')[0])(document.activeElement)"
        )
        names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    start = time.perf_counter()
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        fixes = Path(folder) / "fixes.csv"
        with served(given.run, fixes, given.data) as address:
            watch = Watch(address)
            browser = playwright.chromium.launch(executable_path=given.chromium, args=LAUNCH)
            for name, size, scheme in (("1200", WIDE, "light"), ("390", NARROW, "dark")):
                page = watch.open(browser, size, scheme)
                try_photos(page, given.photo, Path(folder), given.out, name)
                too_large(page, Path(folder), watch)
                browse(page, given.out, name)
                mark_number(page, fixes)
                mark(page, fixes, given.out, name)
                print(f"{name}: photo, files that are none, filters, pages, keys, marks: as they should be", flush=True)
                page.context.close()
            page = watch.open(browser, WIDE, "dark")
            print("tab key:", json.dumps(tab_order(page), ensure_ascii=False))
            page.get_by_role("tab", name="Browse").click()
            expect(page.locator("#fm-heat img")).to_be_visible()
            shoot(page, given.out, "browse-dark", whole=False)
            browser.close()
    print(f"requests {watch.asked}, to other hosts {len(watch.others)}, complaints {len(watch.complaints)},", end=" ")
    print(f"in {time.perf_counter() - start:.0f} s")
    for line in (*watch.others, *watch.complaints):
        print(" ", line)
    sys.exit(1 if watch.others or watch.complaints else 0)


if __name__ == "__main__":
    main()
