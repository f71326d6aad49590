"""Texts that a form may read as more than text, and a reader of Markdown that finds out."""
from markdown_it import MarkdownIt

from pwoa_cli.reports import escapes

NASTY = {
    "HTML": "<script>alert(1)</script><img src=x onerror=1><!-- a --> <br/>",
    "links": "[x](http://evil) ![i](http://evil/i.png) [x][y] <http://evil> [x]: http://evil",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~ `f` ``g`` snake_case_name",
    "tables": "a|b||c \\| d \\\\| e\\",
    "lines": "a\n\n# heading\n- item\n| row |\n::error::x\r\n##[error]y\u2028z",
    "terminal": "\x1b[31mred\x1b[0m \x07 \x9b2J \u202ereversed \udcff",
    "entities": "&lt;b&gt; &#60; &amp AT&T \\* \\< C:\\new\\_x",
    "headings": "# a # ## b ##", "mathematics": "$a$ $$b$$", "markup": "[red]x[/red] [/x] [link=http://e]y[/]",
    "figures": "93.2 [91.5, 94.6] < 0.05 > - 8/255", "quotation": "> a", "list": "- a", "numbers": "1. a",
}
BLOCKS = ("inline", "heading", "paragraph", "bullet", "list", "table", "thead", "tbody", "tr", "th", "td")
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def rendered(text):
    """The text of Markdown, of each block; anything but text, tables, headings and lists is a failure."""
    blocks = []
    for token in MARKDOWN.parse(text):
        assert token.type.split("_")[0] in BLOCKS, token
        if token.type == "inline":
            assert all(child.type in ("text", "text_special") for child in token.children), token
            blocks.append("".join(child.content for child in token.children))
    return blocks


def flat(text):
    return " ".join(escapes.visible(text).split())
