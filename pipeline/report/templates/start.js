function filterRows() {
  const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = all("tbody tr");
  for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  element("found").textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows.` : "";
}

openPage(() => {}, () => on("filter", "input", filterRows));
