"""Text of files and users in every form that is shown, so that none of it is read as more than text: names of
files, tensors and classes, notes, errors."""
import re

_PUNCTUATION = r"[!-/:-@\[-`{-~]"
# what Markdown, with GitHub's tables, strikethrough, mathematics and bare links, would read as more than
# text; a bracket alone is a figure's interval
_ACTIVE = re.compile(
    r"[`*~<|$]"
    rf"|\\(?={_PUNCTUATION}|$)"  # an escape
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; inside a name it is none
    r"|\](?=[(\[])"  # a link or an image
    r"|&(?=#?\w+;)"  # an entity
    r"|(?<!\S)#"  # a heading, and its end
    r"|^>|^[-+](?= )|(?<=^\d)[.)](?= )"  # a quotation, a list
    r"|(?<=:)/(?=/)|(?<=www)\.")
# lines that GitHub's runner obeys wherever they stand in the log
_COMMAND = re.compile(r"^(\s*)(::|##\[)", re.MULTILINE)


def visible(text: str) -> str:
    """Control characters and broken Unicode as escapes; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def terminal(text: str) -> str:
    """For a terminal or a log: `visible`, and no line is a command to GitHub's runner."""
    return _COMMAND.sub(r"\1\\\2", visible(text))


def markdown(text: str) -> str:
    """For one line of Markdown, or a cell of a table: rendered, it is `visible(text)` on one line."""
    return _ACTIVE.sub(r"\\\g<0>", " ".join(visible(text).split()))


def workflow_command(text: str, *, of_property: bool = False) -> str:
    """For the data, or a property, of a workflow command of GitHub Actions."""
    for char in "%\r\n" + ",:" * of_property:
        text = text.replace(char, f"%{ord(char):02X}")
    return visible(text)
