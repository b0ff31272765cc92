"use strict";
// The page reads without this script; with it, tables sort and filter, and links open what they name.
(() => {
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const make = (name, attributes, text) => {
    const one = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) one.setAttribute(key, value);
    if (text !== undefined) one.textContent = text;
    return one;
  };

  // Light, dark, or what the system says.
  const themes = ["auto", "light", "dark"];
  const media = { auto: "screen and (prefers-color-scheme: dark)", light: "not all", dark: "screen" };
  const toggle = make("button", { type: "button", id: "theme", class: "tool" });
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const setTheme = (name) => {
    root.dataset.theme = name;
    all("picture source").forEach((source) => { source.media = media[name]; });
    toggle.textContent = `theme: ${name}`;
    try { localStorage.setItem("theme", name); } catch { /* a page from disk may have no storage */ }
  };
  toggle.addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length]);
  });
  document.querySelector("nav > div").append(toggle);
  setTheme(themes.includes(remembered()) ? remembered() : "auto");

  // A column of numbers is sorted by the first number of each cell; cells without one come last.
  const number = (text) => {
    const found = text.replace(/\u2212/g, "-").match(/^\s*[<+]?\s*(-?\d[\d.]*(?:e[+-]?\d+)?)/i);
    return found ? parseFloat(found[1]) : null;
  };
  const sortBy = (table, column, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => {
      const text = row.cells[column] ? row.cells[column].textContent.trim() : "";
      return { row, place, text, value: number(text) };
    });
    const numeric = rows.some((one) => one.value !== null)
      && rows.every((one) => one.value !== null || /^(–|not |$)/.test(one.text));
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      if (!numeric) return sign * a.text.localeCompare(b.text, "en") || a.place - b.place;
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
      return sign * (a.value - b.value) || a.place - b.place;
    });
    body.append(...rows.map((one) => one.row));
  };
  all("table").filter((table) => table.tHead && table.tBodies[0].rows.length > 1).forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sortBy(table, column, down);
      });
    });
  });

  const filtered = (items, words, keep) => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((one) => {
      const text = one.textContent.toLowerCase();
      one.hidden = !(keep(one) && wanted.every((word) => text.includes(word)));
      shown += !one.hidden;
    });
    return shown;
  };
  const searchBox = (label) => make("input", { type: "search", "aria-label": label, placeholder: "filter" });

  all(".scroll > table").filter((table) => table.tBodies[0].rows.length > 10).forEach((table) => {
    const name = table.parentElement.getAttribute("aria-label") || "this table";
    const tools = make("div", { class: "tools" });
    const box = searchBox(`Filter the rows of: ${name}`);
    const count = make("output", {});
    const rows = [...table.tBodies[0].rows];
    box.addEventListener("input", () => {
      const shown = filtered(rows, box.value, () => true);
      count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
    });
    tools.append(box, count);
    table.parentElement.before(tools);
  });

  const samples = all(".sample");
  if (samples.length > 1) {
    const tools = make("div", { class: "tools" });
    const choice = (label, key) => {
      const select = make("select", { "aria-label": label });
      select.append(make("option", { value: "" }, `${label}: all`));
      [...new Set(samples.map((one) => one.dataset[key]))].forEach((value) => {
        select.append(make("option", { value }, value));
      });
      return select;
    };
    const box = searchBox("Search questions and responses");
    const kind = choice("kind", "kind");
    const benchmark = choice("benchmark", "benchmark");
    const count = make("output", {});
    const more = make("button", { type: "button", class: "tool" }, "show more");
    let limit = 0;
    const show = (atMost) => {
      limit = atMost;
      const keep = (one) => (!kind.value || one.dataset.kind === kind.value)
        && (!benchmark.value || one.dataset.benchmark === benchmark.value);
      const found = filtered(samples, box.value, keep);
      samples.filter((one) => !one.hidden).slice(limit).forEach((one) => { one.hidden = true; });
      more.hidden = found <= limit;
      count.textContent = `${found} of ${samples.length} questions`;
    };
    [box, kind, benchmark].forEach((control) => control.addEventListener("input", () => show(10)));
    more.addEventListener("click", () => show(limit + 20));
    tools.append(box, kind, benchmark, count);
    samples[0].before(tools);
    samples[samples.length - 1].after(more);
    show(10);
  }

  // A link opens whatever hides its target.
  const reveal = () => {
    let name = "";
    try { name = decodeURIComponent(location.hash.slice(1)); } catch { return; }
    const target = name && document.getElementById(name);
    if (!target) return;
    target.hidden = false;
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
    target.scrollIntoView();
  };
  all("section[id] > h2").forEach((title) => {
    const link = make("a", { class: "here", href: `#${title.parentElement.id}` }, "#");
    link.setAttribute("aria-label", `Link to ${title.textContent}`);
    title.append(" ", link);
  });
  addEventListener("hashchange", reveal);
  reveal();

  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      const link = links.get(entry.target.id);
      if (!link) return;
      link.setAttribute("aria-current", "true");
      const bar = link.parentElement;
      bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 2 });
    });
  }, { rootMargin: "-20% 0px -70% 0px" });
  all("main > section[id]").forEach((section) => watcher.observe(section));

  // On paper nothing can be opened.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));
})();
