// One class in words: how good it is, what it is mixed up with, and what pseudo-labels said of it.

function showClass(section) {
  const names = DATA.classes.map((one) => one.name);
  if (!names.length) return void section.append(element("p", {}, "No class is known."));
  section.append(element("p", {}, "Everything that the figures below and above say of one class, in words."));
  const drawn = element("div", { id: "class-words" });
  const latest = DATA.rows.map((row, place) => [place, row.title]);
  const [classChoice, classList] = chooser("Class", names.map((name) => [name, name]), tell, worstClass(names));
  const [rowChoice, rowList] = chooser("Scores", latest, tell, latest.length ? latest[latest.length - 1][0] : null);
  function tell() {
    const row = rowList.value === "" ? null : DATA.rows[rowList.value];
    const words = [...wordsOfScores(row, classList.value), ...DATA.rounds.flatMap((round, number) => wordsOfRound(round, number, classList.value))];
    drawn.replaceChildren(element("h3", {}, swatch(classList.value), classList.value),
      element("ul", {}, ...words.map((one) => element("li", {}, one))));
  }
  section.append(element("div", { class: "controls" }, classChoice, latest.length ? rowChoice : null), drawn);
  tell();
}

function worstClass(names) {
  const row = DATA.rows[DATA.rows.length - 1];
  if (!row) return names[0];
  const known = row.names.filter((name) => row.iou[name] !== null);
  return known.length ? known.reduce((worst, one) => row.iou[one] < row.iou[worst] ? one : worst) : names[0];
}

function wordsOfScores(row, name) {
  if (!row || !(name in row.iou)) return ["It is in no row of scores."];
  if (row.iou[name] === null) return [`It does not occur in what ${row.title} was scored on.`];
  const control = row.control === null ? null : DATA.rows[row.control];
  const gain = control === null ? null : difference(row.iou[name], control.iou[name]);
  const words = [`IoU ${percent(row.iou[name])} in ${row.title}` + (gain === null ? "." : `, ${signed(gain)} against ${control.title}.`)];
  if (!row.confusion) return [...words, "What it is taken for is not known: the file of scores has no confusion matrix."];
  const names = row.names, place = names.indexOf(name);
  const labelled = row.confusion[place], predicted = row.confusion.map((counts) => counts[place]);
  const [all, claimed, right] = [sum(labelled), sum(predicted), labelled[place]];
  words.push(`It is ${percent(share(all, sum(row.confusion.map(sum))))} % of the labelled pixels, and is predicted ` +
    (all ? `${(claimed / all).toFixed(2)} times as often as it is there.` : "where it is not."));
  if (all) words.push(`Found: ${percent(share(right, all))} % of its pixels (recall).${others(labelled, place, names, "The rest is taken for")}`);
  if (claimed) words.push(`Right: ${percent(share(right, claimed))} % of what is predicted as it (precision).${others(predicted, place, names, "The rest is really")}`);
  return words;
}

function others(counts, place, names, opening) {
  const all = sum(counts);
  const found = counts.map((count, other) => [count, names[other]]).filter(([count], other) => other !== place && count > 0);
  found.sort((one, other) => other[0] - one[0]);
  if (!found.length) return "";
  return ` ${opening} ${found.slice(0, 3).map(([count, other]) => `${other} (${percent(share(count, all))} %)`).join(", ")}` +
    (found.length > 3 ? " and others." : ".");
}

function wordsOfRound(round, number, name) {
  const told = round.summary.classes[name];
  if (!told) return [];
  const title = `Pseudo-labels ${number + 1}, by ${round.made_with.run}`;
  if (!told.pixels_predicted) return [`${title}: never predicted, so nothing is learned of it from them.`];
  const total = sum(Object.values(round.summary.classes).map((one) => one.pixels_predicted));
  const words = `${title}: predicted on ${percent(share(told.pixels_predicted, total))} % of the target's pixels, ` +
    `${percent(share(told.pixels_kept, told.pixels_predicted))} % of these kept at the threshold ${told.threshold.toFixed(4)}`;
  if (!round.histograms) return [`${words}.`];
  const [score, own] = Object.entries(round.histograms)[0];
  const one = own.classes[name], limit = thresholdOf(one, own.bound, own.low_is_trusted);
  const kept = countsOf(one, limit.edge, own.low_is_trusted), all = countsOf(one, null, own.low_is_trusted);
  const decides = limit.binds ? (own.low_is_trusted ? "the floor" : "the ceiling") : `its median ${score}`;
  const rightness = kept.right === null ? "" : ` Right are ${percent(share(kept.right, kept.labelled))} % of the kept and ` +
    `${percent(share(all.right, all.labelled))} % of all pixels with a label.`;
  return [`${words}, which is ${decides}.${rightness}`];
}
