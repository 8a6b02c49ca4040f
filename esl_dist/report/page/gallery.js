// Pictures of the target: sorted, filtered by class, and enlarged.

const ORDERS = {
  order: ["as in the shards", () => 0],
  unsure: ["highest mean entropy", (one, other) => other.entropy_mean - one.entropy_mean],
  sure: ["lowest mean entropy", (one, other) => one.entropy_mean - other.entropy_mean],
  "least-kept": ["least kept", (one, other) => one.kept - other.kept, "kept"],
  "most-kept": ["most kept", (one, other) => other.kept - one.kept, "kept"],
  "low-accuracy": ["lowest accuracy", (one, other) => one.accuracy - other.accuracy, "accuracy"],
  "low-miou": ["lowest mIoU", (one, other) => one.miou - other.miou, "miou"],
  "high-miou": ["highest mIoU", (one, other) => other.miou - one.miou, "miou"],
};

function showGallery(section) {
  const shown = DATA.gallery;
  if (shown.note) section.append(note(shown.note));
  if (!shown.pictures.length) return;
  section.append(element("p", {}, `${shown.pictures.length} of ${whole(shown.of)} pictures, evenly chosen, as ${shown.run}` +
    `${shown.step ? ` (step ${whole(shown.step)})` : ""} predicts them. ${shown.pseudo_labels ? `The pseudo-labels are those in ${shown.pseudo_labels}. ` : ""}Tap one to enlarge it.`), galleryLegend(shown));
  const list = element("ul", { class: "pictures" }), count = element("p", { class: "quiet", "aria-live": "polite" });
  const known = Object.entries(ORDERS).filter(([, [, , key]]) => !key || shown.pictures.some((one) => one[key] !== null));
  const [sortChoice, sorting] = chooser("Sort by", known.map(([key, [title]]) => [key, title]), update);
  const classes = shown.classes.map((name, place) => [place, name]);
  const [classChoice, filter] = chooser("With the class", [["", "any"], ...classes], update);
  const kinds = [["either", "predicted or labelled"], ["predicted", "predicted"], ...(shown.pictures.some((one) => one.labelled)
    ? [["labelled", "labelled"], ["missed", "labelled, not predicted"], ["invented", "predicted, not labelled"]] : [])];
  const [kindChoice, kind] = chooser("where it is", kinds, update);
  let visible = [];
  function update() {
    const [, compare, key] = ORDERS[sorting.value];
    visible = shown.pictures.filter((one) => filter.value === "" || has(one, Number(filter.value), kind.value));
    // What is not known comes last.
    visible.sort((one, other) => key ? (one[key] === null) - (other[key] === null) || compare(one, other) : compare(one, other));
    count.textContent = `${visible.length} of ${shown.pictures.length} pictures`;
    list.replaceChildren(...visible.map((one, place) => element("li", { "data-key": one.key },
      element("button", { type: "button", onclick: () => open(place) }, element("h3", {}, breakable(one.key)), layers(one), facts(one)))));
  }
  const dialog = element("dialog", { "aria-label": "Picture" });
  const open = (place) => {
    const go = (by) => open((place + by + visible.length) % visible.length);
    const one = visible[place];
    dialog.replaceChildren(element("div", { class: "controls" },
      element("button", { type: "button", onclick: () => go(-1) }, "← Previous"), element("button", { type: "button", onclick: () => go(1) }, "Next →"),
      element("button", { type: "button", onclick: () => dialog.close() }, "Close")), element("h3", {}, breakable(one.key)), facts(one), layers(one), classesOf(one, shown));
    dialog.onkeydown = (event) => { if (event.key === "ArrowLeft") go(-1); else if (event.key === "ArrowRight") go(1); };
    if (!dialog.open) dialog.showModal();
  };
  section.append(element("div", { class: "controls" }, sortChoice, classChoice, kindChoice), count, list, dialog);
  update();
}

function has(one, place, kind) {
  const predicted = one.predicted.includes(place), labelled = one.labelled !== null && one.labelled.includes(place);
  return { either: predicted || labelled, predicted, labelled, missed: labelled && !predicted, invented: predicted && !labelled }[kind];
}

function layers(one) {
  return element("span", { class: "layers" }, ...Object.entries(one.layers).map(([name, url]) =>
    element("figure", {}, element("img", { src: url, width: one.size[0], height: one.size[1], alt: `${one.key}: ${name}` }),
      element("figcaption", {}, name))));
}

function facts(one) {
  const told = [`mean entropy ${one.entropy_mean.toFixed(3)}`];
  if (one.kept !== null) told.push(`kept ${percent(one.kept)} %`);
  if (one.accuracy !== null) told.push(`right ${percent(one.accuracy)} %`);
  if (one.miou !== null) told.push(`mIoU ${percent(one.miou)}`);
  return element("span", { class: "facts" }, told.join(" · "));
}

function classesOf(one, shown) {
  const names = (places) => places.map((place) => shown.classes[place]).join(", ") || "none";
  return element("p", { class: "quiet" }, `Predicted: ${names(one.predicted)}.` + (one.labelled ? ` Labelled: ${names(one.labelled)}.` : ""));
}

function galleryLegend(shown) {
  const ramp = shown.ramp.map(([red, green, blue]) => `rgb(${red},${green},${blue})`).join(",");
  return element("ul", { class: "legend" }, ...shown.classes.map((name) => element("li", {}, swatch(name), name)),
    element("li", {}, swatchOf("#000"), "no label, not kept"),
    element("li", {}, "entropy 0", element("span", { class: "ramp", "aria-hidden": "true", style: { background: `linear-gradient(90deg,${ramp})` } }), "1"));
}

function swatchOf(fill) {
  return element("span", { class: "swatch", "aria-hidden": "true", style: { background: fill } });
}
