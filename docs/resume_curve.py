"""Draw docs/stories/resume.svg from docs/stories/resume.json, which tests/real/measure_resume.py measured."""

from __future__ import annotations

import json
from pathlib import Path

STORIES = Path(__file__).parent / "stories"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 20, 24, 44


def drawn(said: dict) -> str:
    """The curves as SVG."""
    first, middle = said["step"] + 1, len(said["nanotron"])
    steps = range(first, first + len(said["reference"]))
    values = [*said["reference"], *said["weights_alone"], *said["nanotron"], *said["megatron"]]
    low, high = min(values) - 0.05, max(values) + 0.05

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (len(steps) - 1)

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    def line(losses: list[float], start: int, colour: str, more: str = "") -> str:
        points = " ".join(f"{x(start + n):.1f},{y(loss):.1f}" for n, loss in enumerate(losses))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" {more}/>'

    def text(at: float, height: float, words: str, more: str = "") -> str:
        return f'<text x="{at:.1f}" y="{height:.1f}" {more}>{words}</text>'

    ticks = [round(low + (high - low) * n / 4, 1) for n in range(5)]
    legend = [
        ("#bbbbbb", "as it was: plain torch from Megatron's memory"),
        ("#1f77b4", "Nanotron 0.4, converted with its state"),
        ("#2ca02c", "Megatron-LM 0.16.1, converted back"),
        ("#d62728", "Nanotron 0.4, from the weights alone"),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#333333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#eeeeee"/>'
            + text(LEFT - 8, y(tick) + 4, f"{tick:.1f}", 'text-anchor="end"')
            for tick in ticks
        ),
        *(
            text(x(step), HEIGHT - BOTTOM + 18, str(step), 'text-anchor="middle"')
            for step in steps
            if (step - first) % 4 == 0
        ),
        text((LEFT + WIDTH) / 2, HEIGHT - 8, "step of the optimizer", 'text-anchor="middle"'),
        text(LEFT - 44, TOP - 8, "loss"),
        line(said["reference"], first, "#bbbbbb", 'stroke-opacity="0.7" style="stroke-width:7"'),
        line(said["weights_alone"], first, "#d62728"),
        line(said["nanotron"], first, "#1f77b4"),
        line(said["megatron"], first + middle, "#2ca02c"),
        *(
            f'<circle cx="{x(first + n):.1f}" cy="{y(loss):.1f}" r="4" fill="#000000"/>'
            for n, loss in enumerate(said["recorded"])
        ),
    ]
    for number, (colour, words) in enumerate(legend):
        height = HEIGHT - BOTTOM - 74 + 16 * number
        parts.append(
            f'<line x1="{LEFT + 12}" x2="{LEFT + 36}" y1="{height - 4}" y2="{height - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(text(LEFT + 42, height, words))
    parts.append(f'<circle cx="{LEFT + 24}" cy="{HEIGHT - BOTTOM - 14}" r="4" fill="#000000"/>')
    parts.append(text(LEFT + 42, HEIGHT - BOTTOM - 10, "Megatron-LM's own record"))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (STORIES / "resume.svg").write_text(drawn(json.loads((STORIES / "resume.json").read_text())))
