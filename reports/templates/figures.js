"use strict";

// Every figure as a file: SVG as it is shown, or PNG at twice its size. Figures that plotly draws give their own.
(() => {
  const PARTS = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];

  for (const figure of document.querySelectorAll("figure.drawn")) {
    const svg = figure.querySelector("svg[role=img]");
    if (svg) offer(figure, svg.getAttribute("aria-label"), () => Promise.resolve([alone(svg), svg.viewBox.baseVal.width, svg.viewBox.baseVal.height]));
  }
  if (!window.Plotly) return;
  for (const plot of document.querySelectorAll(".plot")) {
    const name = plot.closest("figure")?.querySelector("h3")?.textContent || document.title;
    offer(plot.closest("figure") || plot.parentElement, plot.getAttribute("aria-label") || name, async () => {
      const address = await Plotly.toImage(plot, { format: "svg", width: plot.clientWidth, height: plot.clientHeight });
      return [decodeURIComponent(address.slice(address.indexOf(",") + 1)), plot.clientWidth, plot.clientHeight];
    });
  }

  function offer(box, name, make) {
    const line = document.createElement("p");
    line.className = "files figure-files";
    for (const kind of ["SVG", "PNG"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `↓ ${kind}`;
      button.setAttribute("aria-label", `${name} as ${kind}`);
      button.addEventListener("click", async () => {
        const [text, width, height] = await make();
        const stem = name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 80) || "figure";
        if (kind === "SVG") save(new Blob([text], { type: "image/svg+xml" }), `${stem}.svg`);
        else save(await painted(text, width, height), `${stem}.png`);
      });
      line.append(button);
    }
    box.append(line);
  }

  // A copy that needs no style sheet.
  function alone(svg) {
    const copy = svg.cloneNode(true);
    const from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
    from.forEach((element, i) => {
      const style = getComputedStyle(element);
      for (const part of PARTS) to[i].setAttribute(part, style.getPropertyValue(part));
      to[i].removeAttribute("class");
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const { width, height } = svg.viewBox.baseVal;
    const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ width, height, fill: css("--paper") })) ground.setAttribute(name, value);
    copy.prepend(ground);
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    return new XMLSerializer().serializeToString(copy);
  }

  async function painted(text, width, height) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width * 2, height * 2];
    const pen = canvas.getContext("2d");
    pen.fillStyle = css("--paper");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => { canvas.toBlob(done); });
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
})();
