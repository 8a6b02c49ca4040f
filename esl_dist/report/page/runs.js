// Runs side by side: what each is, its scores, its difference from its control, what it mixes up.

function showRuns(section) {
  const names = DATA.classes.map((one) => one.name).filter((name) => DATA.rows.some((row) => name in row.iou));
  if (DATA.runs.length) section.append(element("h3", {}, "The runs"), runTable());
  if (!DATA.rows.length) {
    section.append(note("There are no scores: make them with esl-dist evaluate checkpoint=RUN data.path=… output=RUN/scores/NAME.json, and write the report again."));
    return;
  }
  section.append(
    element("h3", {}, "Scores"),
    element("p", { class: "quiet" }, "IoU in percent. Bold: the best row of a class, of those on the same pictures. ▲ and ▼: a row's best and worst class. " +
      "Δ: mIoU less that of the row it is held against."),
    scoreTable(names),
    element("h3", {}, "IoU of each class"),
    legend(DATA.rows.map((row) => row.title)),
    dotChart("IoU of each class in percent, a mark a row of scores", names,
      DATA.rows.map((row) => ({ name: row.title, values: names.map((name) => row.iou[name]) }))),
  );
  const two = element("div", { class: "two" });
  showDifference(two, names);
  showConfusion(two);
  section.append(two);
}

function runTable() {
  const title = (place) => place === null ? "–" : DATA.runs[place].name;
  const rows = DATA.runs.map((run) => {
    const round = run.round === null ? null : DATA.rounds[run.round].summary;
    const labels = round ? `${percent(round.kept)} % kept` + (round.accuracy === null ? "" : `, ${percent(round.accuracy)} % right`)
      : run.pseudo_labels ? "not found" : "none";
    const start = run.start === null ? run.from || "random or pretrained weights" : title(run.start);
    return [run.name, textCell(run.method), whole(run.done === null ? 0 : run.done), textCell(start),
      textCell(run.control === null ? "–" : `${title(run.control)} (${run.control_kind})`), textCell(labels)];
  });
  return table(["Run", left("Method"), "Steps done", left("Starts from"), left("Held against"), left("Pseudo-labels")], rows,
    "What a run adds shows beside a run that had all else: the same start and as many steps more, where there is one.");
}

function left(words) {
  return element("span", { style: { display: "block", textAlign: "left" } }, words);
}

function textCell(words) {
  return element("td", { class: "text" }, breakable(words));
}

function scoreTable(names) {
  const isBest = (row, value) => value(row) != null &&
    DATA.rows.every((one) => one.pictures !== row.pictures || !(value(one) > value(row)));
  const means = [...new Set(DATA.rows.flatMap((row) => Object.keys(row.miou_over)))].filter((count) => Number(count) < names.length)
    .sort((one, other) => other - one);
  const rows = DATA.rows.map((row) => {
    const own = Object.values(row.iou).filter((value) => value !== null);
    const control = row.control === null ? null : DATA.rows[row.control];
    const gain = control === null ? null : difference(row.miou, control.miou);
    const delta = control === null ? "–" : element("span", { class: direction(gain), title: `against ${control.title}` },
      signed(gain) + (row.unlike.length ? " †" : ""));
    const cells = names.map((name) => {
      const value = row.iou[name] ?? null;
      const mark = value === null || own.length < 2 ? "" : value === Math.max(...own) ? "▲ " : value === Math.min(...own) ? "▼ " : "";
      return element("td", { class: isBest(row, (one) => one.iou[name]) ? "best" : null }, `${mark}${percent(value)}`);
    });
    const fewer = means.map((count) => percent(row.miou_over[count]));
    return [row.title, element("td", { class: isBest(row, (one) => one.miou) ? "best" : null, "data-miou": row.title }, percent(row.miou)),
      delta, ...fewer, percent(row.accuracy), ...cells];
  });
  const data = `On ${[...new Set(DATA.rows.map((row) => row.data || "data that the file does not name"))].join("; ")}.`;
  const unlike = DATA.rows.filter((row) => row.unlike.length).map((row) => ` † ${unlikeIn(row)}.`);
  return table(["Scores", "mIoU", "Δ", ...means.map((count) => `mIoU ${count}`), "Accuracy", ...names], rows, data + unlike.join(""));
}

function unlikeIn(row) {
  return `${row.title} and ${DATA.rows[row.control].title} differ in more than the run: ${row.unlike.join("; ")}`;
}

function showDifference(section, names) {
  const held = DATA.rows.map((row, place) => [place, row]).filter(([, row]) => row.control !== null);
  const place = element("div");
  section.append(element("div", { id: "difference" }, element("h3", {}, "Against its control"), place));
  if (!held.length) {
    place.append(element("p", {}, "No row has a control here: name the run it starts from, and one of the same start that was trained as long."));
    return;
  }
  const drawn = element("div");
  const [control] = chooser("Scores", held.map(([number, row]) => [number, row.title]), choose, held[held.length - 1][0]);
  function choose(number) {
    const row = DATA.rows[number], other = DATA.rows[row.control];
    const values = names.map((name) => difference(row.iou[name], other.iou[name]));
    drawn.replaceChildren(
      element("p", {}, `${row.title} less ${other.title}: mIoU ${signed(difference(row.miou, other.miou))} points; by class:`),
      ...(row.unlike.length ? [note(`${unlikeIn(row)}.`)] : []),
      differenceChart(`IoU of ${row.title} less that of ${other.title}, in points`, names, values));
  }
  place.append(element("div", { class: "controls" }, control), drawn);
  choose(held[held.length - 1][0]);
}

function showConfusion(section) {
  const known = DATA.rows.map((row, place) => [place, row.title]).filter(([place]) => DATA.rows[place].confusion);
  const missing = DATA.rows.length - known.length;
  const place = element("div", { id: "confusion" }, element("h3", {}, "What is taken for what"));
  section.append(place);
  if (missing) {
    place.append(note(`${missing} of ${DATA.rows.length} rows are without a confusion matrix: validations keep none, nor do files of an earlier version. ` +
      "Score with esl-dist evaluate."));
  }
  if (!known.length) return;
  const drawn = element("div");
  const last = known[known.length - 1][0];
  const [control] = chooser("Scores", known, choose, last);
  function choose(number) {
    const row = DATA.rows[number];
    drawn.replaceChildren(matrix(row), element("h4", {}, "The largest mix-ups"), mixUps(row));
  }
  place.append(element("div", { class: "controls" }, control), drawn);
  choose(last);
}

function matrix(row) {
  const names = row.names;
  const rows = row.confusion.map((counts, label) => {
    const all = sum(counts);
    return [named(names[label]), ...counts.map((count, predicted) => {
      const part = share(count, all);
      const own = label === predicted ? "var(--right)" : "var(--wrong)";
      // Half the colour at most keeps the figures readable.
      const fill = part === null ? "none" : `color-mix(in srgb, ${own} ${Math.round(55 * part)}%, transparent)`;
      return element("td", { style: { background: fill },
        title: `${names[label]} predicted as ${names[predicted]}: ${percent(part)} % (${whole(count)} pixels)` },
      part === null ? "–" : part > 0 && part < 0.005 ? "·" : `${Math.round(100 * part)}`);
    })];
  });
  return table(["Label ↓  Prediction →", ...names], rows,
    "Percent of each label's pixels (rows add up to 100); · is less than 0.5.", "matrix");
}

function mixUps(row) {
  const names = row.names;
  const found = row.confusion.flatMap((counts, label) => counts.map((count, predicted) =>
    ({ label, predicted, count, part: share(count, sum(counts)) }))).filter((one) => one.label !== one.predicted && one.count > 0);
  found.sort((one, other) => other.part - one.part);
  return element("ul", {}, ...found.slice(0, 6).map((one) => element("li", {},
    `${percent(one.part)} % of ${names[one.label]} is taken for ${names[one.predicted]}`)));
}
