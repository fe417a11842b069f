"""Plots as SVG files, by the standard library alone: bars and lines on a white card, axes from zero."""
from html import escape

COLOURS = ["#2563a8", "#d97706", "#3f8f5b", "#8b5fbf"]
OURS, THEIRS, REFERENCE = "#2563a8", "#8d99a8", "#c9b27c"
INK, FAINT, GRID = "#1f2933", "#5b6770", "#e3e7eb"
FONT = "font-family=\"system-ui, 'DejaVu Sans', Verdana, sans-serif\""
WIDTH = 760


def number(value):
    """A short number: three digits that mean something, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def text(x, y, words, size=13, anchor="start", colour=INK, weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def rect(x, y, w, h, colour, more=""):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{h:.1f}" fill="{colour}" {more}/>'


def line(x1, y1, x2, y2, colour, width=1.0):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def card(height, title, under, parts):
    """The whole picture: a white card, so that it can be read on a dark page too."""
    words = f"{title}. {under}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(words)}" {FONT}>'
    )
    frame = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#ffffff" stroke="{GRID}"/>'
    titles = [text(20, 30, title, 17, weight="600"), text(20, 50, under, 12, colour=FAINT)]
    return "\n".join([head, f"<title>{escape(title)}</title>", frame, *titles, *parts, "</svg>"]) + "\n"


def steps(most, wanted=5):
    """Round numbers from zero to just above `most`."""
    if most <= 0:
        return [0.0, 1.0]
    size = 10.0 ** -9
    while True:
        for round_number in (1, 2, 5):
            step = size * round_number
            if most / step <= wanted:
                count = int(most / step) + 1
                return [step * n for n in range(count + 1)]
        size *= 10


def ticks(value):
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def bars(title, under, rows, series, unit):
    """Lying bars. `rows`: (label, [(value, least, most) for each of `series`], colour or None); least to most is a whisker."""
    left = 34 + 7.8 * max(len(label) for label, *_ in rows)
    right, top = 90, 92 if len(series) > 1 else 74
    thick = 13 if len(series) > 1 else 18
    pitch = thick * len(series) + 14
    height = top + pitch * len(rows) + 46
    scale = steps(max(most for _, values, _ in rows for _, _, most in values))
    across = lambda v: left + (WIDTH - left - right) * v / scale[-1]
    bottom = top + pitch * len(rows)
    parts = []
    for tick in scale:
        parts += [line(across(tick), top - 6, across(tick), bottom, GRID)]
        parts += [text(across(tick), bottom + 18, ticks(tick), 12, "middle", FAINT)]
    parts.append(text(WIDTH - 20, bottom + 36, unit, 12, "end", FAINT))
    if len(series) > 1:
        at = left
        for n, name in enumerate(series):
            parts += [rect(at, 64, 12, 12, COLOURS[n]), text(at + 18, 75, name, 12)]
            at += 40 + 7.5 * len(name)
    for n, (label, values, colour) in enumerate(rows):
        y = top + n * pitch + 7
        weight = "600" if label.startswith("sixway") else "normal"
        parts.append(text(left - 10, y + thick * len(series) / 2 + 4, label, 13, "end", weight=weight))
        for s, (value, least, most) in enumerate(values):
            at = y + s * thick
            parts.append(rect(left, at, across(value) - left, thick - 2, colour or COLOURS[s], 'rx="2"'))
            if most > least:
                middle = at + thick / 2 - 1
                parts.append(line(across(least), middle, across(most), middle, INK, 1.2))
                parts += [line(across(e), middle - 3, across(e), middle + 3, INK, 1.2) for e in (least, most)]
            parts.append(text(across(max(value, most)) + 6, at + thick - 3.5, number(value), 11, colour=FAINT))
    parts.append(line(left, top - 6, left, bottom, INK))
    return card(height, title, under, parts)


def lines(title, under, points, series, x_name, unit):
    """Lines over a logarithmic x axis. `series`: (name, {x: value}); values start at zero."""
    from math import log10

    left, right, top, height = 70, 200, 84, 400
    bottom = height - 62
    low, high = log10(min(points)), log10(max(points))
    scale = steps(max(v for _, values in series for v in values.values()))
    across = lambda x: left + 20 + (WIDTH - left - right - 40) * ((log10(x) - low) / (high - low) if high > low else 0.5)
    up = lambda v: bottom - (bottom - top) * v / scale[-1]
    parts = []
    for tick in scale:
        parts += [line(left, up(tick), WIDTH - right, up(tick), GRID)]
        parts += [text(left - 8, up(tick) + 4, ticks(tick), 12, "end", FAINT)]
    for x in points:
        parts += [line(across(x), bottom, across(x), bottom + 5, INK)]
        parts += [text(across(x), bottom + 20, f"{x:,}", 12, "middle", FAINT)]
    parts.append(text((left + WIDTH - right) / 2, bottom + 42, x_name, 12, "middle", FAINT))
    parts.append(text(left - 44, top - 14, unit, 12, "start", FAINT))
    parts += [line(left, bottom, WIDTH - right, bottom, INK), line(left, top, left, bottom, INK)]
    ends = []
    for n, (name, values) in enumerate(series):
        colour = COLOURS[n % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{up(values[x]):.1f}" for x in sorted(values))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        for x, value in values.items():
            parts.append(f'<circle cx="{across(x):.1f}" cy="{up(value):.1f}" r="3.5" fill="{colour}"/>')
        last = max(values)
        ends.append([up(values[last]), f"{name}: {number(values[last])}", colour])
    # Names at the ends of the lines, pushed apart where they would lie on each other.
    ends.sort()
    for n in range(1, len(ends)):
        ends[n][0] = max(ends[n][0], ends[n - 1][0] + 17)
    over = max(0, ends[-1][0] - bottom) if ends else 0
    parts += [text(WIDTH - right + 8, y - over + 4, name, 13, colour=colour, weight="600") for y, name, colour in ends]
    return card(height, title, under, parts)
