"""A colour and a marker for every GPU of the library, the same in every report."""

# GPU: (a name in the palette, one of Plotly's symbols). The colours are those of operator classes
# and two more, which stay apart for every eye; relatives share one. Symbols tell all GPUs apart.
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
    "l4": ("draft", "diamond-open"),
    "l40": ("draft", "diamond-x"),
    "a10g": ("violet", "hexagram-open"),
    "t4": ("launch", "square-open"),
    "v100-32gb": ("sampling", "square-x"),
    "rtx-5090": ("swap", "cross-open"),
    "h20": ("elementwise", "circle-open"),
    "h800-sxm": ("contractions", "circle-x"),
    "h100-nvl": ("experts", "pentagon-open"),
    "gh200-96gb": ("contractions", "circle-dot"),
    "b300": ("all-reduce", "star-open"),
    "gb200": ("all-reduce", "star-dot"),
    "gb300": ("all-reduce", "star-diamond"),
    "mi325x": ("gather", "hexagon-open"),
    "mi355x": ("gather", "hexagon-dot"),
    "tpu-v5e": ("periwinkle", "triangle-left"),
    "tpu-v6e": ("periwinkle", "triangle-right"),
    "gaudi3": ("attention", "octagon"),
    "trainium2": ("all-to-all", "star-triangle-up"),
}
OTHER = ("host", "bowtie")  # a GPU that a reader has described


def gpu_look(name: str) -> tuple[str, str]:
    """The GPU's colour, by its name in the palette, and its marker."""
    return LOOKS.get(name, OTHER)
