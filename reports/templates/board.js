"use strict";

// The front page's leaderboards: tabs, search, filters, columns, sorting and a link to what is shown. The state is in
// the address's fragment. Rows beyond the first come from a script that is loaded when they are asked for.
(() => {
  const tools = document.getElementById("board-tools");
  if (!tools) return;
  const STEP = 200;
  const $ = (id) => document.getElementById(id);
  const tabs = [...tools.querySelectorAll("[data-board]")];
  const boxes = [...$("board-columns").querySelectorAll("input")];
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const start = { board: "", sort: "", dir: "", q: "", rows: "", hide: [] };
  let state = { ...start };
  let later = null; // the rows that the page does not hold, on their way
  let arrived = false;

  const boards = [...document.querySelectorAll(".board")].map((section) => {
    const table = section.querySelector("table.sortable");
    const heads = table.querySelector("tr.heads");
    const spans = heads ? [...heads.cells].map((cell) => [cell, cell.colSpan]) : [];
    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const columns = headings.map((h) => h.dataset.key);
    const rows = [...table.tBodies[0].rows].map((node) => ({
      node,
      keys: Object.fromEntries(columns.map((c, i) => [c, node.cells[i].dataset.sort])),
      text: [node.querySelector("td.detector .value").textContent, ...[...node.querySelectorAll(".badge")].map((b) => b.textContent)].join(" ").toLowerCase(),
      flags: node.querySelectorAll(".badge").length,
    }));
    return { section, table, spans, headings, columns, rows, total: Number(section.dataset.total), held: rows.length, room: rows.length };
  });
  const hasLater = boards.some((b) => b.held < b.total);

  for (const board of boards) {
    board.headings.forEach((heading) => heading.querySelector("button").addEventListener("click", () => {
      const current = heading.getAttribute("aria-sort");
      const ascending = current ? current !== "ascending" : heading.dataset.first !== "desc";
      change({ sort: heading.dataset.key, dir: ascending ? "asc" : "desc" });
    }));
    board.section.querySelector(".more").addEventListener("click", () => { board.room += STEP; show(); });
  }
  for (const tab of tabs) tab.addEventListener("click", () => change({ board: tab.dataset.board }));
  $("board-search").addEventListener("input", () => change({ q: $("board-search").value.trim() }));
  $("board-rows").addEventListener("change", () => change({ rows: $("board-rows").value }));
  for (const box of boxes) box.addEventListener("change", () => change({ hide: boxes.filter((b) => !b.checked).map((b) => b.value) }));
  $("board-sort").addEventListener("change", () => {
    const heading = boards[0].headings.find((h) => h.dataset.key === $("board-sort").value);
    change({ sort: $("board-sort").value, dir: heading ? heading.dataset.first : "" });
  });
  const menu = tools.querySelector(".columns-menu");
  addEventListener("click", (e) => { if (!menu.contains(e.target)) menu.open = false; });
  menu.addEventListener("keydown", (e) => {
    if (e.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  $("board-reset").addEventListener("click", () => change({ ...start }));
  addEventListener("hashchange", read);
  tools.hidden = false;
  read();

  function change(part) {
    state = { ...state, ...part };
    const address = fragment();
    history.replaceState(null, "", address || "#leaderboard");
    show();
  }

  function fragment() {
    const told = new URLSearchParams();
    for (const name of ["board", "sort", "dir", "q", "rows"]) if (state[name]) told.set(name, state[name]);
    if (state.hide.length) told.set("hide", state.hide.join("."));
    const text = told.toString();
    return text ? `#${text}` : "";
  }

  function read() {
    const text = location.hash.slice(1);
    if (text && !text.includes("=")) return show(); // the address of a section
    const told = new URLSearchParams(text);
    const known = boxes.map((b) => b.value);
    state = {
      board: boards.some((b) => b.section.dataset.board === told.get("board")) ? told.get("board") : "",
      sort: [...known, "detector"].includes(told.get("sort")) ? told.get("sort") : "",
      dir: told.get("dir") === "desc" ? "desc" : told.get("sort") ? "asc" : "",
      q: told.get("q") || "",
      rows: ["ranked", "unflagged"].includes(told.get("rows")) ? told.get("rows") : "",
      hide: (told.get("hide") || "").split(".").filter((c) => known.includes(c)),
    };
    show();
    if (text) $("leaderboard").scrollIntoView();
  }

  // All rows are needed to sort or search; the first ones stand until the others are here.
  function needsLater() {
    return hasLater && !later && (state.sort || state.q || state.rows || boards.some((b) => b.room > b.held));
  }

  function load() {
    later = new Promise((done) => {
      const script = document.createElement("script");
      script.src = "data/board.js";
      script.addEventListener("load", () => {
        for (const board of boards) {
          for (const { h, k, f, n } of (window.laterRows || {})[board.section.dataset.board] || []) {
            board.rows.push({ node: null, html: h, keys: k, text: f.toLowerCase(), flags: n });
          }
        }
        arrived = true;
        done();
      });
      script.addEventListener("error", () => { arrived = true; done(); });
      document.head.append(script);
    });
    later.then(show);
  }

  function show() {
    if (needsLater()) load();
    press(tabs, tabs.find((t) => t.dataset.board === state.board));
    if ($("board-search").value.trim() !== state.q) $("board-search").value = state.q;
    $("board-rows").value = state.rows;
    $("board-sort").value = state.sort;
    boxes.forEach((b) => { b.checked = !state.hide.includes(b.value); });
    sheet.replaceSync(state.hide.map((c) => `.board .${c} { display: none }`).join("\n"));
    $("board-link").href = fragment() || "#leaderboard";
    let shown = 0, found = 0, total = 0;
    for (const board of boards) {
      board.section.hidden = Boolean(state.board) && board.section.dataset.board !== state.board;
      if (board.section.hidden) continue;
      const rows = chosen(board);
      const kept = rows.slice(0, Math.max(board.room, state.board ? Math.min(STEP, rows.length) : 0));
      board.table.tBodies[0].replaceChildren(...kept.map((row) => nodeOf(board, row)));
      headings(board);
      const missing = arrived ? 0 : board.total - board.held;
      board.section.querySelector(".more").hidden = rows.length + (isPlain() ? missing : 0) <= kept.length;
      shown += kept.length;
      found += rows.length + (isPlain() ? missing : 0);
      total += board.total;
    }
    $("board-count").textContent = later && !arrived ? "loading all rows …" : found < total ? `${found} of ${total} rows match` : shown < total ? `${shown} of ${total} rows` : `${total} rows`;
  }

  function isPlain() {
    return !state.q && !state.rows;
  }

  function chosen(board) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = board.rows.filter((row) => words.every((w) => row.text.includes(w))
      && (state.rows !== "ranked" || row.keys.rank) && (state.rows !== "unflagged" || !row.flags));
    if (!state.sort || !board.columns.includes(state.sort)) return rows;
    const isText = board.headings[board.columns.indexOf(state.sort)].dataset.kind === "text";
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    const sign = state.dir === "desc" ? -1 : 1;
    const keyed = rows.map((row) => ({ row, key: isText ? row.keys[state.sort] : row.keys[state.sort] === "" ? null : Number(row.keys[state.sort]) }));
    const empty = (key) => key === null || key === "";
    // Rows with the same value, and those without one, which stay last, in the order of the page.
    keyed.sort((a, b) => (empty(a.key) || empty(b.key) ? empty(a.key) - empty(b.key)
      : sign * (isText ? compare(a.key, b.key) : a.key - b.key)));
    return keyed.map(({ row }) => row);
  }

  function nodeOf(board, row) {
    if (!row.node) {
      const template = document.createElement("template");
      template.innerHTML = row.html; // escaped when the site was made
      row.node = template.content.firstElementChild;
      board.headings.forEach((heading, i) => {
        row.node.cells[i].dataset.label = [...heading.querySelector("button").children].map((part) => part.textContent).join(" ");
      });
    }
    return row.node;
  }

  function headings(board) {
    board.headings.forEach((heading) => {
      const own = state.sort ? heading.dataset.key === state.sort : heading.dataset.key === "rank";
      if (own) heading.setAttribute("aria-sort", state.dir === "desc" ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    let at = 0;
    for (const [cell, span] of board.spans) {
      const left = board.columns.slice(at, at + span).filter((c) => !state.hide.includes(c)).length;
      cell.hidden = !left;
      if (left) cell.colSpan = left;
      at += span;
    }
  }
})();
