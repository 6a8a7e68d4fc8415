"""The same rows with two builds of larder in turn: the table of what a change costs."""

import statistics
from dataclasses import dataclass, field

from lib.table import OURS, columns, number


@dataclass
class Pair:
    """The medians of larder in one line of the table, one per pass, with the build before and with the present build."""

    unit: str
    rate: bool
    before: list = field(default_factory=list)
    now: list = field(default_factory=list)

    def ratios(self):
        """Returns one ratio per pass: cost now over cost before, so that more than 1 is worse also for rates."""
        pairs = [(now, before) for now, before in zip(self.now, self.before) if now and before]
        return [before / now if self.rate else now / before for now, before in pairs]

    def verdict(self):
        """Returns `worse` or `better` if no pass disagrees, otherwise `within the spread`."""
        ratios = self.ratios()
        if not ratios:
            return "not measured"
        if min(ratios) > 1:
            return "worse"
        return "better" if max(ratios) < 1 else "within the spread"


def collect(passes):
    """Merges passes, each with the rows of the build before and of the present one, into a `Pair` per row and contestant."""
    pairs = {}
    for before, now in passes:
        for side, rows in (("before", before), ("now", now)):
            for row in rows:
                for who, values in row.samples.items():
                    if who.startswith(OURS):
                        pair = pairs.setdefault((row.title, who), Pair(row.unit, row.rate))
                        getattr(pair, side).append(statistics.median(values))
    return pairs


def render(modules):
    """Formats the passes of each measured module as one table."""
    pairs = {}
    for passes in modules:
        pairs.update(collect(passes))
    body = []
    for (title, who), pair in pairs.items():
        ratios = pair.ratios()
        body.append([
            title, who,
            *(f"{number(statistics.median(side))} {pair.unit}" if side else "–" for side in (pair.before, pair.now)),
            f"{statistics.median(ratios):.2f}x" if ratios else "",
            f"{min(ratios):.2f}–{max(ratios):.2f}" if ratios else "",
            pair.verdict(),
        ])
    out = columns(["row", "who", "before", "now", "cost", "spread", "verdict"], body)
    out += ["", f"Passes: {', '.join(str(len(passes)) for passes in modules)}. In each pass both builds are measured, in alternating order. The cost is the median of the passes' own ratios"]
    out += ["of the two medians; more than 1 is worse, also for rates. A row is `worse` only if it is worse in every pass."]
    absent = {(row.title, why) for passes in modules for sides in passes for rows in sides for row in rows for why in row.absent.values()}
    out += [f"Not measured: {title}: {why}" for title, why in sorted(absent)]
    return "\n".join(out)
