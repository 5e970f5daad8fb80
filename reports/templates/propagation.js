"use strict";

// The curves through the layers.
const dataBlock = document.getElementById("curve-data");
if (dataBlock && window.Plotly) drawCurves(JSON.parse(dataBlock.textContent));

function drawCurves(models) {
  const $ = (id) => document.getElementById(id);
  const plot = $("curve-plot");
  const state = { model: 0, metric: 0, population: 0, layout: "apart", shown: new Set() };
  let width = 0;
  const layoutButtons = [...document.querySelectorAll("#curves .switch button")];

  fill($("curve-model"), models.map((m) => m.title));
  choose(0);

  $("curve-model").addEventListener("change", (e) => choose(Number(e.target.value)));
  $("curve-metric").addEventListener("change", (e) => { state.metric = Number(e.target.value); draw(); });
  $("curve-population").addEventListener("change", (e) => { state.population = Number(e.target.value); draw(); });
  $("curve-knowing").addEventListener("change", (e) => {
    knowing(models[state.model]).forEach((i) => state.shown.delete(i));
    if (e.target.value !== "") state.shown.add(Number(e.target.value));
    draw();
  });
  for (const button of layoutButtons) {
    button.addEventListener("click", () => { state.layout = button.dataset.layout; press(layoutButtons, button); draw(); });
  }
  new ResizeObserver(() => {
    if (Math.abs(plot.clientWidth - width) > 4) draw();
  }).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  onPaper(plot, draw);

  function fill(select, names) {
    select.replaceChildren(...names.map((name, i) => new Option(name, String(i))));
  }

  // Attacks that know a detector are one choice among the others.
  function knowing(model) {
    const all = model.perturbations.map((p, i) => i);
    const found = all.filter((i) => model.perturbations[i].includes("@"));
    return found.length < all.length ? found : [];
  }

  // Another model keeps the measure and the population where it has them.
  function choose(index) {
    const before = models[state.model];
    const metric = before.metrics[state.metric]?.[0];
    const population = before.populations[state.population]?.[0];
    const model = models[index];
    state.model = index;
    state.metric = Math.max(0, model.metrics.findIndex((m) => m[0] === metric));
    const open = model.populations.map((p, i) => [p, i]).filter(([p]) => p[0] !== "control");
    const offered = open.length ? open : model.populations.map((p, i) => [p, i]);
    state.population = (offered.find(([p]) => p[0] === population) || offered[0])[1];
    const plain = model.perturbations.map((p, i) => i).filter((i) => !model.perturbations[i].includes("@"));
    state.shown = new Set((plain.length ? plain : model.perturbations.map((p, i) => i)).slice(0, 8));
    fill($("curve-metric"), model.metrics.map((m) => m[1]));
    $("curve-metric").value = String(state.metric);
    $("curve-population").replaceChildren(...offered.map(([p, i]) => new Option(p[1], String(i))));
    $("curve-population").value = String(state.population);
    $("curve-knowing").replaceChildren(new Option("none", ""), ...knowing(model).map((i) => new Option(model.perturbations[i], String(i))));
    $("curve-knowing").closest("label").hidden = !knowing(model).length;
    chips(model);
    draw();
  }

  function chips(model) {
    const apart = new Set(knowing(model));
    $("curve-chips").replaceChildren(...model.perturbations.map((name, i) => [name, i]).filter(([, i]) => !apart.has(i)).map(([name, i]) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = "chip";
      chip.style.setProperty("--chip", `var(--series-${i % 7})`);
      chip.textContent = name;
      toggle(chip, state.shown, i, draw);
      return chip;
    }));
  }

  function draw() {
    const model = models[state.model];
    const [metricKey, metricName, metricHelp] = model.metrics[state.metric];
    const find = (population, p) => model.series.find((s) => s[0] === state.metric && s[1] === population && s[2] === p);
    const control = model.populations.findIndex((p) => p[0] === "control");
    const curves = [...state.shown].sort((a, b) => a - b).map((p) => ({
      name: plain(model.perturbations[p]),
      colour: css(`--series-${p % 7}`),
      main: find(state.population, p),
      control: control >= 0 && control !== state.population ? find(control, p) : undefined,
    })).filter((c) => c.main || c.control);

    width = plot.clientWidth;
    const narrow = width < 560;
    const together = state.layout === "together" || curves.length < 2;
    const columns = together ? 1 : Math.max(1, Math.min(curves.length, Math.floor(width / (narrow ? 170 : 205))));
    const panels = together ? [curves] : curves.map((c) => [c]);
    const banded = !together || curves.length < 3; // overlapping bands would hide the lines
    const rows = Math.max(1, Math.ceil(panels.length / columns));
    const muted = css("--muted"), rule = css("--rule"), ghost = css("--ghost");
    const taps = model.taps.map(plain);
    const at = taps.map((t, i) => i + 1);
    const longest = Math.max(0, ...model.taps.map((t) => t.length));
    const sparse = Math.ceil(taps.length / (together ? Math.max(4, width / 26) : 12));
    const foot = Math.min(104, 20 + longest * 4.2);
    const head = together ? 14 : 30;
    const tall = together ? (narrow ? 280 : 380) : (narrow ? 150 : 210);
    const height = rows * (head + tall + foot);
    const left = 52, right = together ? (narrow ? 14 : 92) : 6, gap = 16;
    const inner = Math.max(60, width - left - right);
    const each = (inner - gap * (columns - 1)) / columns;
    const layout = plotLook(width, height, { l: left, r: right, t: 0, b: 0 }, narrow ? false : "zoom");
    const traces = [];
    panels.forEach((panel, k) => {
      const column = k % columns, row = Math.floor(k / columns), suffix = k ? String(k + 1) : "";
      const x = `x${suffix}`, y = `y${suffix}`;
      const from = column * (each + gap) / inner, to = from + each / inner;
      const top = 1 - (row * (head + tall + foot) + head) / height, bottom = top - tall / height;
      layout[`xaxis${suffix}`] = {
        domain: [from, Math.min(1, to)], anchor: y, range: [0.6, taps.length + 0.4], tickvals: at.filter((a) => (a - 1) % sparse === 0),
        ticktext: taps.filter((t, i) => i % sparse === 0), tickangle: -45, tickfont: { size: 10.5 }, showgrid: false,
        zeroline: false, linecolor: rule, ticks: "outside", ticklen: 3, tickcolor: rule,
      };
      layout[`yaxis${suffix}`] = {
        domain: [Math.max(0, bottom), top], anchor: x, matches: k ? "y" : undefined, showticklabels: column === 0,
        gridcolor: rule, griddash: "solid", gridwidth: 1, zeroline: false, nticks: 5, rangemode: "tozero", automargin: false,
      };
      if (column === 0) {
        layout.annotations.push({ xref: "paper", yref: "paper", x: 0, y: (top + bottom) / 2, xshift: -44, textangle: -90,
          text: plain(metricName), showarrow: false, font: { size: 12, color: muted } });
      }
      if (!together) {
        const others = { x: [], y: [] };
        curves.filter((c) => c !== panel[0] && c.main).forEach((c) => {
          others.x.push(...at, null);
          others.y.push(...c.main[3], null);
        });
        traces.push({ ...others, xaxis: x, yaxis: y, mode: "lines", line: { color: ghost, width: 1 }, hoverinfo: "skip" });
        layout.annotations.push({ xref: "paper", yref: "paper", x: from, y: top, yshift: 4, xanchor: "left", yanchor: "bottom",
          text: `<b>${panel[0].name}</b>`, showarrow: false, font: { size: 13, color: panel[0].colour } });
      }
      if (panel.length === 1 && !panel[0].main) {
        layout.annotations.push({ xref: "paper", yref: "paper", x: (from + to) / 2, y: bottom + (top - bottom) * 0.55, showarrow: false,
          text: "no such images", font: { size: 12, color: muted } });
      }
      for (const curve of panel) {
        const bare = { xaxis: x, yaxis: y, name: curve.name, text: taps };
        const band = banded && curve.main && bandOf(curve.main, at);
        if (band) {
          traces.push({ ...band, xaxis: x, yaxis: y, mode: "lines", line: { width: 0 }, fill: "toself",
            fillcolor: fade(curve.colour, 0.18), hoverinfo: "skip" });
        }
        if (curve.control) {
          traces.push({ ...bare, x: at, y: curve.control[3], mode: "lines", line: { color: curve.colour, width: 1.5, dash: "4px,3px" },
            hovertemplate: "%{fullData.name}, control<br>%{text}: <b>%{y:.3~g}</b><extra></extra>" });
        }
        if (curve.main) {
          traces.push({ ...bare, x: at, y: curve.main[3], mode: "lines+markers", line: { color: curve.colour, width: 2.25 },
            marker: { size: 5, color: curve.colour }, hovertemplate: "%{fullData.name}<br>%{text}: <b>%{y:.3~g}</b><extra></extra>" });
        }
      }
      if (together && !narrow) layout.annotations.push(...endLabels(panel, x, y, tall));
    });
    plot.style.height = `${height}px`;
    Plotly.react(plot, traces, layout, { displayModeBar: false, displaylogo: false, responsive: false });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${metricName} by layer for ${model.title}`);
    plot.dataset.metric = metricKey;
    $("curve-name").textContent = `mean, ${model.populations[state.population][1]}`;
    $("curve-band").hidden = !banded || !curves.some((c) => c.main && bandOf(c.main, at));
    $("curve-control").hidden = !curves.some((c) => c.control);
    $("curve-help").textContent = [metricHelp, together ? "" : "Grey: the other perturbations.",
      model.seeds > 1 ? `Mean over ${model.seeds} seeds.` : "", curves.length ? "" : "There is no curve for this choice."]
      .filter(Boolean).join(" ");
  }

  // The names at the lines' ends, pushed apart so that none covers another.
  function endLabels(panel, x, y, tall) {
    const ends = panel.filter((c) => c.main).map((c) => ({ c, value: [...c.main[3]].reverse().find((v) => v !== null) }))
      .filter((e) => e.value !== undefined).sort((a, b) => b.value - a.value);
    const all = panel.flatMap((c) => [c.main, c.control]).filter(Boolean).flatMap((s) => [...s[3], ...s[5]]).filter((v) => v !== null);
    const scale = tall / (Math.max(...all, 1e-9) - Math.min(0, ...all));
    let last = Infinity;
    return ends.map(({ c, value }) => {
      const wanted = value * scale, placed = Math.min(wanted, last - 15);
      last = placed;
      return { xref: "paper", x: 1, xshift: 6, yref: y, y: value, yshift: placed - wanted, xanchor: "left", text: c.name,
        showarrow: false, font: { size: 12, color: c.colour } };
    });
  }

  function bandOf(series, at) {
    const kept = at.map((a, i) => [a, series[4][i], series[5][i]]).filter(([, low, high]) => low !== null && high !== null);
    if (!kept.length) return null;
    const back = [...kept].reverse();
    return { x: [...kept.map((k) => k[0]), ...back.map((k) => k[0])], y: [...kept.map((k) => k[2]), ...back.map((k) => k[1])] };
  }
}
