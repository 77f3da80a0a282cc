"use strict";
// The noise of `diffuse sample`: the keys of its random numbers, NumPy's Philox generator, and its
// standard normal numbers in float32. Seed k here is seed k there.

const WORD = (1n << 64n) - 1n;

const BLAKE_START = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];

const BLAKE_ORDER = [
  "0123456789abcdef", "ea489fd61c02b753",
  "b8c052fdae367194", "7931dcbe265a40f8",
  "905724afe1bc683d", "2c6a0b834d75fe19",
  "c51fed4a0763928b", "db7ec13950f4862a",
  "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => [...row].map((digit) => parseInt(digit, 16)));

// BLAKE2b (RFC 7693) of a text of at most 128 bytes, as an integer of `size` bytes.
function hash(text, size) {
  const bytes = new Uint8Array(128), content = new TextEncoder().encode(text);
  bytes.set(content);
  const view = new DataView(bytes.buffer);
  const m = Array.from({ length: 16 }, (_, k) => view.getBigUint64(8 * k, true));
  const h = [...BLAKE_START];
  h[0] ^= 0x01010000n ^ BigInt(size);
  const v = [...h, ...BLAKE_START];
  v[12] ^= BigInt(content.length);
  v[14] ^= WORD;
  const turn = (x, n) => (x >> n) | ((x << (64n - n)) & WORD);
  const mix = (a, b, c, d, x, y) => {
    v[a] = (v[a] + v[b] + x) & WORD;
    v[d] = turn(v[d] ^ v[a], 32n);
    v[c] = (v[c] + v[d]) & WORD;
    v[b] = turn(v[b] ^ v[c], 24n);
    v[a] = (v[a] + v[b] + y) & WORD;
    v[d] = turn(v[d] ^ v[a], 16n);
    v[c] = (v[c] + v[d]) & WORD;
    v[b] = turn(v[b] ^ v[c], 63n);
  };
  for (let round = 0; round < 12; round++) {
    const s = BLAKE_ORDER[round % 10];
    for (let k = 0; k < 4; k++) mix(k, k + 4, k + 8, k + 12, m[s[2 * k]], m[s[2 * k + 1]]);
    for (let k = 0; k < 4; k++) {
      const [b, c, d] = [1, 2, 3].map((n) => ((k + n) & 3) + 4 * n);
      mix(k, b, c, d, m[s[8 + 2 * k]], m[s[9 + 2 * k]]);
    }
  }
  const out = new DataView(new ArrayBuffer(64));
  h.forEach((word, k) => out.setBigUint64(8 * k, word ^ v[k] ^ v[k + 8], true));
  let number = 0n;
  for (let k = 0; k < size; k++) number = (number << 8n) | BigInt(out.getUint8(k));
  return number;
}

// Philox 4x64 with 10 rounds (Salmon et al. 2011), read 32 bits at a time as NumPy does.
class Philox {
  constructor(key) {
    this.key = [key & WORD, key >> 64n];
    this.counter = 0n;
    this.left = [];
  }

  uint32() {
    if (!this.left.length) {
      this.counter += 1n;
      let [a, b, c, d] = [this.counter, 0n, 0n, 0n], [k0, k1] = this.key;
      for (let round = 0; round < 10; round++) {
        const one = 0xd2e7470ee14c6c93n * a, two = 0xca5a826395121157n * c;
        [a, b, c, d] = [(two >> 64n) ^ b ^ k0, two & WORD, (one >> 64n) ^ d ^ k1, one & WORD];
        k0 = (k0 + 0x9e3779b97f4a7c15n) & WORD;
        k1 = (k1 + 0xbb67ae8584caa73bn) & WORD;
      }
      this.left = [a, b, c, d].flatMap((x) => [Number(x & 0xffffffffn), Number(x >> 32n)]).reverse();
    }
    return this.left.pop();
  }

  float() {
    return (this.uint32() >>> 8) / 16777216;
  }
}

// Tables of the ziggurat (Marsaglia & Tsang 2000): the right edges of 256 layers of equal area.
const EDGE = 3.6541528853610088, AREA = 0.00492867323397465524, STEPS = 2 ** 23;
const WIDTHS = new Float32Array(256), INNER = new Uint32Array(256), HEIGHTS = new Float32Array(256);
{
  const height = (x) => Math.exp((-x * x) / 2);
  let x = EDGE;
  [WIDTHS[0], INNER[0], HEIGHTS[0]] = [AREA / height(x) / STEPS, ((x * height(x)) / AREA) * STEPS, 1];
  for (let k = 255; k > 0; k--) {
    const next = k > 1 ? Math.sqrt(-2 * Math.log(AREA / x + height(x))) : 0;
    [WIDTHS[k], INNER[k], HEIGHTS[k]] = [x / STEPS, (next / x) * STEPS, height(x)];
    x = next;
  }
}

// A standard normal number in float32, as NumPy draws it.
function normal(generator) {
  const near = Math.fround, log = (u) => near(Math.log1p(-u));
  for (;;) {
    const bits = generator.uint32(), layer = bits & 255, place = (bits >>> 9) & 0x7fffff;
    const x = near(place * WIDTHS[layer]) * (bits & 256 ? -1 : 1);
    if (place < INNER[layer]) return x;
    if (layer) {
      const step = near(HEIGHTS[layer - 1] - HEIGHTS[layer]);
      const y = near(near(step * generator.float()) + HEIGHTS[layer]);
      if (y < Math.exp(-0.5 * x * x)) return x;
    } else {
      for (;;) {
        const far = near(near(-1 / EDGE) * log(generator.float())), y = -log(generator.float());
        if (y + y > far * far) return near(near(EDGE) + far) * (place & 256 ? -1 : 1);
      }
    }
  }
}

// The noise of step `draw` of image `index`, as many numbers as an image has. Step -1 is the initial
// noise.
function imageNoise(seed, index, size, draw = -1) {
  const generator = new Philox(hash(`${seed}/image/${index}/${draw}`, 16));
  return Float32Array.from({ length: size }, () => normal(generator));
}
