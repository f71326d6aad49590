"""Plots of a report as inline SVG: colours are the page's CSS variables, text is text, nothing is fetched.

matplotlib draws with stand-in colours that `_inline` turns into variables, so one picture serves light and
dark. A series has a colour, a mark and a line style of its own: colour never says something alone.
"""
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pwoa_cli.reports.escapes import visible

INK, EDGE, GRID, PAPER = "#010101", "#020202", "#020203", "#010202"
SERIES = tuple(f"#0300{number:02x}" for number in range(1, 6))
MARKS, STYLES = "osD^v", ("-", "--", "-.", ":", (0, (5, 1)))
VARIABLES = {INK: "ink", EDGE: "line", GRID: "raised", PAPER: "paper"} | {
    color: f"series-{number}" for number, color in enumerate(SERIES, 1)}
SIZE = (4.6, 3.1)  # inches: 331 units wide, so that text of 10 can be read on a phone
LABEL = 32  # letters of a name in a legend
THINNED = 300  # points of a training curve at most
STYLE = {"svg.fonttype": "none", "font.size": 10, "text.color": INK, "axes.labelcolor": INK,
         "axes.edgecolor": EDGE, "xtick.color": INK, "ytick.color": INK, "grid.color": GRID,
         "grid.linewidth": 0.9, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
         "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
         "text.parse_math": False}


def over_eps(curves: Mapping[str, Sequence[tuple[float, float, float, float, bool]]], *, eps: float,
             name: str, says: str) -> str:
    """Accuracy over eps. Args: curves: by heading, (eps, accuracy, low, high, doubted), figures in percent;
    eps: of the threat; name: of the picture, an id; says: what is seen, for who does not see it."""
    def draw(axes: Any) -> None:
        for number, (who, points) in enumerate(curves.items()):
            x, y, low, high, doubted = zip(*points, strict=True)
            color = SERIES[number % len(SERIES)]
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=color, marker=MARKS[number % 5], linestyle=STYLES[number % 5],
                      label=_label(who))
            axes.plot([a for a, doubt in zip(x, doubted, strict=True) if doubt],
                      [b for b, doubt in zip(y, doubted, strict=True) if doubt], color=color,
                      marker=MARKS[number % 5], linestyle="none", markerfacecolor=PAPER)
        axes.axvline(eps, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("eps of the threat", (eps, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                      textcoords="offset points", ha="center", color=INK)
        axes.set(xlabel="eps", ylabel="accuracy in %", ylim=(0, 102), xlim=(0, None))
        axes.legend(loc="lower left")

    return _svg(draw, title="Accuracy over eps", name=name, says=says)


def over_epochs(rows: Sequence[Mapping[str, Any]], *, name: str, says: str) -> str:
    """The loss of training over epochs, a series for each phase. Args: rows: lines of the log with epoch,
    phase and loss, all above 0."""
    def draw(axes: Any) -> None:
        phases = dict.fromkeys(str(row["phase"]) for row in rows)
        for number, phase in enumerate(phases):
            own = [row for row in rows if row["phase"] == phase]
            own = own[::-(-len(own) // THINNED)]
            axes.plot([row["epoch"] for row in own], [row["loss"] for row in own], color=SERIES[number % 5],
                      linestyle=STYLES[number % 5], linewidth=1.4, label=_label(phase))
        axes.set(xlabel="epoch", ylabel="loss", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.legend(loc="lower right")

    return _svg(draw, title="Training loss", name=name, says=says)


def pareto(points: Sequence[tuple[float, float, float, float, bool]], *, xlabel: str, ylabel: str,
           reference: float | None, best_is_low: bool, name: str, says: str) -> str:
    """A numbered point a model. Args: points: (x, y, low, high, doubted), y in percent; what is doubted is
    hollow and in no front; reference: of the model that they are compared with; best_is_low: whether a small
    x is wanted."""
    def draw(axes: Any) -> None:
        x, y, low, high, _ = zip(*points, strict=True)
        errors = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=EDGE, capsize=3)
        for doubt, fill, label in ((False, SERIES[0], None), (True, PAPER, "unreliable")):
            own = [(a, b) for a, b, *_, doubted in points if doubted == doubt]
            if own:
                axes.plot(*zip(*own, strict=True), "o", color=SERIES[0], markerfacecolor=fill, label=label)
        front = _front([(a, b) for a, b, *_, doubted in points if not doubted], best_is_low=best_is_low)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=SERIES[1], linestyle="--", linewidth=1.2,
                      label="Pareto front")
        for number, (a, b, *_) in enumerate(points, 1):
            axes.annotate(str(number), (a, b), xytext=(5, 5), textcoords="offset points", color=INK)
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=1, linestyle=(0, (1, 2)), label="reference")
        axes.margins(0.12)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")

    return _svg(draw, title=f"{ylabel} against {xlabel}", name=name, says=says)


def _front(points: Sequence[tuple[float, float]], *, best_is_low: bool) -> list[tuple[float, float]]:
    """The points than which no other is better in both, by x."""
    sign = -1 if best_is_low else 1
    return sorted({(x, y) for x, y in points if not any(
        sign * a >= sign * x and b >= y and (a, b) != (x, y) for a, b in points)})


def _label(name: str) -> str:
    """A name for a legend: short, and shown even where it begins with "_", which hides it in matplotlib."""
    short = name if len(name) <= LABEL else f"{name[:LABEL // 2]}…{name[-LABEL // 2:]}"
    return f" {visible(short)}" if short.startswith("_") else visible(short)


def _svg(draw: Any, *, title: str, name: str, says: str) -> str:
    """Draw on axes, inline. name: makes ids of this picture its own."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = STYLE | {"svg.hashsalt": f"pwoa {name}"}
    # a glyph that matplotlib's font lacks is the browser's to draw
    with matplotlib.rc_context(style), warnings.catch_warnings(action="ignore"), io.StringIO() as file:
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
    return _inline(text, title=title, name=name, says=says)


def _inline(text: str, *, title: str, name: str, says: str) -> str:
    """The <svg> alone, with title and description, variables for colours, and no id that nothing refers
    to."""
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    (view,) = re.findall(r'viewBox="([^"]+)"', body)
    body = body[body.index(">") + 1:]
    used = set(re.findall(r"#([\w-]+)[\")]", body))
    body = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)  # joins of lines, for the whole page
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var(--{variable})")
    return (f'<svg viewBox="{view}" role="img" aria-labelledby="{name}-title {name}-says">'
            f'<title id="{name}-title">{html.escape(title)}</title>'
            f'<desc id="{name}-says">{html.escape(visible(says))}</desc>{body}')
