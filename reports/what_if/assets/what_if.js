// The what-if page's part in the browser: what is asked for next, and the address that says so.
(function () {
  const MOST_PINS = 4;
  let turns = 0;
  let asked = null;

  const set = (id, data) => window.dash_clientside.set_props(id, { data });

  // Sliders know positions only: say what they stand for.
  function nameSliders() {
    for (const knob of document.querySelectorAll(".knob")) {
      const thumb = knob.querySelector("[role=slider], [role=combobox], button");
      if (!thumb) continue;
      const shown = knob.querySelector("output").textContent;
      const slider = thumb.getAttribute("role") === "slider";
      thumb.setAttribute("aria-label", knob.dataset.label + (slider ? "" : ": " + shown));
      if (slider) thumb.setAttribute("aria-valuetext", shown);
    }
  }

  const canPin = () => asked.pins.length < MOST_PINS && !asked.pins.includes(asked.setting);

  function remember() {
    document.getElementById("pin").disabled = !canPin();
    const pins = asked.pins.map((pin) => "pin=" + encodeURIComponent(pin));
    const query = [asked.setting, ...pins].filter(Boolean).join("&");
    history.replaceState(history.state, "", location.pathname + (query ? "?" + query : ""));
  }

  document.addEventListener("click", (event) => {
    const at = event.target.closest("#pin, [data-unpin], a[data-query]");
    if (!at || !asked) return;
    if (at.id === "pin") {
      if (canPin()) set("pins", [...asked.pins, asked.setting]);
    } else if (at.dataset.unpin !== undefined) {
      set("pins", asked.pins.filter((pin) => pin !== at.dataset.unpin));
    } else if (!(event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      set("query", at.dataset.query);
    }
  });

  window.dash_clientside = Object.assign({}, window.dash_clientside, {
    what_if: {
      query: () => location.search,

      theme(clicks, theme) {
        const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
        const next = clicks ? (theme === "dark" ? "light" : "dark") : dark;
        document.documentElement.dataset.theme = next;
        return [next, next === "dark" ? "Light" : "Dark"];
      },

      place: (opened, names) => names.map((name) => opened[name.path]),

      turned(positions, pins, theme, names, knobs) {
        const at = Object.fromEntries(names.map((name, i) => [name.path, positions[i]]));
        const setting = knobs
          .filter((knob) => at[knob.path] !== knob.own)
          .map((knob) => [knob.path, knob.texts[at[knob.path]]].map(encodeURIComponent).join("="))
          .join("&");
        turns += 1;
        asked = { setting, pins: pins || [], theme, turn: turns };
        remember();
        requestAnimationFrame(nameSliders);
        const shown = Object.fromEntries(knobs.map((knob) => [knob.path, knob.shown]));
        return [names.map((name) => shown[name.path][at[name.path]]), asked];
      },
    },
  });

  // Sliders are fetched on their own and drawn later.
  new MutationObserver(nameSliders).observe(document.documentElement, {
    childList: true,
    subtree: true,
  });
})();
