"use strict";

// The page of an analysis: one result (seed) is shown at a time, and its figures are drawn when they come into view.
(() => {
  const block = document.getElementById("figure-data");
  const figures = block ? JSON.parse(block.textContent) : {};
  const plots = [...document.querySelectorAll("[data-figure]")].filter((p) => figures[p.dataset.figure]);
  const hidden = new Map(); // by figure: the names that a click on the legend has taken away
  const drawnAt = new Map();
  const SPECIAL = new Set(["dashed", "dotted"]);
  const DASHES = { solid: "solid", dashed: "6px,4px", dotted: "2px,4px" };
  const SYMBOLS = ["circle", "square", "diamond", "cross", "x"];

  const results = [...document.querySelectorAll(".result")];
  const buttons = [...document.querySelectorAll("#results button")];
  if (buttons.length) {
    document.getElementById("results").hidden = false;
    for (const button of buttons) button.addEventListener("click", () => show(button.dataset.result));
    show(results.some((r) => `#${r.id}` === location.hash) ? location.hash.slice(1) : results[0].id);
  }

  if (window.Plotly) {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting && !drawnAt.has(entry.target)) draw(entry.target);
    }, { rootMargin: "600px" });
    const sized = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (drawnAt.has(target) && target.clientWidth && Math.abs(target.clientWidth - drawnAt.get(target)) > 4) draw(target);
      }
    });
    for (const plot of plots) {
      seen.observe(plot);
      sized.observe(plot);
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawnAt.forEach((width, plot) => draw(plot)));
    for (const plot of plots) onPaper(plot, () => { if (!plot.closest("[hidden]")) draw(plot); });
  }

  function show(id) {
    for (const result of results) {
      result.hidden = result.id !== id;
      if (!result.hidden) continue;
      // A browser keeps few 3-D scenes alive: those that are out of sight give theirs back.
      for (const plot of plots) {
        if (drawnAt.has(plot) && plot.closest("[hidden]") && figures[plot.dataset.figure].dimensions === 3) {
          Plotly.purge(plot);
          drawnAt.delete(plot);
        }
      }
    }
    press(buttons, buttons.find((b) => b.dataset.result === id));
  }

  function draw(plot) {
    if (!plot.clientWidth) return;
    const key = plot.dataset.figure, figure = figures[key];
    drawnAt.set(plot, plot.clientWidth);
    if (!hidden.has(key)) hidden.set(key, new Set());
    const made = { lines: drawLines, heatmaps: drawHeatmaps, points: drawPoints }[figure.kind](figure, plot.clientWidth, hidden.get(key));
    legend(plot, key, made.legend || []);
    plot.style.height = `${made.layout.height}px`;
    Plotly.react(plot, made.traces, made.layout, { displayModeBar: false, displaylogo: false, responsive: false, scrollZoom: false });
  }

  function legend(plot, key, entries) {
    const box = document.querySelector(`[data-legend="${key}"]`);
    box.hidden = entries.length < 2;
    if (box.hidden) return;
    box.replaceChildren(...entries.map(({ name, colour, style, glyph }) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = `chip sampled ${SPECIAL.has(style) ? style : glyph || "line"}`;
      chip.style.setProperty("--chip", colour);
      chip.setAttribute("aria-pressed", String(!hidden.get(key).has(name)));
      chip.textContent = name;
      chip.addEventListener("click", () => {
        const away = hidden.get(key);
        if (!away.delete(name)) away.add(name);
        const index = [...box.children].indexOf(chip);
        draw(plot);
        box.children[index].focus();
      });
      return chip;
    }));
  }

  // A few names get the palette; many (layers, say) the ordered scale, whose ends are told apart at a glance.
  function colours(count) {
    if (count <= 10) return Array.from({ length: count }, (_, i) => css(`--series-${i}`));
    const stops = scale("seq").slice(1, -1).map((c) => c[1]);
    return Array.from({ length: count }, (_, i) => {
      const at = (i / (count - 1)) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
      const [a, b] = [rgb(stops[low]), rgb(stops[low + 1])];
      return `#${a.map((v, k) => Math.round(v + (b[k] - v) * (at - low)).toString(16).padStart(2, "0")).join("")}`;
    });
  }

  function rgb(hex) {
    const n = parseInt(hex.slice(1), 16);
    return [n >> 16, (n >> 8) & 255, n & 255];
  }

  function scale(name) {
    const stops = css(`--scale-${name}`).split(/\s+/);
    return stops.map((c, i) => [i / (stops.length - 1), c]);
  }

  function base(width, height, margin) {
    return plotLook(width, height, margin, width < 560 ? false : "zoom");
  }

  function short(text, most) {
    return plain(text.length > most ? `${text.slice(0, most - 1)}…` : text);
  }

  function drawLines(figure, width, away) {
    const narrow = width < 560, rule = css("--rule"), muted = css("--muted");
    const words = figure.categorical || figure.x.includes(null);
    // Words stand at whole numbers: plotly would join equal ones and read dates into others.
    const at = words ? figure.x.map((x, i) => i) : figure.x;
    const longest = words ? Math.min(24, Math.max(0, ...figure.x.map((x) => String(x ?? "").length))) : 0;
    const left = narrow ? 52 : 64, right = 14, top = 10;
    const inner = width - left - right;
    const sparse = Math.max(1, Math.ceil(at.length / Math.max(3, inner / 22)));
    const flat = words && longest * 7 * at.length < inner;
    const foot = words && !flat ? 34 + longest * 4.6 : 52;
    const height = top + (narrow ? 260 : 360) + foot;
    const tones = colours(figure.series.length);
    const traces = [], entries = [];
    figure.series.forEach((s, i) => {
      entries.push({ name: s.name, colour: tones[i], style: s.style });
      if (away.has(s.name)) return;
      for (const { alone, ...run } of bands(at, s.low, s.high)) {
        const look = alone ? { line: { width: 6, color: fade(tones[i], 0.3) } } : { line: { width: 0 }, fill: "toself", fillcolor: fade(tones[i], 0.16) };
        traces.push({ ...run, mode: "lines", hoverinfo: "skip", ...look });
      }
    });
    figure.series.forEach((s, i) => {
      if (away.has(s.name)) return;
      const limits = at.map((_, k) => (s.low[k] != null && s.high[k] != null ? `, ${number(s.low[k])} to ${number(s.high[k])}` : ""));
      traces.push({
        type: "scatter", x: at, y: s.y, mode: at.length > 60 ? "lines" : "lines+markers", connectgaps: false,
        line: { color: tones[i], width: 2.25, dash: DASHES[s.style] }, marker: { size: 6, color: tones[i] },
        text: figure.x.map((x) => short(words ? String(x ?? "") : number(x), 80)), customdata: limits,
        hovertemplate: `${short(s.name, 80)}<br>%{text}: <b>%{y:.4~g}</b>%{customdata}<extra></extra>`,
      });
    });
    const layout = base(width, height, { l: left, r: right, t: top, b: foot });
    const title = (text) => ({ text: short(text, 90), font: { size: 12.5, color: muted }, standoff: 8 });
    layout.xaxis = {
      title: title(figure.x_title), showgrid: false, zeroline: false, linecolor: rule, ticks: "outside", ticklen: 3, tickcolor: rule,
      ...(words ? {
        type: "linear", range: [-0.4, at.length - 0.6], tickangle: flat ? 0 : -45, tickfont: { size: 11 },
        tickvals: at.filter((a) => a % sparse === 0), ticktext: figure.x.filter((x, i) => i % sparse === 0).map((x) => short(String(x ?? ""), 24)),
      } : { type: "linear", nticks: narrow ? 5 : 10 }),
    };
    layout.yaxis = {
      title: title(figure.y_title), type: "linear", gridcolor: rule, zeroline: true, zerolinecolor: css("--ghost"), nticks: 7,
      ...(figure.y_range ? { range: padded(figure.y_range) } : {}),
    };
    return { traces, layout, legend: entries };
  }

  // The band of a curve as closed outlines, one for each run of positions without a gap.
  function bands(at, low, high) {
    const made = [];
    let run = [];
    const close = () => {
      if (run.length > 1) {
        const back = [...run].reverse();
        made.push({ type: "scatter", x: [...run, ...back].map((i) => at[i]), y: [...run.map((i) => high[i]), ...back.map((i) => low[i])] });
      } else if (run.length) {
        made.push({ type: "scatter", x: [at[run[0]], at[run[0]]], y: [low[run[0]], high[run[0]]], alone: true });
      }
      run = [];
    };
    at.forEach((_, i) => {
      if (low[i] == null || high[i] == null) close();
      else run.push(i);
    });
    close();
    return made;
  }

  // Marks on the edge of a range stay whole.
  function padded([low, high]) {
    const edge = (high - low) * 0.025;
    return [low - edge, high + edge];
  }

  function number(value) {
    return value === null ? "" : String(Number(value.toPrecision(4)));
  }

  function drawHeatmaps(figure, width) {
    const narrow = width < 560, muted = css("--muted"), line = css("--paper");
    const count = figure.panels.length;
    const square = figure.panels.every((p) => Math.abs(Math.log(p.rows / p.columns)) < 0.05);
    const longest = Math.min(16, Math.max(0, ...figure.ticks.map((t) => t[1].length)));
    const left = figure.ticks.length ? Math.max(20, 12 + longest * 6.2) : 8;
    const bar = 66, gapX = 16, right = narrow ? 8 : bar;
    const inner = width - left - right;
    const wanted = count === 1 ? 460 : count <= 3 ? 340 : 220;
    const columns = Math.max(1, Math.min(count, narrow ? (count > 2 ? 2 : 1) : Math.ceil(inner / (wanted + gapX) - 0.4)));
    // Panels of one shape are labelled at the left and at the foot of the whole; others each at their own.
    const alike = figure.panels.every((p) => p.rows === figure.panels[0].rows && p.columns === figure.panels[0].columns);
    const each = Math.min((inner - gapX * (columns - 1)) / columns, square ? 520 : inner);
    const aspect = square ? 1 : Math.min(1.4, Math.max(0.35, Math.max(...figure.panels.map((p) => p.rows / p.columns))));
    const tall = square ? each : Math.min(Math.max(each * aspect, 120), 640);
    const rows = Math.ceil(count / columns), head = 26;
    const labelled = figure.ticks.length ? 14 + longest * 6 : 10;
    const foot = alike ? 10 : labelled;
    const below = labelled - foot + (narrow ? 60 : 0);
    const height = rows * (head + tall + foot) + below;
    const layout = base(width, height, { l: left, r: right, t: 0, b: 0 });
    const ticked = (length, space) => {
      const inside = figure.ticks.filter((t) => t[0] < length);
      const middle = inside.map((t, i) => (t[0] + (i + 1 < inside.length ? inside[i + 1][0] : length) - 1) / 2);
      const least = 12; // pixels that a label needs
      let last = -Infinity;
      const kept = inside.map((t, i) => [middle[i], short(t[1], 16)]).filter(([m]) => {
        const place = (m / length) * space, fits = place - last >= least;
        if (fits) last = place;
        return fits;
      });
      return { tickvals: kept.map((k) => k[0]), ticktext: kept.map((k) => k[1]), edges: inside.map((t) => t[0] - 0.5).filter((e) => e > 0) };
    };
    const traces = figure.panels.map((panel, k) => {
      const column = k % columns, row = Math.floor(k / columns), suffix = k ? String(k + 1) : "";
      const from = column * (each + gapX) / inner, to = Math.min(1, from + each / inner);
      const top = 1 - (row * (head + tall + foot) + head) / height, bottom = Math.max(0, top - tall / height);
      const across = ticked(panel.columns, each), down = ticked(panel.rows, tall);
      const plainAxis = { zeroline: false, showgrid: false, ticks: "", showline: false, tickfont: { size: 11 }, type: "linear", fixedrange: narrow };
      layout[`xaxis${suffix}`] = {
        ...plainAxis, domain: [from, to], anchor: `y${suffix}`, range: [-0.5, panel.columns - 0.5], tickangle: longest > 2 ? -90 : 0,
        showticklabels: (!alike || k + columns >= count) && across.tickvals.length > 0, tickvals: across.tickvals, ticktext: across.ticktext,
      };
      layout[`yaxis${suffix}`] = {
        ...plainAxis, domain: [bottom, top], anchor: `x${suffix}`, range: [panel.rows - 0.5, -0.5],
        showticklabels: (!alike || column === 0) && down.tickvals.length > 0, tickvals: down.tickvals, ticktext: down.ticktext,
      };
      layout.annotations.push({
        xref: "paper", yref: "paper", x: from, y: top, xanchor: "left", yanchor: "bottom", yshift: 3, showarrow: false,
        text: short(panel.name, Math.max(6, Math.floor(each / 7.4))), font: { size: 13, color: css("--ink") },
      });
      const rim = { type: "line", xref: `x${suffix}`, yref: `y${suffix}`, line: { color: line, width: 1 } };
      if (across.edges.length * 5 < each) for (const e of across.edges) layout.shapes.push({ ...rim, x0: e, x1: e, y0: -0.5, y1: panel.rows - 0.5 });
      if (down.edges.length * 5 < tall) for (const e of down.edges) layout.shapes.push({ ...rim, y0: e, y1: e, x0: -0.5, x1: panel.columns - 0.5 });
      return {
        type: "heatmap", z: panel.z, x0: (panel.dx - 1) / 2, dx: panel.dx, y0: (panel.dy - 1) / 2, dy: panel.dy,
        xaxis: `x${suffix}`, yaxis: `y${suffix}`, coloraxis: "coloraxis", hoverongaps: false, name: short(panel.name, 80),
        hovertemplate: "%{fullData.name}<br>row %{y}, column %{x}: <b>%{z:.4~g}</b><extra></extra>",
      };
    });
    layout.plot_bgcolor = css("--ghost"); // what is not a number stays grey
    layout.coloraxis = {
      cmin: figure.low, cmax: figure.high, colorscale: scale(figure.low < 0 && figure.high > 0 ? "div" : "seq"),
      colorbar: narrow
        ? { orientation: "h", x: 0.5, xanchor: "center", y: 24 / height, yanchor: "bottom", len: 0.9, thickness: 10, outlinewidth: 0, nticks: 5, tickfont: { size: 11, color: muted }, xpad: 0, ypad: 0 }
        : { x: Math.min(1, (columns * (each + gapX) - gapX) / inner), xanchor: "left", xpad: 14, y: 1 - head / height, yanchor: "top", lenmode: "pixels", len: Math.min(tall, 300), thickness: 10, outlinewidth: 0, nticks: 5, tickfont: { size: 11, color: muted }, ypad: 0 },
    };
    return { traces, layout };
  }

  function drawPoints(figure, width, away) {
    const narrow = width < 560, rule = css("--rule"), muted = css("--muted");
    const solid = figure.dimensions === 3;
    const names = figure.groups.map((g) => g.name);
    // "cat, predicted wrongly" is a part of "cat": its colour, another mark.
    const whole = names.map((name) => names.indexOf(name.slice(0, Math.max(0, name.lastIndexOf(", ")))));
    const heads = names.filter((_, i) => whole[i] < 0), own = colours(heads.length);
    const tones = names.map((name, i) => own[heads.indexOf(whole[i] < 0 ? name : names[whole[i]])]);
    const strokes = figure.tracks.map((_, i) => css(`--series-${(figure.groups.length + i) % 10}`));
    const entries = [], traces = [];
    const place = (at) => (solid ? { x: at[0], y: at[1], z: at[2] } : { x: at[0], y: at[1] });
    const type = solid ? "scatter3d" : "scatter";
    const where = solid ? "%{x:.3~g}, %{y:.3~g}, %{z:.3~g}" : "%{x:.3~g}, %{y:.3~g}";
    const total = figure.groups.reduce((sum, g) => sum + g.n, 0);
    const size = solid ? (total > 3000 ? 2 : 3.5) : total > 3000 ? 3 : total > 500 ? 5 : 7;
    figure.groups.forEach((group, i) => {
      entries.push({ name: group.name, colour: tones[i], glyph: "dot" });
      if (away.has(group.name)) return;
      traces.push({
        type, ...place(group.at), mode: "markers", opacity: 0.8, hovertemplate: `${short(group.name, 80)}<br>${where}<extra></extra>`,
        marker: { size: whole[i] >= 0 ? 1.8 * size : size, color: tones[i], symbol: whole[i] >= 0 ? (solid ? "cross" : "x") : !solid && figure.groups.length <= 10 && figure.groups.length > 7 ? SYMBOLS[i % 5] : "circle", line: { width: 0 } },
      });
    });
    figure.tracks.forEach((track, i) => {
      const colour = figure.tracks.length === 1 ? css("--ink") : strokes[i];
      entries.push({ name: track.name, colour, style: "solid", glyph: "line" });
      if (away.has(track.name)) return;
      const hover = `${short(track.name, 80)}<br>${where}<extra></extra>`;
      traces.push({
        type, ...place(track.at), mode: "lines+markers", connectgaps: false, hovertemplate: hover,
        line: { color: colour, width: solid ? 4 : 1.75 }, marker: { size: solid ? 2 : 4, color: colour },
      });
      // Where a track ends.
      traces.push({
        type, ...place(track.ends), mode: "markers", hoverinfo: "skip",
        marker: { size: solid ? 5 : 10, color: colour, symbol: "diamond", line: { width: 1, color: css("--paper") } },
      });
    });
    const height = solid ? Math.min(Math.max(width * 0.8, 320), 620) : Math.min(Math.max(width * 0.75, 300), 560);
    const layout = base(width, height, solid ? { l: 0, r: 0, t: 0, b: 0 } : { l: narrow ? 48 : 64, r: 14, t: 10, b: 48 });
    const axis = (text) => ({
      title: { text: short(text, 60), font: { size: 12.5, color: muted } }, gridcolor: solid ? css("--ghost") : rule, zeroline: false, type: "linear",
      color: muted, nticks: 6, ...(solid ? { showbackground: false, showspikes: false } : { linecolor: rule }),
    });
    if (solid) {
      layout.scene = { xaxis: axis(figure.axes[0]), yaxis: axis(figure.axes[1]), zaxis: axis(figure.axes[2]), aspectmode: "cube", dragmode: "turntable", camera: { eye: narrow ? { x: 1.7, y: 1.7, z: 0.95 } : { x: 1.4, y: 1.4, z: 0.8 }, center: { x: 0, y: 0, z: -0.12 } } };
      layout.uirevision = "kept"; // a click on the legend must not reset the camera
    } else {
      layout.xaxis = axis(figure.axes[0]);
      layout.yaxis = axis(figure.axes[1]);
    }
    return { traces, layout, legend: entries };
  }
})();
