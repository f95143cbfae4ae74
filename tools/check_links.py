"""Every link of a built site leads to a page, a file or an anchor that is there; those to other sites are only counted."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value:
                self.links.add(value)


def main(folder: str) -> int:
    root = Path(folder).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")}
    broken, outside, inside = [], set(), 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the place where the site will be
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside.add(link)
                continue
            inside += 1
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = place / "index.html" if place.is_dir() else place
            if not place.is_file():
                broken.append(f"{path.relative_to(root)}: {link}")
            elif parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].anchors:
                broken.append(f"{path.relative_to(root)}: {link} (no such anchor)")
    print("\n".join(broken))
    print(f"{len(pages)} pages, {inside} links inside, {len(broken)} broken; {len(outside)} links to other sites")
    return int(bool(broken) or len(pages) < 10)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
