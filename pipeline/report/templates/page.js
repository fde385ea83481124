const { aus, members, grid } = numbers;
const units = aus.slice(0, -1);
const state = { member: 0, measure: element("measure").value, au: 0 };

const shown = () => members[state.member];
const signed = (value) => value === null ? "-" : (value > 0 ? "+" : "") + fixed(value, 2);

function bars(measure, pick = (values) => values) {
  const values = pick(measure.values);
  const high = pick(measure.high), low = pick(measure.low);
  return { array: high.map((end, i) => end - values[i]), arrayminus: low.map((end, i) => values[i] - end) };
}

function drawScores() {
  const c = colours(), measure = shown().measures[state.measure];
  if (!measure) { Plotly.purge(element("chart-scores")); return; }
  const places = aus.map((_, i) => i);
  const isPublished = state.measure === "F1" && shown().published.some((value) => value !== null);
  const traces = [{
    name: "floor", x: places, y: measure.floor, mode: "markers", hoverinfo: "y+name",
    marker: { symbol: "line-ew-open", size: 22, color: c.floor, line: { width: 3, color: c.floor } },
  }];
  Object.entries(measure.folds).forEach(([part, values], i, folds) => traces.push({
    name: `fold ${part}`, x: places.map((place) => place + 0.2 + 0.1 * (i - (folds.length - 1) / 2)), y: values, mode: "markers",
    marker: { symbol: SYMBOLS[i % SYMBOLS.length], size: 7, color: c.muted }, hoverinfo: "y+name",
  }));
  traces.push({
    name: state.measure, x: places.map((place) => place - 0.08), y: measure.values, mode: "markers", hoverinfo: "y+name",
    marker: { size: 10, color: c.ours }, error_y: { type: "data", symmetric: false, ...bars(measure), color: c.ours, width: 4 },
  });
  if (isPublished) traces.push({
    name: "published F1", x: places.map((place) => place - 0.28), y: shown().published, mode: "markers", hoverinfo: "y+name",
    marker: { symbol: "diamond", size: 9, color: c.second },
  });
  draw("chart-scores", traces, {
    xaxis: { tickvals: places, ticktext: aus, showgrid: false, zeroline: false, range: [-0.6, aus.length - 0.4] },
    yaxis: { title: { text: `${state.measure}, %` }, range: [-2, 102], zeroline: false },
  }, 380);
}

function drawMembers() {
  if (!element("chart-members")) return;
  const c = colours();
  const known = members.filter((member) => member.measures[state.measure]);
  const names = known.map((member) => shortened(member.name, Math.max(14, Math.round(element("chart-members").clientWidth / 25))));
  const places = known.map((_, i) => i);
  const each = known.map((member) => member.measures[state.measure]);
  const last = aus.length - 1;
  const one = (kind) => each.map((measure) => measure[kind][last]);
  const values = one("values");
  const traces = [{
    name: "runs", x: each.flatMap((measure) => measure.runs), y: each.flatMap((measure, i) => measure.runs.map(() => i + 0.25)),
    mode: "markers", marker: { symbol: "circle-open", size: 6, color: c.muted }, hoverinfo: "x+name",
  }, {
    name: state.measure, x: values, y: places, mode: "markers", hoverinfo: "x+name", marker: { size: 10, color: c.ours },
    error_x: { type: "data", symmetric: false, color: c.ours, width: 4,
      array: one("high").map((end, i) => end - values[i]), arrayminus: one("low").map((end, i) => values[i] - end) },
  }];
  const published = known.map((member) => member.published[last]);
  if (state.measure === "F1" && published.some((value) => value !== null)) traces.push({
    name: "published F1", x: published, y: places.map((place) => place - 0.25), mode: "markers", hoverinfo: "x+name",
    marker: { symbol: "diamond", size: 9, color: c.second },
  });
  draw("chart-members", traces, {
    xaxis: { title: { text: `mean ${state.measure}, %` } },
    yaxis: { tickvals: places, ticktext: names, range: [known.length - 0.5, -0.5], showgrid: false, zeroline: false },
  }, 110 + 42 * known.length);
}

function showCards() {
  const last = aus.length - 1, cards = [];
  for (const [name, measure] of Object.entries(shown().measures)) {
    cards.push([`mean ${name}`, fixed(measure.values[last]), `95 %: ${fixed(measure.low[last])} to ${fixed(measure.high[last])}`]);
  }
  cards.push(["always “present”", fixed(shown().measures.F1.floor[last]), "F1 without a head"]);
  if (shown().published[last] !== null) cards.push(["published F1", fixed(shown().published[last]), "on the real data set"]);
  element("cards").replaceChildren(...cards.map(([term, value, note]) => {
    const card = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
    const small = document.createElement("small");
    dt.textContent = term;
    small.textContent = note;
    dd.append(value, small);
    card.append(dt, dd);
    return card;
  }));
}

function findDifference(ours, theirs) {
  const [i, j] = [Math.min(ours, theirs), Math.max(ours, theirs)];
  const found = (numbers.differences[`${i}-${j}`] || {})[state.measure];
  if (!found || found.fault || ours < theirs) return found;
  const negated = (values) => values.map((value) => value === null ? null : -value);
  return { ...found, points: negated(found.points), low: negated(found.high), high: negated(found.low) };
}

function drawDifferences() {
  if (!element("ours")) return;
  const ours = Number(element("ours").value), theirs = Number(element("theirs").value);
  const gap = findDifference(ours, theirs), last = aus.length - 1;
  const names = [members[ours].name, members[theirs].name];
  if (!gap || gap.fault) {
    element("conclusion").textContent = ours === theirs ? "These are the same: choose two different ones."
      : gap ? gap.fault : `${state.measure} is not known of both.`;
    Plotly.purge(element("chart-differences"));
    element("differences").replaceChildren();
    return;
  }
  const isClear = gap.low[last] > 0 || gap.high[last] < 0;
  const verdict = isClear ? `${names[0]} is ${gap.points[last] > 0 ? "better" : "worse"} than ${names[1]}`
    : `${names[0]} and ${names[1]} are not distinguishable at 95 %`;
  const seeds = gap.runs.every((count) => count === 1) ? "one run each; seed-to-seed variation is not included"
    : `${gap.runs[0]} and ${gap.runs[1]} runs`;
  element("conclusion").textContent = `${verdict}: ${signed(gap.points[last])} points of mean ${state.measure} `
    + `(95 % ${signed(gap.low[last])} to ${signed(gap.high[last])}, ${gap.subjects} subjects, ${seeds}).`;
  const c = colours();
  draw("chart-differences", [{
    x: aus, y: gap.points, mode: "markers", hoverinfo: "x+y", marker: { size: 10, color: c.ours },
    error_y: { type: "data", symmetric: false, color: c.ours, width: 4,
      array: gap.high.map((end, i) => end - gap.points[i]), arrayminus: gap.low.map((end, i) => gap.points[i] - end) },
  }], { yaxis: { title: { text: `points of ${state.measure}` }, zeroline: true, zerolinewidth: 2 }, xaxis: { showgrid: false } }, 320);
  const of = (id) => members[id].measures[state.measure].values;
  element("differences").replaceChildren(makeTable(
    `${state.measure} of both, in percent, and their paired difference in points`,
    ["AU", "ours", "theirs", "ours minus theirs", "95\u00a0%"],
    aus.map((au, i) => [au, fixed(of(ours)[i]), fixed(of(theirs)[i]), signed(gap.points[i]), `${signed(gap.low[i])} to ${signed(gap.high[i])}`]),
  ));
}

function drawThresholds() {
  if (!element("au")) return;
  const c = colours(), member = shown(), i = state.au;
  const place = Math.round(Number(element("threshold").value) * (grid.length - 1)), threshold = grid[place];
  element("threshold-value").textContent = threshold.toFixed(2);
  if (!member.grid.f1) {
    element("at-threshold").textContent = `The predictions of ${member.name} cannot be read.`;
    ["chart-pr", "chart-f1"].forEach((id) => Plotly.purge(element(id)));
    return;
  }
  const at = (kind, where) => member.grid[kind][i][where], half = (grid.length - 1) / 2;
  element("at-threshold").textContent = `${units[i]} at threshold ${threshold.toFixed(2)}: F1 ${fixed(at("f1", place))}, `
    + `precision ${at("precision", place) === null ? "undefined (nothing is predicted)" : fixed(at("precision", place))}, recall ${fixed(at("recall", place))}. `
    + `At 0.50: F1 ${fixed(at("f1", half))}.`;
  const traces = Object.entries(member.curves).map(([part, curves], fold) => ({
    name: `fold ${part}`, x: curves[i][0].map((value) => 100 * value), y: curves[i][1].map((value) => 100 * value),
    mode: "lines", line: { color: [c.ours, c.second, c.third][fold % 3], dash: DASHES[fold % DASHES.length], width: 2 }, hoverinfo: "x+y+name",
  }));
  traces.push({
    name: "at the threshold", x: [at("recall", place)], y: [at("precision", place)], mode: "markers", hoverinfo: "x+y",
    marker: { symbol: "x", size: 11, color: c.text },
  });
  const percent = { range: [-2, 102], zeroline: false };
  draw("chart-pr", traces, { xaxis: { title: { text: "recall, %" }, ...percent }, yaxis: { title: { text: "precision, %" }, ...percent } }, 380);
  const line = (kind, name, dash, color, width) => ({
    name, x: grid, y: member.grid[kind][i], mode: "lines", line: { dash, color, width }, hoverinfo: "x+y+name",
  });
  const chosen = Object.entries(member.thresholds);
  const marks = chosen.length ? [{
    name: "calibrated", x: chosen.map(([, found]) => found[i]), y: chosen.map(() => 2), text: chosen.map(([part]) => `for ${part}`),
    mode: "markers", hoverinfo: "x+text", marker: { symbol: "triangle-up", size: 10, color: c.text },
  }] : [];
  draw("chart-f1", [
    line("f1", "F1", "solid", c.ours, 3), line("precision", "precision", "dash", c.second, 1.5),
    line("recall", "recall", "dot", c.third, 1.5), ...marks,
  ], {
    xaxis: { title: { text: "threshold" }, range: [0, 1] }, yaxis: { title: { text: "%" }, ...percent },
    shapes: [{ type: "line", x0: threshold, x1: threshold, y0: 0, y1: 100, line: { color: c.text, width: 2, dash: "dot" } }],
  }, 380);
}

function drawMaps() {
  if (!element("map")) return;
  const kind = element("map").value, maps = shown().maps[kind], isShare = kind === "co-occurrence";
  if (!maps) { ["chart-labels", "chart-predictions"].forEach((id) => Plotly.purge(element(id))); return; }
  const c = colours();
  const scale = isShare ? [[0, c.page], [1, c.ours]] : [[0, c.second], [0.5, c.page], [1, c.ours]];
  for (const [id, what] of [["chart-labels", "labels"], ["chart-predictions", "predictions"]]) draw(id, [{
    type: "heatmap", x: units, y: units, z: maps[what], zmin: isShare ? 0 : -100, zmax: 100, colorscale: scale,
    text: maps[what], texttemplate: units.length > 14 ? undefined : "%{text}", textfont: { size: 11 }, xgap: 1, ygap: 1, showscale: false,
    hovertemplate: "%{y} and %{x}: %{z}<extra></extra>",
  }], { xaxis: { type: "category", showgrid: false, tickangle: -45 }, yaxis: { type: "category", autorange: "reversed", showgrid: false } }, 420);
  element("map-note").textContent = isShare
    ? "Of the tested frames that have the row's action unit, how many percent have the column's, too. Predictions: at threshold 0.5."
    : "Pearson's r times 100, over the tested frames where both labels are known; predictions are probabilities. "
      + `Distance of the two maps: ${fixed(maps.distance, 4)} (0: the same).`;
  element("map-tables").replaceChildren(...["labels", "predictions"].map((what) => makeTable(
    `${kind} of the ${what}`, ["AU", ...units], maps[what].map((row, i) => [units[i], ...row.map((value) => fixed(value, 0))]))));
}

function drawLosses() {
  const c = colours(), kind = element("loss").value;
  const traces = shown().losses.flatMap(({ folds }, run) => Object.entries(folds).filter(([, found]) => found[kind]).map(([part, found], fold) => ({
    name: shown().losses.length > 1 ? `run ${run + 1}, ${part}` : `fold ${part}`, x: found.epoch, y: found[kind],
    mode: found.epoch.length > 1 ? "lines" : "markers", hoverinfo: "x+y+name",
    line: { color: [c.ours, c.second, c.third][fold % 3], dash: DASHES[(shown().losses.length > 1 ? run : fold) % DASHES.length], width: 2 },
    marker: { color: [c.ours, c.second, c.third][fold % 3], symbol: SYMBOLS[fold % SYMBOLS.length], size: 9 },
  })));
  element("losses-note").textContent = traces.length ? "" : "The run has no such curve.";
  if (!traces.length) { Plotly.purge(element("chart-losses")); return; }
  const epochs = traces.flatMap((trace) => trace.x);
  const step = Math.max(1, Math.ceil(Math.max(...epochs) / 12));
  draw("chart-losses", traces, {
    xaxis: { title: { text: "epoch" }, dtick: step, tick0: step === 1 ? 1 : 0 },
    yaxis: { title: { text: element("loss").selectedOptions[0].textContent }, rangemode: kind === "lr" ? "tozero" : "normal" },
  }, 320);
}

function showMember() {
  for (const box of all(".of-member")) box.hidden = Number(box.dataset.member) !== state.member;
}

function drawAll() {
  element("legend").textContent = shown().measures[state.measure]
    ? all(".terms dt").find((dt) => dt.textContent === state.measure).nextElementSibling.textContent
    : `${shown().name} has no ${state.measure}: it needs predictions that can be read, and two finished folds to calibrate.`;
  showCards();
  [drawMembers, drawScores, drawDifferences, drawThresholds, drawMaps, drawLosses].forEach((each) => each());
}

function start() {
  if (element("au")) units.forEach((name, i) => element("au").add(new Option(name, i)));
  showImages();
  on("member", "change", (event) => { state.member = Number(event.target.value); showMember(); drawAll(); });
  on("measure", "change", (event) => { state.measure = event.target.value; drawAll(); });
  on("ours", "change", drawDifferences);
  on("theirs", "change", drawDifferences);
  on("au", "change", (event) => { state.au = Number(event.target.value); drawThresholds(); });
  on("threshold", "input", drawThresholds);
  on("reset", "click", () => { element("threshold").value = 0.5; drawThresholds(); });
  on("map", "change", drawMaps);
  on("loss", "change", drawLosses);
  showMember();
}

openPage(drawAll, start);
