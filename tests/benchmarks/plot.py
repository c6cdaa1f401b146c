"""A picture of the comparison: for each workload a bar for each server, as SVG, for light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, COLUMNS = 960, 2
BAR, GAP = 14, 5  # pixels
LABEL, VALUE = 200, 70  # pixels left and right of the bars
TITLE, MARGIN = 34, 20
MOST = 8  # a bar ends at so many times the shortest; its number says the rest

STYLE = """
svg { color-scheme: light dark; }
.back { fill: #ffffff; } .text { fill: #24292f; } .faint { fill: #57606a; }
.limit { fill: #8c959f; } .peer { fill: #79a8d8; } .srvkit { fill: #d9622b; }
text { font: 11px system-ui, sans-serif; } .title { font-size: 13px; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  .back { fill: #161b22; } .text { fill: #e6edf3; } .faint { fill: #9ea7b3; }
  .limit { fill: #6e7681; } .peer { fill: #3f6fa3; } .srvkit { fill: #f0834f; }
}
"""


@dataclass(frozen=True)
class Bar:
    """One server; `kind` is limit, peer or srvkit."""

    name: str
    kind: str
    value: float


def draw(workloads: Mapping[str, Sequence[Bar]]) -> str:
    """Return the SVG of these workloads, the shorter columns filled first."""
    heights = [MARGIN] * COLUMNS
    parts: list[str] = []
    for title, bars in workloads.items():
        if not bars:
            continue
        column = heights.index(min(heights))
        left = MARGIN + column * (WIDTH - MARGIN) // COLUMNS
        parts += panel(title, bars, left, heights[column])
        heights[column] += TITLE + len(bars) * (BAR + GAP) + MARGIN
    height = max(heights) + MARGIN
    legend = "server CPU per operation, µs (less is better): grey C, blue other Python servers, orange srvkit"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>CPU time of the servers per operation</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="back" width="{WIDTH}" height="{height}" rx="8"/>',
            *parts,
            f'<text class="faint" x="{MARGIN}" y="{height - 12}">{legend}</text>',
            "</svg>\n",
        ]
    )


def panel(title: str, bars: Sequence[Bar], left: int, top: int) -> Iterator[str]:
    """One workload: its title and its bars."""
    room = (WIDTH - MARGIN) // COLUMNS - MARGIN - LABEL - VALUE
    longest = min(max(bar.value for bar in bars), MOST * min(bar.value for bar in bars))
    yield f'<text class="text title" x="{left}" y="{top + 16}">{escape(title)}</text>'
    for index, bar in enumerate(bars):
        y = top + TITLE - 8 + index * (BAR + GAP)
        length = max(1.0, room * min(1.0, bar.value / longest if longest else 0))
        cut = bar.value > longest
        start = left + LABEL
        label, number = escape(bar.name), f"{bar.value:.2f}" if bar.value < 3 else f"{bar.value:.1f}"
        ours = "text" if bar.kind == "srvkit" else "faint"
        yield f'<text class="{ours}" x="{start - 6}" y="{y + 11}" text-anchor="end">{label}</text>'
        yield f'<rect class="{bar.kind}" x="{start}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        if cut:
            yield f'<path class="back" d="M{start + length - 14:.1f} {y + BAR} l4 -{BAR} h3 l-4 {BAR} z"/>'
        yield f'<text class="{ours}" x="{start + length + 5:.1f}" y="{y + 11}">{number}</text>'
