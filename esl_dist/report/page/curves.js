// Curves of the trainings, all runs in one drawing each.

const FIRST_GROUPS = ["loss", "learning_rate", "validation"];

function showCurves(section) {
  const tags = [...new Set(DATA.curves.flatMap((one) => Object.keys(one.points)))];
  if (!tags.length) return void section.append(element("p", {}, "There are no curves: neither scalars.csv nor event files in logs/ beside the runs."));
  const thin = DATA.curves.some((one) => Object.entries(one.points).some(([tag, points]) => points.length < one.all[tag]));
  section.append(legend(DATA.runs.map((run) => run.name)), element("p", { class: "quiet" }, "Over the steps. " +
    (thin ? "Of long curves the first, the last, and the least and greatest value of each stretch are drawn, so that no peak is lost." : "Every value is drawn.")));
  const group = (tag) => tag.split("/")[0];
  for (const name of FIRST_GROUPS) {
    const own = tags.filter((tag) => group(tag) === name);
    if (own.length) section.append(element("h3", {}, name.replaceAll("_", " ")), curveGrid(own));
  }
  const rest = tags.filter((tag) => !FIRST_GROUPS.includes(group(tag)));
  if (rest.length) section.append(element("details", {}, element("summary", {}, `${rest.length} more curves`), curveGrid(rest)));
}

function curveGrid(tags) {
  return element("div", { class: "grid" }, ...tags.map((tag) => {
    const series = DATA.runs.map((run, number) => ({ name: run.name, number, points: DATA.curves[number].points[tag] || [] }))
      .filter((one) => one.points.length);
    const last = series.map((one) => `${one.name} ${short(one.points[one.points.length - 1][1])}`).join(", ");
    return element("div", { class: "card" }, element("h4", {}, breakable(tag)), lineChart(`${tag} over the steps; last: ${last}`, series),
      element("p", { class: "quiet" }, `Last: ${last}`));
  }));
}
