const tokens = [...document.querySelectorAll(".text > .t[tabindex]")], body = document.body;
const stop = (token) => { // Tab reaches one token of a text, arrow keys the others
  for (const other of token.parentNode.children) if (other.tabIndex === 0) other.tabIndex = -1;
  token.tabIndex = 0;
};
tokens.toReversed().forEach(stop);
addEventListener("mouseover", ({ target }) => target.closest(".t") && body.classList.remove("off"));
addEventListener("focusin", ({ target }) => {
  if (!tokens.includes(target)) return;
  body.classList.remove("off");
  stop(target); target.scrollIntoView({ block: "nearest" });
});
addEventListener("click", ({ target }) => { // a finger points at nothing: a tap opens and closes
  const token = target.closest(".text > .t[tabindex]");
  if (token) token.focus(); else if (!target.closest(".pop")) document.activeElement.blur();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") body.classList.add("off");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], at = tokens.indexOf(event.target);
  if (at < 0 || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  const panel = event.target.nextSibling, long = panel.scrollHeight > panel.clientHeight;
  const down = long && { ArrowDown: 40, ArrowUp: -40 }[event.key];
  if (step || down) event.preventDefault();
  if (down) panel.scrollBy(0, down);
  if (step) tokens[at + step]?.focus();
});
