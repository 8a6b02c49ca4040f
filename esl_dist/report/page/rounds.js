// A round of pseudo-labels: histograms of each class, and what another bound or the other score would keep.
//
// No edge of a bin is cut by a bound that the slider has, by the job's own, or by a median: what is counted here is
// what the program would count.

const HIGHEST_LEVEL = 65535;
const SLIDER_STEPS = 200;
const SHOWN_BINS = 50;

// As adaptation/pseudo_labels.py, thresholds: the class's median, but no stricter than the bound.
function thresholdOf(one, bound, lowIsTrusted) {
  const exact = Number((bound * HIGHEST_LEVEL).toFixed(6));
  const binds = one.median === null || (lowIsTrusted ? one.median < exact : one.median > exact);
  const ofBound = lowIsTrusted ? Math.floor(exact) : Math.ceil(exact);
  const level = binds ? ofBound : one.median;
  return { score: binds ? bound : one.median / HIGHEST_LEVEL, edge: lowIsTrusted ? level + 1 : level, binds };
}

function isKept(one, bin, edge, lowIsTrusted) {
  return edge === null || (lowIsTrusted ? one.edges[bin + 1] <= edge : one.edges[bin] >= edge);
}

// Pixels on the trusted side of an edge; of all bins without one.
function countsOf(one, edge, lowIsTrusted) {
  const count = (numbers) => numbers === null ? null
    : sum(numbers.filter((_, bin) => isKept(one, bin, edge, lowIsTrusted)));
  return { pixels: count(one.pixels), labelled: count(one.labelled), right: count(one.right) };
}

// What a bound keeps of all classes, and by class.
function keptBy(score, bound) {
  const classes = Object.entries(score.classes).map(([name, one]) => {
    const limit = thresholdOf(one, bound, score.low_is_trusted);
    return { name, one, limit, kept: countsOf(one, limit.edge, score.low_is_trusted), all: countsOf(one, null, score.low_is_trusted) };
  });
  const total = (of, key) => classes.some((row) => row[of][key] === null) ? null : sum(classes.map((row) => row[of][key]));
  const labelled = total("kept", "labelled"), right = total("kept", "right");
  return { classes, kept: share(total("kept", "pixels"), total("all", "pixels")),
    accuracy: right === null ? null : share(right, labelled) };
}

function showRounds(section) {
  if (!DATA.rounds.length) {
    section.append(element("p", {}, "No run here was trained with pseudo-labels; name folders of them with pseudo_labels=[FOLDER]."));
    return;
  }
  DATA.rounds.forEach((round, number) => section.append(showRound(round, number)));
}

function showRound(round, number) {
  const place = element("div", { id: `round-${number}` });
  const used = round.used_by.length ? `; used by ${round.used_by.join(", ")}` : "";
  const summary = round.summary, made = round.made_with;
  place.append(
    element("h3", {}, `Pseudo-labels ${number + 1}`),
    element("p", {}, `Made by ${made.run}${made.step ? `, step ${whole(made.step)}` : ""}${used}. Trust: ${summary.score}, bound ${made.bound}. `,
      element("code", {}, breakable(round.folder))),
    figures([["kept", percent(summary.kept), "% of pixels kept, as made"],
      ["accuracy", percent(summary.accuracy), summary.accuracy === null ? "right: not compared with labels" : "% of those right, as made"]], "made"),
  );
  if (round.missing) place.append(note(round.missing), summaryTable(summary));
  else showHistograms(place, round, number);
  return place;
}

function figures(entries, kind) {
  return element("div", { class: "figures" }, ...entries.map(([key, value, words]) =>
    element("div", { class: "figure" }, element("b", { "data-figure": `${kind}-${key}` }, value), element("span", {}, words))));
}

function summaryTable(summary) {
  const total = sum(Object.values(summary.classes).map((one) => one.pixels_predicted));
  return table(["Class", "% predicted", "Threshold", "% kept"], Object.entries(summary.classes).map(([name, one]) =>
    [named(name), percent(share(one.pixels_predicted, total)), one.threshold.toFixed(4),
      percent(share(one.pixels_kept, one.pixels_predicted))]));
}

function showHistograms(place, round, number) {
  const names = Object.keys(round.histograms), own = names[0];
  const state = { score: own, bound: round.histograms[own].bound };
  const drawn = element("div"), told = element("div", { "aria-live": "polite" });
  const slider = element("input", { type: "range", id: `bound-${number}`, min: 0, max: SLIDER_STEPS, step: 1,
    value: Math.round(state.bound * SLIDER_STEPS), oninput: () => { state.bound = Number(slider.value) / SLIDER_STEPS; update(); } });
  const label = element("label", { for: slider.id });
  const rules = names.map((name) => element("button", { type: "button", "data-rule": name, onclick: () => {
    Object.assign(state, { score: name, bound: round.histograms[name].bound });
    slider.value = Math.round(state.bound * SLIDER_STEPS);
    update();
  } }, name === "entropy" ? "ESL: entropy" : "Softmax: confidence"));
  const back = element("button", { type: "button", "data-rule": "made", onclick: () => rules[0].click() }, "As made");
  const other = names.length > 1 ? null : note("The other score was not counted; with count_both_scores=true pseudo-labels tell what it would keep, too.");
  const tradeOff = element("div");
  const update = () => {
    const score = round.histograms[state.score], low = score.low_is_trusted;
    label.textContent = `${low ? "Floor: least entropy threshold" : "Ceiling: highest confidence threshold"}: ${state.bound.toFixed(3)}`;
    slider.setAttribute("aria-valuetext", state.bound.toFixed(3));
    rules.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.rule === state.score)));
    const found = keptBy(score, state.bound);
    told.replaceChildren(figures([["kept", percent(found.kept), "% of pixels would be kept"],
      ["accuracy", percent(found.accuracy), found.accuracy === null ? "right: not compared with labels" : "% of those right"]], "now"));
    drawn.replaceChildren(classTable(found, score), histogramLegend(score), element("div", { class: "grid" },
      ...found.classes.map((row) => element("div", { class: "card" }, element("h4", {}, swatch(row.name), row.name), histogram(row, state.score, low)))));
    tradeOff.replaceChildren(...tradeOffChart(round, state, found));
  };
  place.append(
    element("div", { class: "panel" }, element("h4", {}, "What another threshold would keep"),
      element("p", { class: "quiet" }, "A class's threshold is the median of its scores, but no stricter than this bound: half of what is predicted as a class is always kept."),
      element("div", { class: "controls" }, ...rules, back),
      element("div", { class: "control wide" }, label, slider), told),
    ...(other ? [other] : []), tradeOff, drawn);
  update();
}

function classTable(found, score) {
  const total = sum(found.classes.map((row) => row.all.pixels));
  const bound = score.low_is_trusted ? "floor" : "ceiling";
  const rows = found.classes.map(({ name, one, limit, kept, all }) => [named(name),
    percent(share(all.pixels, total)), one.median === null ? "–" : (one.median / HIGHEST_LEVEL).toFixed(4),
    element("td", { "data-threshold": name }, limit.score.toFixed(4)), one.median === null ? "–" : limit.binds ? bound : "median",
    element("td", { "data-kept": name }, percent(share(kept.pixels, all.pixels))),
    element("td", { "data-right": name }, kept.right === null ? "–" : percent(share(kept.right, kept.labelled))),
    all.right === null ? "–" : percent(share(all.right, all.labelled))]);
  return table(["Class", "% predicted", "Median", "Threshold", "Decided by", "% kept", "% right of kept", "% right of all"], rows,
    "Right: of the pixels that have a label. A class that is never predicted has no pseudo-labels.");
}

function histogramLegend(score) {
  const entry = (fill, opacity, words) => element("li", {}, drawing("svg", { width: 14, height: 14, "aria-hidden": "true" },
    drawing("rect", { width: 14, height: 14, fill, opacity })), words);
  const labelled = Object.values(score.classes).some((one) => one.labelled !== null);
  const kinds = labelled ? [["var(--right)", "right"], ["var(--wrong)", "wrong"], ["var(--unknown)", "without a label"]]
    : [["var(--unknown)", "pixels, not compared with labels"]];
  return element("div", {}, element("ul", { class: "legend" }, ...kinds.map(([fill, words]) => entry(fill, 1, words)),
    entry("var(--unknown)", 0.3, "faint: not kept")),
  element("p", { class: "quiet" }, "Height: the square root of the pixels, each class by its own highest bar; a bar's parts are its shares."));
}

function histogram(row, scoreName, low) {
  const { one, limit, name } = row;
  const bins = shownBins(one, limit.edge, low);
  const most = Math.max(1, ...bins.map(sum));
  const words = one.median === null ? `${name}: never predicted` : `${name}: ${scoreName} of its pixels; median ` +
    `${(one.median / HIGHEST_LEVEL).toFixed(4)}, threshold ${limit.score.toFixed(4)}, ${percent(share(row.kept.pixels, row.all.pixels))} % kept`;
  return chart(words, (width) => {
    const top = 18, bottom = 108, step = width / SHOWN_BINS, parts = [];
    bins.forEach((counts, bin) => {
      const all = sum(counts);
      let y = bottom;
      counts.forEach((count, part) => {
        const height = all ? (bottom - top) * Math.sqrt(all / most) * count / all : 0;
        y -= height;
        if (height > 0) {
          parts.push(drawing("rect", { x: bin * step, y, width: Math.max(step - 1, 1), height,
            fill: ["var(--right)", "var(--wrong)", "var(--unknown)"][part % 3], opacity: part < 3 ? 1 : 0.3 }));
        }
      });
    });
    parts.push(line(0, bottom, width, bottom, { stroke: "var(--unknown)" }));
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      parts.push(text(tick * width, bottom + 14, String(tick), { class: "tick", "text-anchor": tick === 0 ? "start" : tick === 1 ? "end" : "middle" }));
    }
    if (one.median === null) parts.push(text(width / 2, 60, "never predicted", { "text-anchor": "middle", class: "tick" }));
    else parts.push(...limitLines(one.median / HIGHEST_LEVEL, limit.score, width, top, bottom));
    return [bottom + 20, parts];
  });
}

function limitLines(median, threshold, width, top, bottom) {
  const at = (score) => Math.min(Math.max(score * width, 1), width - 1);
  const named = (score, words, y) => text(at(score) > width / 2 ? at(score) - 4 : at(score) + 4, y, words,
    { "text-anchor": at(score) > width / 2 ? "end" : "start" });
  const lines = [line(at(threshold), 4, at(threshold), bottom, { stroke: "var(--mark)", "stroke-width": 2 })];
  if (median === threshold) return [...lines, named(threshold, "median = threshold", 13)];
  lines.push(line(at(median), top + 4, at(median), bottom, { stroke: "var(--mark)", "stroke-dasharray": "3 3" }));
  return [...lines, named(threshold, "threshold", 13), named(median, "median", 32)];
}

// Right, wrong and without a label: first those that are kept, then the others.
function shownBins(one, edge, low) {
  const bins = Array.from({ length: SHOWN_BINS }, () => [0, 0, 0, 0, 0, 0]);
  one.pixels.forEach((pixels, bin) => {
    const middle = (one.edges[bin] + one.edges[bin + 1] - 1) / 2 / HIGHEST_LEVEL;
    const shown = bins[Math.min(SHOWN_BINS - 1, Math.floor(middle * SHOWN_BINS))];
    const labelled = one.labelled === null ? 0 : one.labelled[bin], right = one.right === null ? 0 : one.right[bin];
    const first = isKept(one, bin, edge, low) ? 0 : 3;
    [right, labelled - right, pixels - labelled].forEach((count, kind) => { shown[first + kind] += count; });
  });
  return bins;
}

// How much is kept against how much of it is right, for every bound of the slider.
function tradeOffChart(round, state, now) {
  const names = Object.keys(round.histograms);
  const curve = (name) => Array.from({ length: SLIDER_STEPS + 1 }, (_, step) => keptBy(round.histograms[name], step / SLIDER_STEPS))
    .map((one) => [one.kept, one.accuracy]);
  if (now.accuracy === null) return [element("p", { class: "quiet" }, "How much of it is right was not counted: that takes compare_with_labels=true, where the target has labels.")];
  // The curves do not change with the slider.
  round.curves = round.curves || names.map((name, number) => ({ name, number, points: curve(name).filter((point) => point[1] !== null)
    .map(([kept, accuracy]) => [100 * kept, 100 * accuracy]) }));
  const point = (found) => [100 * found.kept, 100 * found.accuracy];
  const made = keptBy(round.histograms[names[0]], round.histograms[names[0]].bound);
  const apart = Math.abs(made.kept - now.kept) > 0.01;
  const marks = () => [...(apart ? [{ name: "as made", point: point(made), below: true }] : []),
    { name: apart ? "here" : "as made", point: point(now) }];
  return [element("h4", {}, "Kept against right"), element("p", { class: "quiet" }, "Every bound of the slider: to the right more is kept (percent of pixels), above more of it is right (percent)."),
    legend(names.map((name) => name === "entropy" ? "ESL: entropy" : "Softmax: confidence")),
    lineChart("Percent of kept pixels that are right against percent of pixels kept", round.curves, { height: 240, marks })];
}
