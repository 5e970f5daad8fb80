"use strict";

// Galleries: images that a detector misses.
for (const gallery of document.querySelectorAll(".gallery")) {
  const choice = gallery.querySelector("select[data-missed-by]");
  if (!choice) continue;
  const pictures = [...gallery.querySelectorAll("li")], count = gallery.querySelector(".count");
  const show = () => {
    pictures.forEach((p) => { p.hidden = choice.value !== "" && !p.dataset.missed.split(" ").includes(choice.value); });
    const left = pictures.filter((p) => !p.hidden).length;
    count.textContent = `${left} of ${pictures.length} images`;
  };
  choice.closest(".controls").hidden = false;
  choice.addEventListener("change", show);
  show(); // a browser may keep the choice over a reload
}
