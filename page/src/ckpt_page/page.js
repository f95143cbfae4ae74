
"use strict";
(() => {
  const pointed = document.getElementById("pointed");
  const note = pointed.textContent;
  const map = document.querySelector(".treemap");
  map.addEventListener("pointerover", (event) => {
    const title = event.target.querySelector("title");
    pointed.textContent = title ? title.textContent : note;
  });
  map.addEventListener("pointerleave", () => { pointed.textContent = note; });

  const words = document.getElementById("words");
  const onlyBad = document.getElementById("only-bad");
  const matches = document.getElementById("matches");
  const rows = [...document.querySelectorAll("#tensors tbody tr")];
  const texts = rows.map((row) => `${row.cells[0].textContent} ${row.cells[1].textContent} ${row.cells[3].textContent}`.toLowerCase());
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, number) => {
      const fits = wanted.every((word) => texts[number].includes(word)) && (!onlyBad?.checked || row.classList.contains("bad"));
      row.hidden = !fits;
      shown += fits;
    });
    matches.textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
  };
  words.addEventListener("input", filter);
  onlyBad?.addEventListener("change", filter);
  map.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    const row = link && document.getElementById(link.getAttribute("href").slice(1));
    if (row?.hidden) {
      words.value = "";
      if (onlyBad) onlyBad.checked = false;
      filter();
    }
  });
  document.getElementById("filter").hidden = false;
  filter();
})();
