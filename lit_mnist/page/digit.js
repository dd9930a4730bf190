"use strict";
// What lit_mnist/images.py (normalise) and lit_mnist/model.py say in Python; the tests give both the same drawings.

const DATA = JSON.parse(document.getElementById("data").textContent);
const { box: BOX, side: SIDE, edge: EDGE } = DATA;

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

const WEIGHTS = Object.fromEntries(
  Object.entries(DATA.weights).map(([key, base64]) => [key, new Float32Array(bytesOf(base64).buffer)]),
);

// The weights [to][length] that resize a line of pixels by linear interpolation, or average that widely.
function resampling(length, to) {
  const scale = length / to;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const weights = Array.from({ length }, (_, j) =>
      Math.max(0, 1 - Math.abs(j + 0.5 - centre) / Math.max(scale, 1)),
    );
    const sum = weights.reduce((a, b) => a + b);
    return weights.map((weight) => weight / sum);
  });
}

// Where a line of pixels begins in one of 28 that has its centre of mass in the middle, or near it.
function offset(mass) {
  const total = mass.reduce((a, b) => a + b);
  const centre = mass.reduce((sum, m, i) => sum + m * (i + 0.5), 0) / total;
  return Math.min(Math.max(Math.floor(SIDE / 2 - centre + 0.5 + 1e-6), 0), SIDE - mass.length);
}

// Ink in [0, 1], [height x width], to the bytes [28 x 28] that the network sees; null if there is no ink.
function normalise(ink, height, width) {
  let [top, bottom, left, right] = [height, -1, width, -1];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (ink[y * width + x] > EDGE) {
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
        left = Math.min(left, x);
        right = Math.max(right, x);
      }
  if (bottom < 0) return null;
  const [high, wide] = [bottom - top + 1, right - left + 1];
  const scale = BOX / Math.max(high, wide);
  const [h, w] = [high, wide].map((length) => Math.max(1, Math.floor(length * scale + 0.5)));
  const byRows = resampling(high, h);
  const byColumns = resampling(wide, w);

  const rows = byRows.map((weights) => {
    const row = new Float64Array(wide);
    weights.forEach((weight, y) => {
      if (weight) for (let x = 0; x < wide; x++) row[x] += weight * ink[(top + y) * width + left + x];
    });
    return row;
  });
  const small = rows.map((row) => byColumns.map((weights) => weights.reduce((sum, weight, x) => sum + weight * row[x], 0)));
  const most = Math.max(...small.flat());
  const y0 = offset(small.map((row) => row.reduce((a, b) => a + b)));
  const x0 = offset(byColumns.map((_, x) => small.reduce((sum, row) => sum + row[x], 0)));

  const image = new Uint8Array(SIDE * SIDE);
  small.forEach((row, y) =>
    row.forEach((value, x) => {
      image[(y0 + y) * SIDE + x0 + x] = Math.floor((255 * value) / most + 0.5 + 1e-6);
    }),
  );
  return image;
}

// Bytes [28 x 28] to what each layer gives, as Keras orders it: conv [28 x 28 x 6], pool [14 x 14 x 6], hidden [128],
// probabilities [10].
function forward(image) {
  const [kernel, bias] = [WEIGHTS["conv/kernel"], WEIGHTS["conv/bias"]];
  const filters = bias.length;
  const half = SIDE / 2;
  const conv = new Float64Array(SIDE * SIDE * filters);
  const pool = new Float64Array(half * half * filters);
  for (let y = 0; y < SIDE; y++)
    for (let x = 0; x < SIDE; x++)
      for (let f = 0; f < filters; f++) {
        let sum = bias[f];
        for (let r = 0; r < 3; r++)
          for (let c = 0; c < 3; c++) {
            const [row, column] = [y + r - 1, x + c - 1];
            if (row >= 0 && row < SIDE && column >= 0 && column < SIDE)
              sum += (image[row * SIDE + column] / 255) * kernel[(r * 3 + c) * filters + f];
          }
        const value = Math.max(0, sum);
        conv[(y * SIDE + x) * filters + f] = value;
        const pooled = ((y >> 1) * half + (x >> 1)) * filters + f;
        pool[pooled] = Math.max(pool[pooled], value);
      }
  const hidden = dense(pool, "hidden").map((value) => Math.max(0, value));
  const logits = dense(hidden, "output");
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return { conv, pool, hidden, probabilities: powers.map((power) => power / sum) };
}

function dense(input, layer) {
  const output = Float64Array.from(WEIGHTS[`${layer}/bias`]);
  const kernel = WEIGHTS[`${layer}/kernel`];
  input.forEach((value, i) => {
    if (value) for (let o = 0; o < output.length; o++) output[o] += value * kernel[i * output.length + o];
  });
  return output;
}
