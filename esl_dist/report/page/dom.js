// What every part needs: the data, elements made without parsing text as HTML, and numbers as people read them.

const DATA = JSON.parse(document.getElementById("data").textContent);

// Elements are made one by one and texts are set as text: a class or a run may be called whatever its author likes.
function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function drawing(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(node.style, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// One decimal, halves to even, as the program writes them: a figure here is that of a table in the terminal.
// Only quarters are halves of a tenth in binary.
function oneDecimal(value) {
  if (!Number.isInteger(value * 4) || Number.isInteger(value * 2)) return value.toFixed(1);
  const below = Math.floor(value * 10);
  return ((below % 2 === 0 ? below : below + 1) / 10).toFixed(1);
}

function percent(share) {
  return share === null || share === undefined ? "-" : oneDecimal(100 * share);
}

// Differences are those of the shares themselves, not of rounded ones.
function signed(difference) {
  if (difference === null) return "–";
  const text = oneDecimal(100 * difference);
  return difference > 0 ? `+${text}` : text.replace("-", "−");
}

// The class of a difference's colour; what is shown as 0 has none.
function direction(difference) {
  if (difference === null || Number(oneDecimal(100 * difference)) === 0) return null;
  return difference < 0 ? "down" : "up";
}

function difference(one, other) {
  return one === null || one === undefined || other === null || other === undefined ? null : one - other;
}

function whole(count) {
  return count.toLocaleString("en");
}

function share(part, all) {
  return all > 0 ? part / all : null;
}

function sum(numbers) {
  return numbers.reduce((total, one) => total + one, 0);
}

function color(className) {
  const found = DATA.classes.find((one) => one.name === className);
  return `rgb(${(found ? found.color : [128, 128, 128]).join(",")})`;
}

// Long names and paths break behind these signs, and nowhere else where there is room.
function breakable(words) {
  return element("span", {}, ...words.split(/(?<=[/_.,=])/).flatMap((part, place) => place ? [element("wbr"), part] : [part]));
}

function named(className) {
  return [swatch(className), breakable(className)];
}

function swatch(className) {
  return element("span", { class: "swatch", "aria-hidden": "true", style: { background: color(className) } });
}

let chosen = 0;

// A labelled list to choose from; `choose` is called with the value, at once and after each change.
function chooser(title, options, choose, value = options.length ? options[0][0] : null) {
  const id = `choice-${chosen++}`;
  const list = element("select", { id, onchange: () => choose(list.value) });
  list.append(...options.map(([key, text]) => element("option", { value: key, selected: String(key) === String(value) }, text)));
  return [element("div", { class: "control" }, element("label", { for: id }, title), list), list];
}

function table(headings, rows, caption = null, kind = "") {
  const head = element("tr", {}, ...headings.map((one) => element("th", { scope: "col" }, one)));
  const body = rows.map(([title, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, ...[title].flat().map((one) => typeof one === "string" ? breakable(one) : one)), ...cells.map(cell)));
  // Reached by the keyboard, so that whoever has no mouse can scroll it. What is said of it does not scroll with it.
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption || "Table" },
    element("table", { class: kind }, element("thead", {}, head), element("tbody", {}, ...body)));
  return caption ? element("div", {}, scroll, element("p", { class: "quiet" }, caption)) : scroll;
}

function cell(content) {
  return content instanceof Node && content.nodeName === "TD" ? content : element("td", {}, ...[content].flat());
}

function note(text) {
  return element("p", { class: "note" }, breakable(text));
}
