"use strict";
// The page is complete without this script: it adds themes, pages, sorting, copying and tooltips.

const root = document.documentElement;
const themeButton = document.getElementById("theme");
const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try { return localStorage.getItem("kerasdet-theme"); } catch { return null; } // some browsers refuse it for files
}

function remember(theme) {
  try { localStorage.setItem("kerasdet-theme", theme); } catch { /* the choice then lasts for this visit */ }
}

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches;
}

function showTheme() {
  themeButton.setAttribute("aria-pressed", String(isDark()));
}

if (remembered()) root.dataset.theme = remembered();
showTheme();
systemIsDark.addEventListener("change", showTheme);
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remember(root.dataset.theme);
  showTheme();
});

function button(label, onClick) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = label;
  element.addEventListener("click", onClick);
  return element;
}

function paginate(paged) {
  const list = paged.querySelector(".items");
  const filter = paged.querySelector(".filter");
  const size = Number(paged.dataset.pageSize);
  if (!filter && list.children.length <= size) return;
  let first = 0;
  let tag = "";
  const pager = document.createElement("div");
  const status = document.createElement("p");
  const previous = button("Previous", () => show(first - size));
  const next = button("Next", () => show(first + size));
  pager.className = "pager";
  status.setAttribute("role", "status");
  pager.append(status, previous, next);
  paged.append(pager);

  function show(start) {
    const all = [...list.children];
    const chosen = tag ? all.filter((item) => item.dataset.tags.split(" ").includes(tag)) : all;
    const last = Math.min(start + size, chosen.length);
    first = start;
    all.forEach((item) => { item.hidden = true; });
    chosen.slice(first, last).forEach((item) => { item.hidden = false; });
    status.textContent = `${first + 1} to ${last} of ${chosen.length.toLocaleString("en")} ${paged.dataset.noun}`;
    const focused = document.activeElement;
    previous.disabled = first === 0;
    next.disabled = last === chosen.length;
    if (focused === next && next.disabled) previous.focus();
    if (focused === previous && previous.disabled) next.focus();
  }
  filter?.querySelectorAll("button").forEach((control) => {
    control.addEventListener("click", () => {
      tag = control.dataset.tag;
      filter.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === control)));
      show(0);
    });
  });
  if (filter) filter.hidden = false;
  list.addEventListener("sorted", () => show(0));
  show(0);
}

function sortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const control = header.querySelector(".sort");
    if (!control) return;
    control.addEventListener("click", () => {
      const numeric = header.classList.contains("number");
      const direction = header.getAttribute("aria-sort") === (numeric ? "descending" : "ascending") ? -1 : 1;
      const words = (row) => row.cells[column].textContent;
      const value = (row) => parseFloat(words(row).replace(/[^\d.-]/g, ""));
      const compare = numeric // cells without a number are last in both directions
        ? (a, b) => Number.isNaN(value(a)) - Number.isNaN(value(b)) || (value(b) - value(a)) * direction
        : (a, b) => words(a).localeCompare(words(b)) * direction;
      body.append(...[...body.rows].sort(compare));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", (direction === 1) === numeric ? "descending" : "ascending");
      body.dispatchEvent(new Event("sorted"));
    });
  });
}

document.querySelectorAll("table").forEach(sortable);
document.querySelectorAll(".paged").forEach(paginate);

document.querySelectorAll(".copy").forEach((control) => {
  control.addEventListener("click", async () => {
    const code = control.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      control.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      control.textContent = "Selected";
    }
    setTimeout(() => { control.textContent = "Copy"; }, 2000);
  });
});

const tooltip = document.createElement("div");
tooltip.id = "tooltip";
tooltip.hidden = true;
tooltip.setAttribute("aria-hidden", "true"); // the same words are the label of the mark and in the table
document.body.append(tooltip);
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.(".chart [role=graphics-symbol][aria-label]:not([aria-roledescription$=axis]):not([aria-roledescription=legend])");
  tooltip.hidden = !mark;
  if (!mark) return;
  tooltip.textContent = mark.getAttribute("aria-label");
  const left = Math.min(event.clientX + 14, innerWidth - tooltip.offsetWidth - 8);
  tooltip.style.left = `${Math.max(left, 8)}px`;
  tooltip.style.top = `${Math.max(event.clientY - tooltip.offsetHeight - 12, 8)}px`;
});

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const visible = new Set();
const observer = new IntersectionObserver((entries) => {
  entries.forEach((entry) => (entry.isIntersecting ? visible.add(entry.target.id) : visible.delete(entry.target.id)));
  const current = [...links.keys()].find((id) => visible.has(id));
  links.forEach((link, id) => {
    if (id === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
}, { rootMargin: "-10% 0px -70% 0px" });
document.querySelectorAll("main > section").forEach((section) => observer.observe(section));
