"""A page of HTML as a test reads it, and text that would break out of a careless one."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = (
    '</pre><script>alert("x")</script><img src="http://evil/x.png" onerror=a> [/] \x1b[31mred\x1b[0m\x00'
)


VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, its visible text, and an error where the nesting is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"elements left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}
