function drawCoverage() {
  const c = colours(), { subjects, tasks, stages } = numbers.coverage, { percent, texts } = stages[element("stage").value];
  draw("chart-coverage", [{
    type: "heatmap", x: tasks, y: subjects, z: percent, text: texts, zmin: 0, zmax: 100, xgap: 1, ygap: 1,
    colorscale: [[0, c.second], [0.5, c.page], [1, c.ours]], colorbar: { ticksuffix: " %", thickness: 12, outlinewidth: 0 },
    hovertemplate: "%{y} %{x}: %{text} (%{z} %)<extra></extra>", hoverongaps: false,
  }], {
    xaxis: { type: "category", showgrid: false, side: "top" },
    yaxis: { type: "category", showgrid: false, autorange: "reversed" },
    margin: { l: 50, r: 12, t: 30, b: 12 },
  }, 90 + Math.max(120, 16 * subjects.length));
}

function drawBoxes() {
  if (!numbers.boxes) return;
  const c = colours(), name = element("box-measure").value, found = numbers.boxes.histograms[name];
  const limit = (x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: c.second, width: 2, dash: "dash" } });
  const ends = [found.starts[0], found.starts[found.starts.length - 1] + found.width];
  draw("chart-boxes", [{
    name, type: "bar", x: found.starts.map((start) => start + found.width / 2), width: found.width, y: found.counts,
    marker: { color: c.ours }, hovertemplate: "%{x:.4g}: %{y}<extra></extra>",
  }], {
    xaxis: { title: { text: `${name}, ${found.unit.split(",")[0]}` } }, yaxis: { title: { text: "boxes" } }, bargap: 0.05,
    shapes: found.limits.filter((x) => x >= ends[0] && x <= ends[1]).map(limit),
  }, 340);
  const { x, y, counts } = numbers.boxes.places;
  draw("chart-places", [{
    type: "heatmap", x, y, z: counts, colorscale: [[0, c.panel], [1, c.ours]], showscale: false,
    hovertemplate: "x %{x} %, y %{y} %: %{z} boxes<extra></extra>",
  }], {
    xaxis: { title: { text: "x, %" }, range: [0, 100], showgrid: false, zeroline: false },
    yaxis: { title: { text: "y, %" }, range: [100, 0], showgrid: false, zeroline: false },
  }, 340);
}

function drawFidelity() {
  if (!element("chart-fidelity")) return;
  const c = colours(), found = numbers.fidelity, median = found.median;
  draw("chart-fidelity", [{
    name: "median", x: median, y: found.maps, mode: "markers", marker: { size: 10, color: c.ours }, hoverinfo: "x+name",
    error_x: { type: "data", symmetric: false, color: c.ours, width: 4,
      array: found["95 %"].map((end, i) => end - median[i]), arrayminus: found["5 %"].map((end, i) => median[i] - end) },
  }, {
    name: "stated mean", x: found.stated, y: found.maps, mode: "markers", hoverinfo: "x+name",
    marker: { symbol: "diamond-open", size: 11, color: c.second, line: { width: 2 } },
  }], {
    xaxis: { title: { text: "relative L2 error" }, rangemode: "tozero" },
    yaxis: { type: "category", autorange: "reversed", showgrid: false },
  }, 120 + 40 * found.maps.length);
}

function drawArrays() {
  const c = colours(), { names, bytes } = numbers.arrays, megabytes = bytes.map((each) => each / 1e6);
  draw("chart-arrays", [{
    type: "bar", orientation: "h", x: megabytes, y: names, marker: { color: c.ours }, hovertemplate: "%{y}: %{x:,.1f} MB<extra></extra>",
  }], { xaxis: { title: { text: "MB" } }, yaxis: { type: "category", autorange: "reversed", showgrid: false } }, 80 + 28 * names.length);
}

function drawAll() {
  [drawCoverage, drawBoxes, drawFidelity, drawArrays].forEach((each) => each());
}

function start() {
  showImages();
  on("stage", "change", drawCoverage);
  on("box-measure", "change", drawBoxes);
}

openPage(drawAll, start);
