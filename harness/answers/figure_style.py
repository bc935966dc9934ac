"""How every figure looks: one palette safe for colour-blind eyes, quiet axes, a caption that says what n is."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from harness.budget import Currency
from harness.checkpoint import write_atomically

INK = "#222222"
QUIET = "#8c8c8c"
FAINT = "#e3e3e3"
FIRST = "#0072b2"
SECOND = "#d55e00"
HYBRID = "#009e73"
BEST = "#111111"
BAND = "#9ecae1"
DOTS_PER_INCH = 150
CAPTION_INCHES_A_LINE = 0.16
CAPTION_LETTERS_AN_INCH = 14.5

P = ParamSpec("P")


SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "mathtext.default": "regular",
}


def styled(draw: Callable[P, None]) -> Callable[P, None]:
    """All that a drawing function makes has the one look, and nobody else's figures change."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> None:
        with plt.rc_context(SETTINGS):
            draw(*args, **kwargs)

    return inside


def new_figure(
    rows: int,
    columns: int,
    *,
    width: float = 9.0,
    height: float,
    heights: Sequence[float] | None = None,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """An empty figure of a size in inches, and its axes row by row."""
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, height),
        squeeze=False,
        layout="constrained",
        height_ratios=heights,
        sharex=sharex,
        sharey=sharey,
    )
    return figure, list(axes.ravel())


def finish(figure: Figure, path: Path, caption: str) -> None:
    """Put the caption under the panels, and write the PNG whole or not at all."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(caption, int(CAPTION_LETTERS_AN_INCH * width))
    foot = (CAPTION_INCHES_A_LINE * len(lines) + 0.12) / height
    figure.set_layout_engine("constrained", rect=(0.0, foot, 1.0, 1.0 - foot))
    figure.text(0.012, 0.06 / height, "\n".join(lines), fontsize=8.5, color=QUIET, ha="left", va="bottom")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    write_atomically(path, picture.getvalue())


def fork_colours() -> Colormap:
    """From early forks (dark) to late ones; the palest end of the map is left out, it fades on paper."""
    return LinearSegmentedColormap.from_list("forks", plt.get_cmap("viridis")(np.linspace(0, 0.88, 256)))


def density_colours() -> Colormap:
    """White where there is nothing, which the first tenth of the ramp fades into; then darker and darker."""
    ramp = plt.get_cmap("magma_r")(np.linspace(0.04, 0.95, 256))
    fade = np.clip(np.linspace(0, 10, 256), 0, 1)[:, None]
    return LinearSegmentedColormap.from_list("density", ramp * fade + (1 - fade))


def cost_label(currency: Currency, what: str = "training cost") -> str:
    return f"{what} / device-seconds" if currency is Currency.DEVICE_SECONDS else f"{what} / FLOP"
