"use strict";

// The budget curves: small multiples, one panel per detector, or the three measures of one detector.
const budgetBlock = document.getElementById("budget-data");
if (budgetBlock && window.Plotly) drawBudgets(JSON.parse(budgetBlock.textContent));

function drawBudgets(models) {
  const $ = (id) => document.getElementById(id);
  const plot = $("budget-plot");
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "star", "hexagon"];
  const GLYPHS = ["●", "■", "◆", "▲", "▼", "★", "⬢"];
  const state = { model: 0, norm: 0, detector: -1, measure: 0, shown: new Set() };
  let width = 0;

  $("budget-model").replaceChildren(...models.map((m, i) => new Option(m.title, String(i))));
  const measureButtons = models[0].measures.map(([, title], i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.addEventListener("click", () => { state.measure = i; press(measureButtons, button); draw(); });
    return button;
  });
  press(measureButtons, measureButtons[0]);
  $("budget-measure").replaceChildren(...measureButtons);
  $("budget-model").addEventListener("change", (e) => choose(Number(e.target.value)));
  $("budget-norm").addEventListener("change", (e) => { state.norm = Number(e.target.value); attacks(); draw(); });
  $("budget-detector").addEventListener("change", (e) => { state.detector = Number(e.target.value); draw(); });
  choose(0);
  new ResizeObserver(() => {
    if (Math.abs(plot.clientWidth - width) > 4) draw();
  }).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  onPaper(plot, draw);

  function choose(index) {
    const model = models[index];
    Object.assign(state, { model: index, norm: 0, detector: -1 });
    $("budget-norm").replaceChildren(...model.norms.map((n, i) => new Option(n.name, String(i))));
    $("budget-norm").closest("label").hidden = model.norms.length < 2;
    $("budget-detector").replaceChildren(new Option("all, side by side", "-1"), ...model.detectors.map((d, i) => new Option(d, String(i))));
    attacks();
    draw();
  }

  function attacks() {
    const model = models[state.model];
    const own = model.series.filter((s) => s[0] === state.norm);
    const longest = model.attacks.map((a, i) => Math.max(0, ...own.filter((s) => s[2] === i).map((s) => s[3].length)));
    const offered = model.attacks.map((a, i) => i).filter((i) => longest[i] > 0);
    // Those that know the detector first, then real curves before single points: more than six lines hide each other.
    const wanted = [...offered].sort((a, b) => model.attacks[b][1] - model.attacks[a][1] || (longest[b] > 1) - (longest[a] > 1) || a - b);
    state.shown = new Set(wanted.slice(0, 6));
    $("budget-chips").replaceChildren(...offered.map((i) => {
      const chip = document.createElement("button");
      const glyph = document.createElement("span");
      glyph.className = model.attacks[i][1] ? "glyph knows" : "glyph";
      glyph.textContent = GLYPHS[i % 7];
      glyph.setAttribute("aria-hidden", "true");
      chip.type = "button";
      chip.className = "chip lined";
      chip.style.setProperty("--chip", `var(--series-${i % 7})`);
      chip.append(glyph, model.attacks[i][0] + (model.attacks[i][1] ? " (knows the detector)" : ""));
      toggle(chip, state.shown, i, draw);
      return chip;
    }));
  }

  function draw() {
    const model = models[state.model], norm = model.norms[state.norm];
    const own = model.series.filter((s) => s[0] === state.norm && state.shown.has(s[2]));
    const apart = state.detector < 0;
    // Without a detector nothing is flagged, and undetected success is success.
    const bare = model.detectors.length - 1;
    const panels = apart
      ? model.detectors.map((name, d) => ({ title: d === bare ? "none (the model alone)" : name, detector: d, measure: state.measure }))
        .filter((p) => p.detector !== bare || model.measures[state.measure][0] !== "detection")
      : model.measures.map(([key, title], m) => ({ title, detector: state.detector, measure: m }))
        .filter((p) => state.detector !== bare || model.measures[p.measure][0] !== "detection");
    $("budget-measure").hidden = !apart;

    width = plot.clientWidth;
    const narrow = width < 560;
    const columns = Math.max(1, Math.min(panels.length, Math.floor(width / (narrow ? 240 : 250)), apart ? 4 : 3));
    const rows = Math.ceil(panels.length / columns);
    const ink = css("--ink"), muted = css("--muted"), rule = css("--rule");
    const head = 30, foot = 46, tall = narrow ? 190 : apart ? 200 : 260, left = 62, right = 8, gap = 26;
    const height = rows * (head + tall + foot);
    const inner = Math.max(60, width - left - right);
    const each = (inner - gap * (columns - 1)) / columns;
    const ticks = norm.ticks.filter(([x]) => x > 0);
    const low = Math.log10(Math.min(...ticks.map((t) => t[0]))), high = Math.log10(Math.max(...ticks.map((t) => t[0])));
    const pad = Math.max(0.05, (high - low) * 0.09);
    const kept = spaced(ticks, low, high, each);
    const layout = plotLook(width, height, { l: left, r: right, t: 0, b: 0 }, false);
    const traces = [];
    let doubted = false;
    panels.forEach((panel, k) => {
      const column = k % columns, row = Math.floor(k / columns), suffix = k ? String(k + 1) : "";
      const x = `x${suffix}`, y = `y${suffix}`;
      const from = column * (each + gap) / inner, to = from + each / inner;
      const top = 1 - (row * (head + tall + foot) + head) / height, bottom = top - tall / height;
      layout[`xaxis${suffix}`] = {
        domain: [from, Math.min(1, to)], anchor: y, type: "log", range: [low - pad, high + pad], tickvals: kept.map((t) => t[0]),
        ticktext: kept.map((t) => t[1]), tickfont: { size: 11 }, showgrid: false, zeroline: false, linecolor: rule, ticks: "outside",
        ticklen: 3, tickcolor: rule, minor: { ticks: "" }, fixedrange: true,
        title: { text: plain(`budget, ${[norm.name, norm.unit].filter(Boolean).join(" ")} (log scale)`), font: { size: 11.5, color: muted }, standoff: 4 },
      };
      layout[`yaxis${suffix}`] = {
        domain: [Math.max(0, bottom), top], anchor: x, range: [-0.03, 1.06], tickvals: [0, 0.25, 0.5, 0.75, 1], tickformat: ".0%",
        showticklabels: column === 0, gridcolor: rule, gridwidth: 1, zeroline: false, fixedrange: true,
      };
      if (column === 0 || !apart) {
        layout.annotations.push({ xref: "paper", yref: "paper", x: from, y: (top + bottom) / 2, xshift: column === 0 ? -52 : -12, textangle: -90,
          text: plain(model.measures[panel.measure][2]), showarrow: false, yanchor: "middle", font: { size: 11.5, color: muted } });
      }
      layout.annotations.push({ xref: "paper", yref: "paper", x: from, y: top, yshift: 4, xanchor: "left", yanchor: "bottom",
        text: `<b>${plain(panel.title)}</b>`, showarrow: false, font: { size: 13, color: ink } });
      if (norm.threat) {
        layout.shapes.push({ type: "line", xref: x, yref: `${y} domain`, x0: norm.threat, x1: norm.threat, y0: 0, y1: 1, layer: "below",
          line: { color: muted, width: 1.25, dash: "1.5px,3px" } });
      }
      const lines = own.filter((s) => s[1] === panel.detector);
      lines.forEach((s, place) => {
        const [name, knows] = model.attacks[s[2]];
        const points = s[3].map((p) => ({ x: p[0], budget: p[1], value: p[2 + panel.measure], n: p[5], flags: p[6] })).filter((p) => p.x > 0);
        if (!points.some((p) => p.value[0] !== null)) return;
        doubted = doubted || points.some((p) => p.flags.length && p.value[0] !== null);
        // Lines at one budget stand a little apart, or their intervals would cover each other.
        const shift = 10 ** ((place - (lines.length - 1) / 2) * Math.min(0.02, pad / 6));
        const colour = css(`--series-${s[2] % 7}`);
        traces.push({
          xaxis: x, yaxis: y, name: plain(name), x: points.map((p) => p.x * shift), y: points.map((p) => p.value[0]), mode: "lines+markers",
          connectgaps: false, line: { color: colour, width: knows ? 2.75 : 1.75, dash: knows ? "solid" : "5px,3px" },
          marker: { size: knows ? 9 : 7.5, color: colour, symbol: points.map((p) => SYMBOLS[s[2] % 7] + (p.flags.length ? "-open" : "")), line: { width: 1.75, color: colour } },
          error_y: { type: "data", symmetric: false, thickness: 1.1, width: 0, color: fade(colour, 0.6),
            array: points.map((p) => (p.value[2] === null ? 0 : p.value[2] - p.value[0])), arrayminus: points.map((p) => (p.value[1] === null ? 0 : p.value[0] - p.value[1])) },
          text: points.map((p) => [p.budget, p.value[1] === null ? "" : `95 % interval ${percent(p.value[1])} to ${percent(p.value[2])}`, `${p.n} attacked images`, ...p.flags.slice(0, 4)]
            .filter(Boolean).map(plain).join("<br>")),
          hovertemplate: "%{fullData.name}: <b>%{y:.1%}</b><br>%{text}<extra></extra>",
        });
      });
      if (!lines.length) {
        layout.annotations.push({ xref: "paper", yref: "paper", x: (from + to) / 2, y: (top + bottom) / 2, showarrow: false, text: "no attack chosen", font: { size: 12, color: muted } });
      }
    });
    plot.style.height = `${height}px`;
    Plotly.react(plot, traces, layout, { displayModeBar: false, displaylogo: false, responsive: false });
    plot.setAttribute("role", "img");
    const shownMeasures = apart ? model.measures[state.measure][1] : "Undetected success, success and detection";
    plot.setAttribute("aria-label", `${shownMeasures} against the budget for ${model.title}`);
    plot.dataset.measure = apart ? model.measures[state.measure][0] : "all";
    $("budget-threat").hidden = !norm.threat;
    $("budget-doubt").hidden = !doubted;
    $("budget-help").textContent = [
      apart ? `One panel per detector. ${model.measures[state.measure][3]}` : model.measures.map((m) => m[3]).join(" "),
      model.seeds > 1 ? `Mean over ${model.seeds} seeds.` : "",
    ].filter(Boolean).join(" ");
    $("budget-ends").textContent = model.ends;
  }

  // Labels that would touch are left out, the last one never.
  function spaced(ticks, low, high, pixels) {
    const place = (x) => (high > low ? (Math.log10(x) - low) / (high - low) * pixels * 0.84 : 0);
    const kept = [];
    for (const tick of [...ticks].reverse()) {
      const room = 7 * Math.max(tick[1].length, kept.length ? kept[0][1].length : 0) + 6;
      if (!kept.length || place(kept[0][0]) - place(tick[0]) >= room) kept.unshift(tick);
    }
    return kept;
  }

  function percent(value) {
    return `${(100 * value).toFixed(1)} %`;
  }
}
