"""Bar charts as SVG, made by hand so that they need nothing and look the same everywhere: no script,
no outer font, colours that follow the reader's light or dark theme."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 760
LABELS = 190
VALUES = 120
BAR = 22
GAP = 12
TOP = 84

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328; }
  .title { font-size: 17px; font-weight: 600; }
  .note, .value { fill: #59636e; }
  .ours { font-weight: 600; }
  .a { fill: #8c959f; } .b { fill: #c4cbd2; }
  .ours.a { fill: #0969da; } .ours.b { fill: #80b5f0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .note, .value { fill: #9198a1; }
    .a { fill: #7d8590; } .b { fill: #484f58; }
    .ours.a { fill: #4493f8; } .ours.b { fill: #1f4f8f; }
  }"""


@dataclass(frozen=True)
class Bar:
    """A label and one or two parts that make up its length."""

    label: str
    parts: tuple
    ours: bool = False

    @property
    def total(self):
        return sum(self.parts)


def bars(title, note, rows, form="{:.1f}", legend=()):
    """A chart with the smallest bar on top."""
    rows = sorted(rows, key=lambda bar: bar.total)
    longest = max([bar.total for bar in rows], default=0) or 1
    scale = (WIDTH - LABELS - VALUES) / longest
    height = TOP + len(rows) * (BAR + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, QUOTE)}">',
        f"<style>{STYLE}\n</style>",
        f'<text class="title" x="0" y="20">{escape(title)}</text>',
        f'<text class="note" x="0" y="44">{escape(note)}</text>',
    ]
    lines += legend_of(legend)
    for place, bar in enumerate(rows):
        lines += one(bar, TOP + place * (BAR + GAP), scale, form)
    return "\n".join([*lines, "</svg>", ""])


QUOTE = {'"': "&quot;"}


def one(bar, y, scale, form):
    """The label, the parts side by side, the number."""
    ours = " ours" if bar.ours else ""
    middle = y + BAR - 6
    lines = [f'<text class="label{ours}" x="0" y="{middle}">{escape(bar.label)}</text>']
    x = LABELS
    for part, size in zip("ab", bar.parts, strict=False):
        # Less than nothing is possible where a difference is shown; it has no length.
        width = max(size * scale, 0)
        lines.append(
            f'<rect class="{part}{ours}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"/>'
        )
        x += width
    value = form.format(bar.total)
    lines.append(f'<text class="value{ours}" x="{x + 8:.1f}" y="{middle}">{escape(value)}</text>')
    return lines


def legend_of(names):
    """What the parts are, above the bars."""
    lines, x = [], LABELS
    for part, name in zip("ab", names, strict=False):
        lines.append(f'<rect class="{part}" x="{x}" y="58" width="10" height="10"/>')
        lines.append(f'<text class="note" x="{x + 16}" y="68">{escape(name)}</text>')
        x += 90
    return lines
