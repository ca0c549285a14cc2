"""Write docs/catalogue.md and docs/catalogue/*.png: `make docs`, or `python -m docs.generate` in the root of the repository."""

from __future__ import annotations

from pathlib import Path

from docs.generate.figures import FIGURES
from docs.generate.page import PAGE, text
from docs.generate.records import builtin


def main() -> None:
    """Everything, whether or not it has changed."""
    folder = Path(__file__).parents[1]
    (folder / PAGE).write_text(text(), encoding="utf-8")
    print(folder / PAGE)
    for group, draw in FIGURES.items():
        path = folder / "catalogue" / f"{group}.png"
        path.parent.mkdir(exist_ok=True)
        names = [record.name for record in builtin(group)]
        # What was drawn is in the file, so that a test can tell an old figure from a new one.
        draw().savefig(path, dpi=110, metadata={"Description": " ".join(names), "Software": None})
        print(path)


if __name__ == "__main__":
    main()
