// The theme makes these in the browser: tables that scroll, which the keyboard has to reach, and the landmarks of the
// copy buttons, which need a name each.
function mend() {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => {
    table.tabIndex = 0;
    table.setAttribute("role", "group");
    table.setAttribute("aria-label", "Table");
  });
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => {
    nav.setAttribute("aria-label", `Code block ${number + 1}`);
  });
}
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
