"""Latency over time as an SVG: what failed is red, what was retried orange; marks say what was done to the fleet."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .judge import is_failure

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 960, 320, 60, 30, 24
TICKS_MS = (1, 10, 100, 1000, 10000)


def svg(lines: Sequence[Mapping[str, Any]], marks: Sequence[tuple[float, str]], title: str) -> str:
    """A picture of a record. `marks` are moments (monotonic seconds) with a word each."""
    start: float = min(line["due"] for line in lines)
    span: float = max(line["done"] for line in lines) - start or 1.0

    def x(moment: float) -> float:
        return LEFT + (WIDTH - LEFT) * (moment - start) / span

    def y(milliseconds: float) -> float:
        share = math.log10(max(1.0, milliseconds)) / math.log10(TICKS_MS[-1])
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(1.0, share)

    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="14">{escape(title)}</text>',
    ]
    for tick in TICKS_MS:
        height = f"{y(tick):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{height}" y2="{height}" stroke="#ddd"/>')
        parts.append(f'<text x="4" y="{height}">{tick} ms</text>')
    seconds = range(0, int(span) + 1, max(1, int(span / 12)))
    parts.extend(f'<text x="{x(start + second):.1f}" y="{HEIGHT - 8}">{second} s</text>' for second in seconds)
    for moment, word in marks:
        place = f"{x(moment):.1f}"
        parts.append(f'<line x1="{place}" x2="{place}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#06c"/>')
        parts.append(f'<text x="{place}" y="{TOP + 10}" fill="#06c">{escape(word)}</text>')
    for line in sorted(lines, key=is_failure):
        color, radius = ("#c00", 3) if is_failure(line) else ("#e90", 2) if line["retries"] else ("#2a2", 1)
        latency = 1000 * (line["done"] - line["due"])
        parts.append(f'<circle cx="{x(line["due"]):.1f}" cy="{y(latency):.1f}" r="{radius}" fill="{color}"/>')
    return "\n".join([*parts, "</svg>\n"])
