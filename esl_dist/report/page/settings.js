// How the runs were made: what differs first, then everything, versions, commands and the data by its fingerprints.

function showSettings(section) {
  if (DATA.runs.length) {
    const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.settings)))];
    const value = (run, key) => run.settings[key] ?? "–";
    const differing = keys.filter((key) => new Set(DATA.runs.map((run) => value(run, key))).size > 1);
    const rows = (chosenKeys) => chosenKeys.map((key) => [element("code", {}, breakable(key)), ...DATA.runs.map((run) => textCell(value(run, key)))]);
    const names = () => DATA.runs.map((run) => left(run.name));
    section.append(element("h3", {}, "What differs"),
      DATA.runs.length === 1 ? element("p", {}, "There is one run.") : table(["Setting", ...names()], rows(differing), "Settings that are not the same in all runs."),
      element("details", {}, element("summary", {}, `All ${keys.length} settings`), table(["Setting", ...names()], rows(keys), "All settings of the runs.")),
      element("h3", {}, "Data"), fingerprints(), element("h3", {}, "Starts"), ...DATA.runs.map(startsOf));
  }
  section.append(element("h3", {}, "Scores"), table(["Row", left("File"), left("Network"), "Step", left("Data"), left("Statistics")], DATA.rows.map((row) =>
    [row.title, textCell(row.file), textCell(row.checkpoint || "–"), row.step === null ? "–" : whole(row.step), textCell(row.data || "not said"),
      textCell(row.anew === null ? "not said" : row.anew ? "estimated anew" : "the network's own")]), "Where the scores were read."));
  section.append(element("h3", {}, "This page"), element("p", {}, "Written by ", element("code", {}, breakable(DATA.made.command.join(" "))), "."),
    element("p", {}, Object.entries(DATA.made.versions).map(([name, version]) => `${name} ${version}`).join(", ")));
}

function fingerprints() {
  const kinds = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.shards)))];
  if (!kinds.length) return element("p", {}, "No checkpoint says which shards were read.");
  return table(["Run", ...kinds.map((kind) => left(kind.replaceAll("_", " ")))], DATA.runs.map((run) =>
    [run.name, ...kinds.map((kind) => element("td", { class: "text" }, element("code", { title: run.shards[kind] || "" }, (run.shards[kind] || "–").slice(0, 16))))]),
  "Fingerprints of the shards, their first 16 digits: equal ones are the same samples in the same order.");
}

function startsOf(run) {
  const told = run.starts.map((start) => element("li", {}, `${start.began}, steps ${whole(start.first_step)} to ${start.step === null ? "?" : whole(start.step)}, ` +
    `${start.state}: ${start.processes} process${start.processes > 1 ? "es" : ""} on ${[...new Set(start.devices)].join(", ")}, precision ${start.precision}; ` +
    `${Object.entries(start.versions).map(([name, version]) => `${name} ${version}`).join(", ")}; commit ${start.commit || "not known"}. `,
  element("code", {}, breakable(start.command.join(" ")))));
  return element("details", {}, element("summary", {}, `${run.name}: ${run.starts.length} start${run.starts.length === 1 ? "" : "s"}`),
    ...(told.length ? [element("ul", {}, ...told)] : []), ...run.problems.map((problem) => note(problem)));
}
