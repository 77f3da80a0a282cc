"use strict";
// Sampling as in diffuse_cli/core: noise levels, denoisers with guidance, and samplers. A batch of
// samples is one Float32Array, and all other numbers are doubles.

// Steps between noise levels [time, alpha, sigma, a, b]: the network's time input, the noisy samples
// x_t = alpha x_0 + sigma eps, and the network's target y = a x_0 + b eps. The last step ends at
// clean samples.
function makeSteps(levels) {
  const lambda = (alpha, sigma) => Math.log(alpha / sigma);
  return levels.map(([time, alpha, sigma, a, b], k) => {
    const [, alphaS, sigmaS] = levels[k + 1] ?? [-1, 1, 0], start = lambda(alpha, sigma);
    return { k, time, alpha, sigma, a, b, alphaS, sigmaS, start, h: lambda(alphaS, sigmaS) - start };
  });
}

// Combine two or three arrays elementwise.
function combine(f, first, second, third = second) {
  const out = new Float32Array(first.length);
  for (let k = 0; k < out.length; k++) out[k] = f(first[k], second[k], third[k]);
  return out;
}

// A function to x_0 and eps, from a network and [other, scale] pairs to guide it away from, as
// `guide_away` does, at noise levels in an interval, or all. It is linear in the targets, so that they
// can be combined before x_0 is found.
function makeDenoiser(network, others, clipped, interval = null) {
  const [low, high] = interval || [-1, Infinity];
  return async (x, step) => {
    const own = await network(x, step.time), { alpha, sigma, a, b } = step;
    const guides = low < sigma / alpha && sigma / alpha <= high ? others : [];
    let y = own;
    for (const [other, scale] of guides.filter(([, scale]) => scale !== 1)) {
      const away = (y, own, their) => y + (scale - 1) * (own - their);
      y = combine(away, y, own, await other(x, step.time));
    }
    const determinant = a * sigma - b * alpha, most = clipped ? 1 : Infinity;
    const solve = (y, x) => Math.min(most, Math.max(-most, (sigma * y - b * x) / determinant));
    const x0 = combine(solve, y, x);
    return { x0, eps: combine((x, x0) => (x - alpha * x0) / sigma, x, x0) };
  };
}

// x_s for constant eps (Song et al. 2021).
async function* ddim(denoise, steps, x) {
  for (const step of steps) {
    const found = await denoise(x, step);
    x = combine((x0, eps) => step.alphaS * x0 + step.sigmaS * eps, found.x0, found.eps);
    yield { x, x0: found.x0, step };
  }
}

// The sampler of distilled models: x_0 with new noise (Song et al. 2023).
async function* consistency(denoise, steps, x, noise) {
  for (const step of steps) {
    const { x0 } = await denoise(x, step);
    const add = (x0, noise) => step.alphaS * x0 + step.sigmaS * noise;
    x = step.sigmaS ? combine(add, x0, noise(step.k)) : x0;
    yield { x, x0, step };
  }
}

// UniPC of second order in terms of x_0, with its corrector (Zhao et al. 2023).
async function* unipc(denoise, steps, x) {
  let past = [], taken = null;
  for (const step of steps) {
    const { x0 } = await denoise(x, step), here = { start: step.start, x0 };
    if (taken) x = multistep(taken.step, taken.x, taken.x0, [...taken.used, here]);
    const used = step.h > 0 && step.h < Infinity ? past : [];
    if (step.start === -Infinity) [taken, past] = [null, []];
    else if (step.h > 0) [taken, past] = [{ step, x, x0, used }, [here]];
    x = multistep(step, x, x0, used);
    yield { x, x0, step };
  }
}

// x_s from x_0 at the start of a step, and from estimates at other lambdas.
function multistep(step, x, x0, others) {
  const ratios = others.map((other) => (other.start - step.start) / step.h);
  const weights = solveWeights(ratios, step.h), gain = -step.alphaS * Math.expm1(-step.h);
  let estimate = x0;
  others.forEach((other, k) => {
    const weight = weights[k] / ratios[k];
    estimate = combine((sum, other, x0) => sum + weight * (other - x0), estimate, other.x0, x0);
  });
  return combine((x, x0) => (step.sigmaS / step.sigma) * x + gain * x0, x, estimate);
}

// Solve sum a_k r_k^(i-1) = i! phi_(i+1)(-h) / phi_1(-h) for at most two weights a.
function solveWeights(ratios, h) {
  if (ratios.length < 2) return ratios.map(() => 0.5);
  const [first, second] = [phi(2, -h), 2 * phi(3, -h)].map((value) => value / phi(1, -h));
  const [p, q] = ratios;
  return [(second - q * first) / (p - q), (p * first - second) / (p - q)];
}

// phi_0 = e^z, phi_(k+1) = (phi_k - 1 / k!) / z, by its series for small z.
function phi(k, z) {
  const factorial = (n) => (n < 2 ? 1 : n * factorial(n - 1));
  if (Math.abs(z) < 1) {
    return Array.from({ length: 20 }, (_, i) => z ** i / factorial(i + k)).reduce((a, b) => a + b);
  }
  return k ? (phi(k - 1, z) - 1 / factorial(k - 1)) / z : Math.exp(z);
}

const SAMPLERS = { unipc, ddim, consistency };

// The initial noise of one sample (C, *size) with the brightness and layout of the data, from N(0, 1)
// noise, as `DataGaussian.make_initial_noise` does.
function makeInitialNoise(noise, [, alpha, sigma], { shape, colors, mean, variance }) {
  const lowest = mean.shape.slice(1);
  const bases = lowest.map((count, dim) => cosines(shape[dim + 1], count));
  const low = transform(noise, shape, [colors, ...bases]);
  const added = low.map((value, k) => {
    const spread = Math.sqrt(alpha ** 2 * variance.values[k] + sigma ** 2) - sigma;
    return alpha * mean.values[k] + spread * value;
  });
  const back = transform(added, mean.shape, [colors, ...bases].map(transpose));
  return Float32Array.from(noise, (value, k) => sigma * value + back[k]);
}

// The first rows of the orthonormal cosine transform (DCT-II).
function cosines(side, count) {
  return Array.from({ length: count }, (_, row) => Array.from({ length: side }, (_, k) =>
    Math.sqrt((row ? 2 : 1) / side) * Math.cos((Math.PI / side) * row * (k + 0.5))));
}

const transpose = (rows) => rows[0].map((_, k) => rows.map((row) => row[k]));

// Multiply each dimension of an array by a matrix.
function transform(values, shape, matrices) {
  let found = Float64Array.from(values), sides = [...shape];
  matrices.forEach((rows, dim) => {
    const [before, after] = [sides.slice(0, dim), sides.slice(dim + 1)].map((part) =>
      part.reduce((a, b) => a * b, 1));
    const side = sides[dim], next = new Float64Array(before * rows.length * after);
    for (let i = 0; i < before; i++) for (let r = 0; r < rows.length; r++) for (let j = 0; j < after; j++) {
      let sum = 0;
      for (let k = 0; k < side; k++) sum += rows[r][k] * found[(i * side + k) * after + j];
      next[(i * rows.length + r) * after + j] = sum;
    }
    [found, sides[dim]] = [next, rows.length];
  });
  return found;
}
