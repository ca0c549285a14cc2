"""The made-up berries of `bundled:berries.csv`: three species, mixed kinds of columns, missing cells.

`python -m dnnkit_plugins.examples.berries` prints the file. What tells the species apart are the weight for a given width,
the sugar and, in part, the colour; whether a bush grew wild and its plot say nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

ROWS = 360
_HEADER = "width_mm,weight_g,sugar_brix,seeds,colour,wild,plot,species"
#: Per species: mean width (mm), density (g/cm³), mean sugar (°Bx), mean number of seeds, and how often each colour is seen.
_SPECIES = {
    "bilberry": (8.0, 1.00, 9.0, 30, {"blue": 7, "black": 3}),
    "honeyberry": (9.5, 0.80, 12.5, 18, {"blue": 9, "purple": 1}),
    "jostaberry": (10.5, 0.95, 11.0, 24, {"black": 6, "purple": 4}),
}


def lines(seed: int = 0) -> Iterator[str]:
    """The lines of the file; Python's own generator, whose numbers are the same everywhere."""
    draw = random.Random(seed)
    yield _HEADER
    for _ in range(ROWS):
        species = draw.choices(list(_SPECIES), (4, 3, 3))[0]
        mean_width, density, mean_sugar, mean_seeds, colours = _SPECIES[species]
        width = draw.gauss(mean_width, 1.1)
        weight = density * 0.52 * (width / 10) ** 3 * draw.gauss(1, 0.05)
        cells = [f"{width:.1f}", f"{weight:.3f}", f"{draw.gauss(mean_sugar, 0.9):.1f}", str(max(1, round(draw.gauss(mean_seeds, 4))))]
        cells += [draw.choices(list(colours), list(colours.values()))[0], draw.choice(("true", "false")), draw.choice("ABCD")]
        yield ",".join(["" if draw.random() < 0.03 else cell for cell in cells] + [species])


if __name__ == "__main__":
    print("\n".join(lines()))
