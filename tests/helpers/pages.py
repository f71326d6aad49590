"""An HTML page as a test sees it: its elements, text, links and colours."""
import html
import re
from html.parser import HTMLParser
from typing import NamedTuple

INLINE = {"span", "code", "strong"}
VOID = {"meta", "link", "img", "br"}


class Element(NamedTuple):
    tag: str
    attributes: dict
    within: tuple


class Page(HTMLParser):
    """elements in their order; text, all that is shown; unclosed or wrongly closed tags are an error."""

    def __init__(self, source):
        super().__init__()
        self.html, self.elements, self.stack, self.text = source, [], [], ""
        self.feed(source)
        self.close()
        assert self.stack == [], self.stack

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> says an attribute twice"
        self.elements.append(Element(tag, dict(attrs), tuple(self.stack)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs), tuple(self.stack)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, (tag, self.stack)
        self.text += "" if tag in INLINE else " "

    def handle_data(self, data):
        if not {"style", "title", "desc"} & set(self.stack):
            self.text += data

    def of(self, tag):
        return [element for element in self.elements if element.tag == tag]

    @property
    def words(self):
        """The text with each white space as one."""
        return " ".join(self.text.split())

    @property
    def commands(self):
        return [html.unescape(text) for text in re.findall(r"<code>(.*?)</code>", self.html, re.DOTALL)]

    @property
    def links(self):
        """Whatever a browser would fetch or follow."""
        found = [value for element in self.elements for name, value in element.attributes.items()
                 if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href")]
        return found + re.findall(r"(?:url\(|@import )([^)\s]*)", self.html)


def themes(source):
    """{light, dark, print: {variable: #rrggbb}} of the page's style."""
    style = source.partition("<style>")[2].partition("</style>")[0]
    light, dark, printed = re.findall(r":root \{\s+(--[^}]*)\}", style)
    return {name: dict(re.findall(r"--([\w-]+): (#\w{6})", block))
            for name, block in (("light", light), ("dark", dark), ("print", printed))}


def contrast(one, other):
    """WCAG 2.2: (L1 + 0.05) / (L2 + 0.05) of the relative luminances of #rrggbb."""
    def luminance(color):
        parts = [int(color[first:first + 2], 16) / 255 for first in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
