// Charts as SVG, drawn for the width they have and again when it changes. Series differ in colour and in shape.

const SHAPES = [
  "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0", "M-4,-4h8v8h-8z", "M0,-5.5L5.2,4.2H-5.2z", "M0,-5.8L5.8,0L0,5.8L-5.8,0z",
  "M-1.6,-5.2h3.2v3.6h3.6v3.2h-3.6v3.6h-3.2v-3.6h-3.6v-3.2h3.6z", "M0,5.5L5.2,-4.2H-5.2z", "M-6,-2.2h12v4.4h-12z",
];

function seriesColor(number) {
  return `var(--c${number % 7})`;
}

// Seven colours times seven shapes: the eighth series has the first's colour, and another shape.
function shape(number, x = 0, y = 0) {
  return drawing("path", { d: SHAPES[(number + Math.floor(number / 7)) % 7], transform: `translate(${x},${y})`, fill: seriesColor(number) });
}

function legend(names) {
  return element("ul", { class: "legend" }, ...names.map((name, number) => element("li", {},
    drawing("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, shape(number)), name)));
}

// `draw` gets a width in pixels and returns height and parts of the drawing.
function chart(description, draw) {
  const place = element("div", { class: "chart" });
  let last = 0;
  const render = () => {
    const width = Math.floor(place.clientWidth);
    if (width === 0 || width === last) return;
    last = width;
    const [height, parts] = draw(width);
    const image = drawing("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" },
      drawing("title", {}, description), ...parts);
    place.replaceChildren(image);
  };
  new ResizeObserver(render).observe(place);
  return place;
}

function text(x, y, words, attributes = {}) {
  return drawing("text", { x, y, ...attributes }, words);
}

function line(x1, y1, x2, y2, attributes = {}) {
  return drawing("line", { x1, y1, x2, y2, stroke: "var(--line)", ...attributes });
}

// A class a row, a mark a series: values are shares from 0 to 1.
function dotChart(description, classes, series) {
  return chart(description, (width) => {
    const left = Math.min(130, width * 0.32), right = width - 12, row = 26, top = 24;
    const place = (value) => left + value * (right - left);
    const parts = [];
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      parts.push(line(place(tick), top - 6, place(tick), top + row * classes.length));
      parts.push(text(place(tick), 12, `${100 * tick}`, { class: "tick", "text-anchor": tick === 1 ? "end" : "middle" }));
    }
    classes.forEach((name, number) => {
      const y = top + row * (number + 0.5);
      const values = series.map((one) => one.values[number]);
      const known = values.filter((value) => value !== null && value !== undefined);
      parts.push(text(left - 8, y + 4, clipped(name, left / 7), { "text-anchor": "end" }));
      if (known.length > 1) {
        parts.push(line(place(Math.min(...known)), y, place(Math.max(...known)), y, { stroke: "var(--unknown)" }));
      }
      values.forEach((value, own) => {
        if (value === null || value === undefined) return;
        const mark = shape(own, place(value), y);
        mark.append(drawing("title", {}, `${name}, ${series[own].name}: ${percent(value)}`));
        parts.push(mark);
      });
    });
    return [top + row * classes.length + 8, parts];
  });
}

function clipped(name, characters) {
  return name.length > characters ? `${name.slice(0, Math.max(3, Math.floor(characters) - 1))}…` : name;
}

// Bars to both sides of 0; differences of shares.
function differenceChart(description, classes, values) {
  return chart(description, (width) => {
    const left = Math.min(130, width * 0.32), right = width - 44, row = 24, top = 4;
    const most = Math.max(0.01, ...values.map((value) => Math.abs(value || 0)));
    const zero = (left + 44 + right) / 2, scale = (right - left - 44) / 2 / most;
    const parts = [];
    classes.forEach((name, number) => {
      const y = top + row * number, value = values[number];
      parts.push(text(left - 8, y + 16, clipped(name, left / 7), { "text-anchor": "end" }));
      if (value === null) return void parts.push(text(zero + 4, y + 16, "–", { class: "tick" }));
      const length = Math.abs(value) * scale, x = value < 0 ? zero - length : zero;
      parts.push(drawing("rect", { x, y: y + 4, width: Math.max(length, 0.5), height: row - 8,
        fill: { up: "var(--better)", down: "var(--worse)" }[direction(value)] || "var(--unknown)" }));
      parts.push(text(value < 0 ? x - 4 : x + length + 4, y + 16, signed(value), { "text-anchor": value < 0 ? "end" : "start" }));
    });
    parts.push(line(zero, top, zero, top + row * classes.length, { stroke: "var(--ink)" }));
    return [top + row * classes.length + 4, parts];
  });
}

function ticks(least, most) {
  if (least === most) return [least];
  const rough = (most - least) / 5, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= rough);
  // By number: added up, a step may be lost beside a large value.
  const first = Math.ceil(least / step), count = Math.min(Math.floor((most + step * 1e-9) / step - first) + 1, 12);
  return Array.from({ length: Math.max(count, 0) }, (_, number) => (first + number) * step);
}

function short(value, digits = 3) {
  if (value === 0 || Math.abs(value) < 1e-12) return "0";
  return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(digits)));
}

// Series are lists of [x, y]; `marks` are points with a shape of their own.
function lineChart(description, series, options = {}) {
  return chart(description, (width) => {
    const height = options.height || 170, left = 46, right = width - 10, top = 10, bottom = height - 24;
    const points = [...series.flatMap((one) => one.points), ...(options.marks ? options.marks() : []).map((one) => one.point)];
    const bounds = (axis, given) => given || [Math.min(...points.map((one) => one[axis])), Math.max(...points.map((one) => one[axis]))];
    const [firstX, lastX] = bounds(0, options.x), [firstY, lastY] = bounds(1, options.y);
    const atX = (value) => left + (lastX > firstX ? (value - firstX) / (lastX - firstX) : 0.5) * (right - left);
    const atY = (value) => bottom - (lastY > firstY ? (value - firstY) / (lastY - firstY) : 0.5) * (bottom - top);
    const parts = [];
    for (const tick of ticks(firstY, lastY)) {
      parts.push(line(left, atY(tick), right, atY(tick)));
      parts.push(text(left - 5, atY(tick) + 4, short(tick, 6), { class: "tick", "text-anchor": "end" }));
    }
    for (const tick of ticks(firstX, lastX)) {
      parts.push(text(atX(tick), height - 7, short(tick, 6), { class: "tick",
        "text-anchor": atX(tick) > right - 14 ? "end" : "middle" }));
    }
    for (const one of series) {
      const path = one.points.map(([x, y], place) => `${place ? "L" : "M"}${atX(x).toFixed(1)},${atY(y).toFixed(1)}`).join("");
      parts.push(drawing("path", { d: path, fill: "none", stroke: seriesColor(one.number), "stroke-width": 1.8,
        "stroke-dasharray": one.number % 2 ? "6 3" : "none" }));
      if (one.points.length) {
        const [x, y] = one.points[one.points.length - 1];
        parts.push(shape(one.number, atX(x), atY(y)));
      }
    }
    for (const mark of options.marks ? options.marks() : []) {
      const [x, y] = [atX(mark.point[0]), atY(mark.point[1])];
      parts.push(drawing("circle", { cx: x, cy: y, r: 7, fill: "none", stroke: "var(--mark)", "stroke-width": 2 }));
      parts.push(text(x > right - 110 ? x - 11 : x + 11, y + (mark.below || y < 24 ? 20 : -10), mark.name, { "text-anchor": x > right - 110 ? "end" : "start" }));
    }
    return [height, parts];
  });
}
