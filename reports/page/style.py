"""How every report looks: one colour per thing, light and dark, and the style sheet.

The colours are chosen from Okabe and Ito (2008) and Tol (2021) so that neighbours in a chart stay
apart under protanopia, deuteranopia and tritanopia; a test measures it.
"""

from typing import Any

# thing: (light, dark). No two light colours are equal, so that a page can turn one into the other.
PALETTE: dict[str, tuple[str, str]] = {
    # what the engine does, and the latency it governs
    "prefill": ("#d55e00", "#f4874b"),
    "decode": ("#0072b2", "#4ba6e3"),
    "waiting": ("#e9b44c", "#f0c566"),
    "running": ("#117733", "#3fa868"),
    "preempted": ("#882255", "#cc4f90"),
    "stalled": ("#b9c0c9", "#454d58"),
    "held": ("#9aa1aa", "#6d7681"),
    "e2e": ("#332288", "#a79bf0"),
    "mixed": ("#4b1d6e", "#e6ccfa"),
    # KV memory by kind
    "used": ("#2a9d8f", "#46c9b8"),
    "reserved": ("#ddcc77", "#c4b35e"),
    "fragmentation": ("#993388", "#b04fae"),
    "free": ("#e4e8ed", "#2a3038"),
    "padding": ("#c4cad2", "#4d5661"),
    # an iteration's operator classes
    "contractions": ("#183481", "#576cd4"),
    "experts": ("#78b6f2", "#65a1de"),
    "attention": ("#e9810e", "#c26916"),
    "elementwise": ("#0c8242", "#87c469"),
    "sampling": ("#e2c374", "#e4e581"),
    "all-reduce": ("#531745", "#8f3599"),
    "all-to-all": ("#a35594", "#ed72a5"),
    "gather": ("#a986b7", "#ceb7d7"),
    "swap": ("#6b400f", "#6a4002"),
    "draft": ("#6be1e7", "#95f9ff"),
    "host": ("#55575c", "#6a6d6f"),
    "launch": ("#afafaf", "#474f57"),
    # GPUs beyond a dozen (`gpu_looks`)
    "violet": ("#8a44fb", "#440183"),
    "periwinkle": ("#7d85fd", "#5605f1"),
    # requests that take colours in turn
    "turn-1": ("#79d6f9", "#e6bb6d"),
    "turn-2": ("#3691be", "#52a09e"),
    "turn-3": ("#b97a1f", "#5e65a8"),
    "turn-4": ("#4e47a3", "#c1d4fe"),
    "turn-5": ("#783825", "#9e5842"),
    "turn-6": ("#f9c259", "#b29329"),
    # the page
    "ink": ("#1b2128", "#e6e9ee"),
    "muted": ("#5a6470", "#9aa5b1"),
    "grid": ("#e8ebef", "#2b323b"),
    "surface": ("#ffffff", "#171b21"),
    "ground": ("#f5f6f8", "#0f1216"),
    "edge": ("#d9dee4", "#313944"),
    "shade": ("#9fa7b0", "#545d68"),  # at the end of what scrolls sideways
    "accent": ("#0b5cad", "#79b8f2"),
    "good": ("#0f6b54", "#5cc7a5"),
    "bad": ("#a8320a", "#ff9a70"),
    "notice": ("#fff6e0", "#2f2713"),
    "notice-edge": ("#e3b341", "#8a6a1f"),
}

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'


def colour(thing: str) -> str:
    """The light colour of a thing; the page's script swaps it for the dark one."""
    return PALETTE[thing][0]


def dark_of_light() -> dict[str, str]:
    """Light colour to dark colour, for the page's script."""
    return dict(PALETTE.values())


def template(*, dark: bool) -> dict[str, Any]:
    """A Plotly layout template; plain JSON, without importing Plotly."""
    ink, muted, grid, surface, edge = (
        PALETTE[name][dark] for name in ("ink", "muted", "grid", "surface", "edge")
    )
    axis = {
        "gridcolor": grid,
        "linecolor": edge,
        "zerolinecolor": grid,
        "tickcolor": edge,
        "tickfont": {"color": muted, "size": 12},
        "title": {"font": {"color": muted, "size": 12}, "standoff": 8},
        "ticks": "outside",
        "ticklen": 4,
        "tickangle": 0,
        "spikecolor": muted,
        "spikethickness": 1,
        "spikedash": "dot",
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 13, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": {**axis, "showgrid": False, "showline": True},
            "yaxis": {**axis, "ticks": "", "showline": False},
            "hoverlabel": {
                "bgcolor": surface,
                "bordercolor": edge,
                "font": {"family": FONT, "size": 12.5, "color": ink},
                "align": "left",
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": muted, "activecolor": ink},
            "showlegend": False,
        }
    }


def _variables(dark: bool) -> str:
    return "".join(f"--{name}:{pair[dark]};" for name, pair in PALETTE.items())


def style_sheet() -> str:
    """The CSS of a page, light by default, dark where the reader prefers or chooses it."""
    light, dark = _variables(False), _variables(True)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        "@media (prefers-color-scheme:dark){:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n" + _RULES
    )


_RULES = f"""
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;scroll-padding-top:60px}}
body{{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 {FONT}}}
main,.bar>div{{max-width:1200px;margin:0 auto;padding:0 24px}}
h1,h2,h3,p{{margin:0}}
h1{{font-size:30px;line-height:1.2;letter-spacing:-.015em;overflow-wrap:anywhere}}
h2{{font-size:20px;line-height:1.3;letter-spacing:-.01em;margin-bottom:4px}}
h3{{font-size:15px;line-height:1.35;font-weight:600}}
a{{color:var(--accent)}}
:focus-visible{{outline:2px solid var(--accent);outline-offset:2px;border-radius:6px}}
.bar{{position:sticky;top:0;z-index:20;background:var(--surface);
 border-bottom:1px solid var(--edge)}}
.bar>div{{display:flex;align-items:center;gap:20px;height:48px}}
.brand{{font-weight:700;letter-spacing:-.01em}}
.bar nav{{display:flex;gap:18px;flex:1;overflow-x:auto;scrollbar-width:none;padding:4px 0}}
.bar nav a{{color:var(--muted);text-decoration:none;font-size:14px;white-space:nowrap}}
.bar nav a:hover{{color:var(--ink)}}
button{{font:inherit;color:inherit;cursor:pointer}}
.theme{{background:none;border:1px solid var(--edge);border-radius:8px;padding:3px 10px;
 font-size:13px;color:var(--muted);white-space:nowrap}}
.theme:hover{{color:var(--ink)}}
header.top{{padding:32px 0 20px}}
.kind{{color:var(--muted);font-size:13px;font-weight:600;letter-spacing:.06em;
 text-transform:uppercase;margin-bottom:4px}}
.setting{{color:var(--muted);margin-top:6px;overflow-wrap:anywhere}}
.verdict{{font-size:17px;margin-top:14px;max-width:75ch}}
.good{{color:var(--good);font-weight:600}}
.bad{{color:var(--bad);font-weight:600}}
.warnings{{background:var(--notice);border:1px solid var(--notice-edge);border-radius:10px;
 padding:12px 16px;margin-bottom:20px}}
.warnings ul{{margin:4px 0 0;padding-left:20px}}
.warnings li{{overflow-wrap:anywhere}}
.cards{{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:12px;
 margin:0 0 36px}}
.card{{background:var(--surface);border:1px solid var(--edge);border-radius:10px;
 padding:12px 14px;min-width:0}}
.card dt{{color:var(--muted);font-size:13px}}
.card dd{{margin:0}}
.card .value{{font-size:22px;line-height:1.3;font-weight:650;letter-spacing:-.015em;
 font-variant-numeric:tabular-nums;white-space:nowrap}}
.card .note{{color:var(--muted);font-size:13px;line-height:1.4}}
.card .good{{color:var(--good)}}.card .bad{{color:var(--bad)}}
section{{margin:0 0 40px}}
.intro{{color:var(--muted);max-width:80ch;margin-bottom:12px}}
.row{{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:12px}}
figure,.panel{{background:var(--surface);border:1px solid var(--edge);border-radius:10px;
 margin:0 0 12px;padding:14px 16px 8px;min-width:0}}
.row figure{{margin:0;display:flex;flex-direction:column}}
.row .plot{{margin-top:auto}}
h2+figure,h2+.panel{{margin-top:10px}}
.row{{margin-bottom:12px}}
.panel{{padding:14px 16px;overflow-x:auto;
 background:linear-gradient(90deg,var(--surface) 60%,transparent) 0 0/36px 100% no-repeat local,
 linear-gradient(270deg,var(--surface) 60%,transparent) 100% 0/36px 100% no-repeat local,
 linear-gradient(90deg,var(--shade),transparent) 0 0/14px 100% no-repeat scroll,
 linear-gradient(270deg,var(--shade),transparent) 100% 0/14px 100% no-repeat scroll,
 var(--surface)}}
figcaption{{color:var(--muted);font-size:13px;line-height:1.45;padding:2px 0 6px;max-width:140ch}}
.plot{{width:100%;border-radius:6px}}
.plot .modebar{{opacity:0!important;transition:opacity .15s}}
.plot:hover .modebar,.plot:focus-visible .modebar{{opacity:1!important}}
.keys{{display:flex;flex-wrap:wrap;gap:2px 6px;margin:6px 0 0 -6px}}
.key{{display:inline-flex;align-items:center;gap:7px;background:none;border:0;border-radius:6px;
 padding:2px 6px;font-size:13px;color:var(--ink)}}
button.key:hover{{background:var(--ground)}}
.key i{{width:13px;height:13px;border-radius:3px;flex:none;
 box-shadow:inset 0 0 0 1px rgba(128,128,128,.35)}}
.key[aria-pressed=false]{{color:var(--muted);text-decoration:line-through}}
.key[aria-pressed=false] i{{opacity:.25}}
table{{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}}
caption{{text-align:left;font-weight:600;padding-bottom:6px}}
th,td{{text-align:right;padding:6px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}}
td.best{{color:var(--good);font-weight:600}}
th:first-child,td:first-child{{text-align:left;padding-left:0}}
th:last-child,td:last-child{{padding-right:0}}
thead th{{color:var(--muted);font-weight:600;font-size:13px}}
tbody th{{font-weight:500}}
tbody tr:last-child>*{{border-bottom:0}}
.panel tbody th{{position:sticky;left:-1px;background:var(--surface)}}
table.facts td,table.facts th{{text-align:left;white-space:normal;overflow-wrap:anywhere;
 vertical-align:top}}
table.dense{{font-size:13px}}
table.dense th,table.dense td{{padding:6px;white-space:normal;vertical-align:top}}
table.dense th:first-child{{padding-left:0}}
table.dense tbody th{{min-width:110px;overflow-wrap:anywhere}}
table.facts th{{width:34%;color:var(--muted)}}
pre{{margin:0;font:13px/1.55 {MONO};overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere}}
details summary{{cursor:pointer;font-weight:600}}
details[open] summary{{margin-bottom:8px}}
.widget{{overflow:hidden}}
.widget canvas{{display:block;width:100%}}
.moment{{display:flex;align-items:center;gap:8px;margin:8px 0 4px}}
.moment input{{flex:1;min-width:0;accent-color:var(--accent)}}
.windows{{display:flex;gap:8px;flex-wrap:wrap}}
.windows button:hover,.moment button:hover{{background:var(--ground)}}
.windows button,.moment button,.moment select{{background:none;
 border:1px solid var(--edge);border-radius:8px;
 padding:2px 10px;font:inherit;font-size:13px;color:inherit}}
.moment select option{{background:var(--surface)}}
.said{{font-size:14px;margin-bottom:8px;min-height:3em}}
.pointed,.lanes-note{{color:var(--muted);font-size:13px;min-height:1.5em}}
.canvases{{display:grid;gap:10px}}
footer{{color:var(--muted);font-size:13px;padding:0 0 40px}}
kbd{{font:12px {MONO};border:1px solid var(--edge);border-radius:4px;padding:0 4px}}
@media (max-width:640px){{
 main,.bar>div{{padding:0 12px}}
 .bar>div{{gap:12px}}
 h1{{font-size:24px}}
 header.top{{padding:20px 0 16px}}
 .verdict{{font-size:16px}}
 .cards{{grid-template-columns:repeat(2,minmax(0,1fr));gap:8px;margin-bottom:28px}}
 .card{{padding:10px 12px}}
 .card .value{{font-size:19px}}
 figure,.panel{{padding:12px 10px 6px}}
 .panel{{padding:12px}}
 th,td{{padding:6px 7px}}
}}
@media (pointer:coarse){{.keyboard,.plot .modebar{{display:none!important}}}}
@media print{{.bar{{display:none}}figure,.panel,.card{{break-inside:avoid}}}}
"""
