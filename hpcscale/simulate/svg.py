"""Small charts as inline SVG text: lines, areas and points on two labelled axes. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40


@dataclass(slots=True)
class Chart:
    """One chart; marks are drawn in the order in which they are added.

    Attributes:
        title: for readers who do not see it.
        x_name: under the horizontal axis, with its unit.
        y_name: beside the vertical axis, with its unit.
        x_range: least and greatest value shown; so ``y_range``.
        width: pixels; so ``height``.
    """

    title: str
    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = 560
    height: int = 320
    marks: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Pixel of a horizontal value."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low or 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixel of a vertical value."""
        low, high = self.y_range
        return (
            self.height - BOTTOM - (value - low) / (high - low or 1) * (self.height - TOP - BOTTOM)
        )

    def _points(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(xs, ys, strict=True))

    def line(self, xs: Sequence[float], ys: Sequence[float], color: str, note: str = "") -> None:
        """A line through points."""
        self.marks.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="2" '
            f'points="{self._points(xs, ys)}"><title>{escape(note)}</title></polyline>'
        )

    def area(
        self,
        xs: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        color: str,
        note: str,
    ) -> None:
        """What lies between two lines."""
        back = self._points(list(reversed(xs)), list(reversed(low)))
        self.marks.append(
            f'<polygon fill="{color}" fill-opacity="0.55" stroke="none" '
            f'points="{self._points(xs, high)} {back}"><title>{escape(note)}</title></polygon>'
        )

    def side(self, x: float) -> int:
        """On which side of a dot its name stands: 1 is right, -1 is left."""
        return -1 if self.x(x) > self.width * 0.72 else 1

    def point(  # noqa: PLR0917 -- a point is its two values first
        self,
        x: float,
        y: float,
        color: str,
        label: str,
        note: str,
        shift: int = 0,
        *,
        ring: bool = False,
    ) -> None:
        """A dot with its name beside it, which tells more under the pointer.

        Args:
            x: horizontal value; so ``y``.
            color: of dot and name.
            label: the name.
            note: shown under the pointer.
            shift: pixels that the name is moved down by, or up.
            ring: a circle around the dot.
        """
        px, py = self.x(x), self.y(y)
        late = self.side(x) < 0
        if shift:  # which dot is meant
            to = px + (-8 if late else 8)
            self.marks.append(
                f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{to:.1f}" y2="{py - 11 + shift:.1f}" '
                f'stroke="{color}"/>'
            )
        self.marks.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{color}"><title>{escape(note)}'
            f'</title></circle><text x="{px + (-9 if late else 9):.1f}" y="{py - 7 + shift:.1f}" '
            f'style="fill:{color}" text-anchor="{"end" if late else "start"}">'
            f"{escape(label)}</text>"
        )
        if ring:
            self.marks.append(f'<circle class="ring" cx="{px:.1f}" cy="{py:.1f}" r="9"/>')

    def stairs(self, points: Sequence[tuple[float, float]], note: str) -> None:
        """A dashed line through these in their order: first up or down, then to the side."""
        path = ""
        for x, y in points:
            path += f"V{self.y(y):.1f}H{self.x(x):.1f}" if path else ""
            path = path or f"M{self.x(x):.1f} {self.y(y):.1f}"
        self.marks.append(f'<path class="front" d="{path}"><title>{escape(note)}</title></path>')

    def level(self, y: float, note: str) -> None:
        """A dashed horizontal line."""
        self.marks.append(
            f'<line class="level" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{self.y(y):.1f}" '
            f'y2="{self.y(y):.1f}"><title>{escape(note)}</title></line>'
        )

    def svg(self) -> str:
        """The chart."""
        size = f"0 0 {self.width} {self.height}"
        parts = [f'<svg viewBox="{size}" role="img" aria-label="{escape(self.title)}">']
        bottom = self.height - BOTTOM
        for tick in ticks(*self.y_range):
            py = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{py:.1f}" '
                f'y2="{py:.1f}"/><text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">'
                f"{number(tick)}</text>"
            )
        for tick in ticks(*self.x_range):
            px = self.x(tick)
            parts.append(
                f'<line class="axis" x1="{px:.1f}" x2="{px:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                f'<text x="{px:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
            )
        middle = (TOP + bottom) / 2
        parts += [
            f'<path class="axis" d="M{LEFT} {bottom}H{self.width - RIGHT}"/>',
            *self.marks,
            _name((LEFT + self.width - RIGHT) / 2, self.height - 6, self.x_name)
            if self.x_name
            else "",
            _name(13, middle, self.y_name, f' transform="rotate(-90 13 {middle:.0f})"'),
            "</svg>",
        ]
        return "".join(parts)


def _name(x: float, y: float, text: str, how: str = "") -> str:
    """An axis's name."""
    at = f'x="{x:.0f}" y="{y:.0f}" text-anchor="middle"'
    return f'<text class="name" {at}{how}>{escape(text)}</text>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values over a range, about so many."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's text: no more digits than it needs."""
    text = f"{value:,.4f}".rstrip("0").rstrip(".")
    return "0" if text in {"", "-0"} else text
