// The button of a block with prompts copies the commands alone, ready to be pasted; the theme's own would copy what they print, too.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-clipboard-target]");
  const code = button && document.querySelector(button.dataset.clipboardTarget);
  if (!code || !code.querySelector(".gp")) return;
  const lines = code.textContent.split("\n");
  const goesOn = (at) => at >= 0 && lines[at].endsWith("\\") && (lines[at].startsWith("$ ") || goesOn(at - 1));
  const commands = lines.filter((line, at) => line.startsWith("$ ") || goesOn(at - 1));
  button.dataset.clipboardText = commands.map((line) => line.replace(/^\$ /, "")).join("\n");
}, true);

// Short names in tables are not broken.
for (const code of document.querySelectorAll(".md-typeset :is(td, th) code")) code.classList.toggle("short", code.textContent.length < 24);

// Names in code at the end of a row are broken where they have a joint, before they are broken anywhere.
for (const code of document.querySelectorAll(".md-typeset td:last-child code")) {
  if (code.childElementCount || code.textContent.length < 24) continue;
  code.innerHTML = code.innerHTML.replace(/(?<=[_/:.=])(?=\w)/g, "<wbr>");
}

// The same beside the page, where the names of classes are longer than the room.
for (const label of document.querySelectorAll(".md-nav--secondary .md-ellipsis :is(.md-typeset, code)")) {
  if (!label.childElementCount) label.innerHTML = label.innerHTML.replace(/(?<=[_.])(?=\w)|(?=For[A-Z])|(?<=[a-z\d])(?=Model)/g, "<wbr>");
}

// On a narrow screen the rows of a table that does not fit are set as paragraphs: every cell knows the title of its column.
const titlesOf = (table) => [...(table.tHead?.rows[0]?.cells ?? [])].map((cell) => cell.textContent.trim());
const tables = matchMedia("(max-width: 44.9em)").matches ? [...document.querySelectorAll(".md-typeset table:not([class])")] : [];
const wide = tables.filter((table) => table.scrollWidth > table.clientWidth && titlesOf(table).length <= 5 && !table.closest(".matrix"));
for (const table of wide) {
  const titles = titlesOf(table);
  table.dataset.stacked = "";
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, at) => { cell.dataset.title = titles[at]; });
}
