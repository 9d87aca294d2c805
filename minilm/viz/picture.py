"""What all pictures share: colours that everyone can tell apart, a light ground, a description in words."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: told apart with every kind of colour vision. Blue and orange come first.
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
SKY, RED, YELLOW = "#56b4e9", "#d55e00", "#f0e442"
INK, GREY, PALE = "#222222", "#8a8a8a", "#e4e4e4"
SILVER = "#999999"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
AMOUNT = "cividis"  # a colour map for values from nothing to much
SIGNED = "PuOr"  # a colour map for values around zero: give it vmin = -vmax

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler('color', {list(CYCLE)!r})",
    "figure.facecolor": "white",  # a ground of its own, so that a dark page does not swallow the ink
    "savefig.facecolor": "white",
}
DOTS_PER_INCH = 96


class Picture:
    """A figure and what it shows, in words: the text stands below it, and a screen reader reads it."""

    def __init__(self, figure: Figure, alt: str):
        """figure: drawn with subplots(). alt: what a reader should see in it, in a sentence or two."""
        if not alt.strip():
            raise ValueError("a picture needs a description (alt), for those who cannot see it")
        self.figure, self.alt = figure, " ".join(alt.split())
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
        for legend in filter(None, legends):  # made when the style of subplots() held no more
            legend.set_frame_on(False)

    def png(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        with rc_context(STYLE):
            # No software version and no date inside: the same picture is the same file.
            self.figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        return buffer.getvalue()

    def __repr__(self) -> str:
        return self.alt

    def _ipython_display_(self) -> None:
        show(self.png(), self.alt)


def show(png: bytes, alt: str, others: dict[str, Any] | None = None) -> None:
    """Display a picture in a notebook, with its description as its alternative and as a line below it.

    others: richer forms of it for pages that know them, by MIME type.
    """
    from IPython.display import display

    forms = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display((others or {}) | forms, raw=True, metadata={"image/png": {"alt": alt}})
    display({"text/plain": alt, "text/markdown": f"*{alt}*"}, raw=True)


def subplots(
    rows: int = 1, columns: int = 1, width: float = 7.5, height: float = 2.6, **settings: Any
) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes, as pyplot.subplots gives them; sizes in inches."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **settings)


def heat_map(
    axes: Axes,
    values: Any,
    signed: bool = False,
    limit: float | None = None,
    label: str = "",
    **settings: Any,
) -> None:
    """Draw a table of numbers as colours, with the scale beside it.

    values: [rows, columns], a tensor or an array.
    signed: colours for both signs around zero; else from nothing to much.
    limit:  the number that gets the strongest colour; by default the largest.
    """
    shown = values.detach().float().numpy() if hasattr(values, "detach") else values
    reach = limit if limit is not None else (abs(shown).max() or 1.0)
    image = axes.imshow(
        shown, cmap=SIGNED if signed else AMOUNT, vmin=-reach if signed else 0.0, vmax=reach,
        interpolation="nearest", aspect="auto", **settings,
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)


def explore(draw: Callable[..., Picture], **values: Sequence[Any]) -> None:
    """Display a picture with a slider for each of its parameters; without a running kernel, its first state.

    draw:   makes the picture from one value of each parameter, by name.
    values: what each slider offers. The first picture takes the middle one.
    """
    if not values or not all(values.values()):
        raise ValueError("give at least one parameter, each with the values that its slider offers")
    import ipywidgets

    start = {name: offered[len(offered) // 2] for name, offered in values.items()}
    first = draw(**start)
    image = ipywidgets.Image(value=first.png(), format="png")
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=[(f"{value:g}" if isinstance(value, (int, float)) else str(value), value)
                     for value in offered],
            value=start[name], description=name, continuous_update=False,
        )
        for name, offered in values.items()
    }  # fmt: skip
    own_size = ipywidgets.Layout(align_items="flex-start")  # else the page stretches the picture
    box = ipywidgets.VBox([*sliders.values(), image], layout=own_size)

    def redraw(_: Any) -> None:
        picture = draw(**{name: slider.value for name, slider in sliders.items()})
        image.value, image.alt = picture.png(), picture.alt

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    # One output in two forms: the sliders where a kernel moves them, the picture everywhere else.
    show(first.png(), first.alt, box._repr_mimebundle_())
