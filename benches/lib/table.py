"""Samples, their medians, paired ratios, and the table that is printed."""

import statistics
from dataclasses import dataclass, field

OURS = "larder"


@dataclass
class Row:
    """One measurement of all contestants in the same rounds."""

    title: str
    unit: str = "ms"
    # The contestant whose ratio is 1.00x.
    reference: str = ""
    # True for rates, where more is better. Otherwise less is better.
    rate: bool = False
    # The target ratio of larder.
    target: str = ""
    # Contestant -> one value per round. The values of a round are compared with each other.
    samples: dict = field(default_factory=dict)
    # Contestant -> the reason why it has no values.
    absent: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def add(self, who, value):
        """Adds a value; the caller adds one per contestant and round."""
        self.samples.setdefault(who, []).append(value)

    def lines(self):
        """Returns a line per contestant: name, median, minimum to maximum, ratio, spread of the ratio, target."""
        reference = self.samples.get(self.reference, [])
        order = sorted(self.samples, key=lambda who: (not who.startswith(OURS), who != self.reference))
        for who in order:
            values = self.samples[who]
            ratios = [value / base for value, base in zip(values, reference) if base]
            yield [
                who,
                f"{number(statistics.median(values))} {self.unit}",
                f"{number(min(values))}–{number(max(values))}",
                f"{statistics.median(ratios):.2f}x" if ratios else "",
                f"{min(ratios):.2f}–{max(ratios):.2f}" if len(ratios) > 1 and who != self.reference else "",
                self.target if who.startswith(OURS) else "",
            ]
        for who in sorted(self.absent, key=lambda who: not who.startswith(OURS)):
            reason = self.absent[who].strip().splitlines() or ["no reason given"]
            yield [who, "–", "", "", "", f"not measured: {reason[0][:140]}"]


def number(value):
    """Formats a number with three significant digits."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render(rows, runs):
    """Formats the table as text."""
    head = ["row", "who", "median", "min–max", "ratio", "spread", "target (ours)"]
    body = []
    for row in rows:
        title = row.title + (" (more is better)" if row.rate else "")
        for line in row.lines():
            body.append([title, *line])
            title = ""
    out = columns(head, body)
    out += ["", f"Rounds per row: {runs}. Contestants take turns within a round; a ratio is the median of the rounds' own ratios to the"]
    out += ["line with 1.00x, its spread their minimum and maximum. Times of different runs of this program are not comparable."]
    notes = [(row.title, note) for row in rows for note in row.notes]
    if notes:
        out += ["", "Notes"]
        out += [f"  {title}: {note}" for title, note in notes]
    return "\n".join(out)


def columns(head, body):
    """Returns the lines of a table. The last column is not padded, and a line with a title in its first column begins a group."""
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head) - 1)]

    def text(line):
        cells = [cell.rjust(width) if column >= 2 else cell.ljust(width) for column, (cell, width) in enumerate(zip(line, widths))]
        return "  ".join([*cells, line[-1]]).rstrip()

    out = [text(head), text(["-" * width for width in widths] + ["-" * len(head[-1])])]
    for line in body:
        if line[0] and out[-1] and len(out) > 2:
            out.append("")
        out.append(text(line))
    return out


def rounds(runs, contestants):
    """Yields the order of contestants for each round. Each round starts with a different one, so that changes of speed affect all alike."""
    contestants = list(contestants)
    for index in range(runs):
        shift = index % len(contestants) if contestants else 0
        yield index, contestants[shift:] + contestants[:shift]
