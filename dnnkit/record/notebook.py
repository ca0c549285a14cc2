"""A figure that a notebook shows as it is, whether or not pyplot, which would teach it to, was ever imported."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure of matplotlib with the method by which Jupyter asks for a picture."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
