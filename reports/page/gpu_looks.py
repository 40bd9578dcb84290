"""A colour and a marker for every GPU of the library, the same in every report."""

# GPU: (a name in the palette, one of Plotly's symbols). The colours are those of operator classes
# and two more, which stay apart for every eye. Symbols tell GPUs apart without colour.
LOOKS = {
    "a100-40gb": ("sampling", "square"),
    "a100-80gb": ("attention", "triangle-down"),
    "h100-sxm": ("contractions", "circle"),
    "h100-pcie": ("experts", "pentagon"),
    "h200-sxm": ("elementwise", "triangle-up"),
    "b200": ("all-reduce", "star"),
    "l40s": ("draft", "diamond"),
    "rtx-4090": ("swap", "cross"),
    "rtx-pro-6000": ("all-to-all", "x"),
    "rtx-a6000": ("violet", "hexagram"),
    "rtx-3090": ("periwinkle", "star-square"),
    "mi300x": ("gather", "hexagon"),
    "cpu": ("launch", "hourglass"),
}
OTHER = ("host", "bowtie")  # a GPU that a reader has described


def gpu_look(name: str) -> tuple[str, str]:
    """The GPU's colour, by its name in the palette, and its marker."""
    return LOOKS.get(name, OTHER)
