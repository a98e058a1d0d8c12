// Adds names and keyboard access that Material for MkDocs 9.8 leaves out; axe reports them otherwise.
function makeAccessible() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((each, i) => each.setAttribute("aria-label", `Code ${i + 1}`));
  document.querySelectorAll(".md-code__button").forEach((each) => each.setAttribute("aria-label", each.title));
  document.querySelectorAll(".md-typeset__scrollwrap, .highlight code, .md-sidebar__scrollwrap").forEach((each) => {
    each.tabIndex = 0;
  });
}
document$.subscribe(() => {
  document.querySelectorAll("th:empty").forEach((each) => each.replaceWith(document.createElement("td")));
});
document$.subscribe(makeAccessible);
new MutationObserver(makeAccessible).observe(document.body, { childList: true, subtree: true });
