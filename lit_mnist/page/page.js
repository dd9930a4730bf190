"use strict";
// The page: strokes and keys in, pictures and words out. Positions are in pixels of a sheet of 280 x 280.

const SHEET = 280;
const PEN = 22; // about two of the 20 pixels of a digit, as wide as most in MNIST
const STEP = 8; // of an arrow key
const pad = document.getElementById("pad");
const sheet = Object.assign(document.createElement("canvas"), { width: SHEET, height: SHEET });
const inkOf = sheet.getContext("2d", { willReadFrequently: true });

// A drawing: a test digit (bytes) or none below strokes of points [x, y].
let drawing = { example: null, strokes: [] };
const earlier = [];
const pen = { x: SHEET / 2, y: SHEET / 2, down: false, pointer: null };

function change(next) {
  earlier.push(drawing);
  drawing = next;
}

function undo() {
  pen.down = false;
  drawing = earlier.pop() ?? drawing;
  update(true);
}

function clear() {
  pen.down = false;
  if (drawing.example || drawing.strokes.length) change({ example: null, strokes: [] });
  update(true);
}

function begin(x, y) {
  change({ example: drawing.example, strokes: [...drawing.strokes, [[x, y]]] });
}

function extend(x, y) {
  drawing.strokes.at(-1).push([x, y]);
}

function load(example) {
  pen.down = false;
  change({ example, strokes: [] });
  update(true);
}

// Bytes [28 x 28] of what the network sees; null for an empty sheet. A test digit is one already.
function seen() {
  if (drawing.example && !drawing.strokes.length) return drawing.example;
  inkOf.clearRect(0, 0, SHEET, SHEET);
  paint(inkOf, 1, "#000000");
  const { data } = inkOf.getImageData(0, 0, SHEET, SHEET);
  return normalise(Float64Array.from({ length: SHEET * SHEET }, (_, i) => data[4 * i + 3] / 255), SHEET, SHEET);
}

function paint(context, scale, colour) {
  if (drawing.example) context.drawImage(picture(drawing.example, SIDE, SIDE, 255, colour), 0, 0, SHEET * scale, SHEET * scale);
  Object.assign(context, { lineWidth: PEN * scale, lineCap: "round", lineJoin: "round", strokeStyle: colour });
  for (const stroke of drawing.strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * scale, stroke[0][1] * scale);
    for (const [x, y] of stroke) context.lineTo(x * scale, y * scale);
    context.stroke();
  }
}

// Values [height x width] as a colour (#rrggbb) that covers the more, the nearer they are to the most.
function picture(values, height, width, most, colour, canvas = document.createElement("canvas")) {
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  const rgb = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  for (let i = 0; i < width * height; i++) {
    const cover = most > 0 ? Math.round((255 * Math.max(0, values[i])) / most) : 0;
    image.data.set([...rgb, cover], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function channel(values, index, count) {
  return values.filter((_, i) => i % count === index);
}

function share(probability) {
  return probability > 0.9995 ? ">\u202f99.9\u202f%" : `${(100 * probability).toFixed(1)}\u202f%`;
}

// Show the drawing and what the network makes of it; say it, too, once a stroke is finished.
function update(say) {
  const scale = pad.width / SHEET;
  const context = pad.getContext("2d");
  context.clearRect(0, 0, pad.width, pad.height);
  paint(context, scale, colour("ink"));
  if (document.activeElement === pad && pad.matches(":focus-visible")) {
    context.beginPath();
    context.arc(pen.x * scale, pen.y * scale, (PEN / 2 + 3) * scale, 0, 7);
    Object.assign(context, { lineWidth: 2 * scale, strokeStyle: colour("accent") });
    context.setLineDash(pen.down ? [] : [4 * scale, 4 * scale]);
    context.stroke();
    context.setLineDash([]);
  }

  const image = seen();
  document.getElementById("hint").style.display = image ? "none" : "";
  const layers = forward(image ?? new Uint8Array(SIDE * SIDE));
  const blank = (values) => (image ? values : values.map(() => 0));
  picture(image ?? [], SIDE, SIDE, image ? 255 : 0, colour("ink"), document.getElementById("seen"));
  const best = layers.probabilities.indexOf(Math.max(...layers.probabilities));
  const second = [...layers.probabilities.keys()].sort((a, b) => layers.probabilities[b] - layers.probabilities[a])[1];
  const next = `Next: ${second}, ${share(layers.probabilities[second])}.`;
  const sure = `${share(layers.probabilities[best])} sure. ${layers.probabilities[second] < 0.0005 ? "" : next}`;
  const words = image ? sure.trim() : "Nothing yet";
  document.getElementById("digit").textContent = image ? best : "?";
  document.getElementById("words").textContent = words;
  document.getElementById("brief").textContent = image ? `It reads ${best}` : "";
  document.querySelectorAll("#bars li").forEach((bar, k) => {
    const probability = image ? layers.probabilities[k] : 0;
    bar.className = image && k === best ? "first" : "";
    bar.querySelector(".fill").style.width = `${100 * probability}%`;
    bar.querySelector(".share").textContent = image ? share(probability) : "–";
  });
  for (const [name, side] of [["conv", SIDE], ["pool", SIDE / 2]]) {
    const most = Math.max(...layers[name]);
    document.querySelectorAll(`#${name} .map`).forEach((canvas, f) =>
      picture(blank(channel(layers[name], f, 6)), side, side, most, colour("accent"), canvas),
    );
  }
  document.querySelectorAll("#conv .filter").forEach((canvas, f) => {
    const kernel = channel(WEIGHTS["conv/kernel"], f, 6);
    const [low, high] = [Math.min(...kernel), Math.max(...kernel)];
    picture(kernel.map((weight) => weight - low), 3, 3, high - low, colour("ink"), canvas);
  });
  const hidden = document.getElementById("hidden");
  picture(blank(layers.hidden), 4, 32, Math.max(...layers.hidden), colour("accent"), hidden);
  if (say) document.getElementById("spoken").textContent = image ? `It reads ${best}, ${words}` : "The sheet is empty.";
}

let asked = 0;
function updateSoon() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    update(false);
  });
}

function place(event) {
  const frame = pad.getBoundingClientRect();
  return [((event.clientX - frame.left) / frame.width) * SHEET, ((event.clientY - frame.top) / frame.height) * SHEET];
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || pen.pointer !== null) return;
  pad.setPointerCapture(event.pointerId);
  Object.assign(pen, { down: false, pointer: event.pointerId });
  begin(...place(event));
  updateSoon();
});
pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pen.pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) extend(...place(each));
  updateSoon();
});
for (const name of ["pointerup", "pointercancel"])
  pad.addEventListener(name, (event) => {
    if (event.pointerId !== pen.pointer) return;
    pen.pointer = null;
    update(true);
  });

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
pad.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  if (event.altKey || event.metaKey || (event.ctrlKey && event.key !== "z")) return;
  if (arrow) {
    pen.x = Math.min(Math.max(pen.x + STEP * arrow[0], 0), SHEET);
    pen.y = Math.min(Math.max(pen.y + STEP * arrow[1], 0), SHEET);
    if (pen.down) extend(pen.x, pen.y);
    update(false);
  } else if (event.key === " ") {
    pen.down = !pen.down;
    if (pen.down) begin(pen.x, pen.y);
    update(!pen.down);
  } else if (event.key === "Backspace" || event.key === "z") {
    undo();
  } else if (event.key === "Delete") {
    clear();
  } else return;
  event.preventDefault();
});
for (const name of ["focus", "blur"]) pad.addEventListener(name, () => update(false));
document.getElementById("undo").addEventListener("click", undo);
document.getElementById("clear").addEventListener("click", clear);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => start());

function start() {
  const bars = document.getElementById("bars");
  bars.replaceChildren(
    ...Array.from({ length: 10 }, (_, k) => {
      const bar = document.createElement("li");
      bar.innerHTML = `<span>${k}</span><span class="track"><span class="fill"></span></span><span class="share"></span>`;
      return bar;
    }),
  );
  const examples = document.getElementById("examples");
  examples.replaceChildren(
    ...DATA.examples.map(({ label, pixels }, i) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.setAttribute("aria-label", `Test digit ${label}, number ${(i % 2) + 1}`);
      button.append(picture(bytesOf(pixels), SIDE, SIDE, 255, colour("ink")));
      button.addEventListener("click", () => load(bytesOf(pixels)));
      return button;
    }),
  );
  for (const [name, what] of [["conv", "convolution"], ["pool", "pooling"]])
    document.getElementById(name).replaceChildren(
      ...Array.from({ length: 6 }, (_, f) => {
        const figure = document.createElement("figure");
        const map = Object.assign(document.createElement("canvas"), { className: "map" });
        map.setAttribute("role", "img");
        map.setAttribute("aria-label", `Feature map ${f + 1} after ${what}`);
        figure.append(map);
        if (name === "conv") {
          const filter = Object.assign(document.createElement("canvas"), { className: "filter" });
          filter.setAttribute("role", "img");
          filter.setAttribute("aria-label", `The weights of filter ${f + 1}`);
          figure.append(filter);
        }
        return figure;
      }),
    );
  update(false);
}

start();
