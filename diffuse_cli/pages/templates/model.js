// The page of a model: load the networks, read the controls, and show the samples as they appear.

const find = (id) => document.getElementById(id);
const settings = JSON.parse(find("settings").textContent);
const [channels, ...size] = settings.shape, numbers = settings.shape.reduce((a, b) => a * b, 1);
const [height, width] = size.length > 1 ? size : [64, Math.min(size[0], 480)];
const AT_ONCE = { wasm: 4, webgpu: 16 }; // samples that the network computes before the page reacts to clicks
let networks = null, stopped = false, shown = null; // shown: the samples in the model's numbers

// -- files ----------------------------------------------------------------------------------------

// The bytes of a file of this page, which are in the page or beside it.
async function load(name) {
  const inside = find(name);
  if (inside) return Uint8Array.from(atob(inside.textContent), (c) => c.charCodeAt(0));
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is missing`);
  return new Uint8Array(await answer.arrayBuffer());
}

// The networks of an execution provider of onnxruntime-web.
async function openBy(provider) {
  const [script, binary] = settings.providers[provider];
  const code = new Blob([await load(script)], { type: "text/javascript" });
  const runtime = await import(URL.createObjectURL(code)), found = { runtime, provider };
  runtime.env.wasm.numThreads = 1;
  runtime.env.wasm.wasmBinary = (await load(binary)).buffer;
  for (const [name, file] of Object.entries(settings.networks)) {
    const options = { executionProviders: [provider], logSeverityLevel: 3 }; // 3: errors
    found[name] = await runtime.InferenceSession.create(await load(file), options);
  }
  return found;
}

// The networks, on the GPU if the browser offers one.
async function open() {
  if (settings.providers.webgpu && await navigator.gpu?.requestAdapter()) {
    try {
      return await openBy("webgpu");
    } catch (error) {
      console.warn(error);
    }
  }
  return openBy("wasm");
}

// -- networks -------------------------------------------------------------------------------------

// A function from noisy samples and a time to the network's targets, for some conditions by name:
// [values of each sample, sides, type].
function bind(session, count, conditions) {
  const { runtime: { Tensor }, provider } = networks;
  return async (x, time) => {
    const out = new Float32Array(x.length);
    for (let first = 0; first < count; first += AT_ONCE[provider]) {
      const n = Math.min(AT_ONCE[provider], count - first), part = x.subarray(first * numbers, (first + n) * numbers);
      const inputs = {
        x: new Tensor("float32", part, [n, ...settings.shape]),
        t: new Tensor("float32", new Float32Array(n).fill(time), [n]),
      };
      for (const [name, [values, sides, type]] of Object.entries(conditions)) {
        const each = sides.reduce((a, b) => a * b, 1);
        inputs[name] = new Tensor(type, values.slice(first * each, (first + n) * each), [n, ...sides]);
      }
      const { data, dims } = (await session.run(inputs)).y, stride = data.length / n;
      for (let k = 0; k < n; k++) { // a learned variance follows the target
        out.set(data.subarray(k * stride, k * stride + numbers), (first + k) * numbers);
      }
      await new Promise((resume) => setTimeout(resume));
    }
    return out;
  };
}

// The conditions of samples by name, or without a condition.
function readConditions(count, dropped) {
  const found = {}, all = (f) => Array.from({ length: count }, (_, k) => (dropped ? null : f(k)));
  if (settings.classes.length) {
    const chosen = Number(find("label").value), none = settings.classes.length;
    const labels = all((k) => (chosen < 0 ? k % none : chosen)).map((label) => BigInt(label ?? none));
    found.label = [BigInt64Array.from(labels), [], "int64"];
  }
  if (settings.columns.length) {
    const row = [...document.querySelectorAll("[data-column]")].map(readColumn);
    const rows = all(() => row).flatMap((codes) => codes ?? row.map(() => NaN));
    found.row = [Float32Array.from(rows), [row.length], "float32"];
  }
  if (settings.given) {
    const own = readInput(), inputs = new Float32Array(count * own.length);
    if (!dropped) for (let k = 0; k < count; k++) inputs.set(own, k * own.length);
    found.given = [inputs, [own.length / (size[0] * size[1]), ...size], "float32"];
  }
  return found;
}

// The code of a metadata column, as core/conditions.py has it.
function readColumn(control) {
  const column = settings.columns[Number(control.dataset.column)];
  if (control.value === "") return NaN;
  if (column.values) return Number(control.value);
  return Math.max(-1000, Math.min(1000, (Number(control.value) - column.mean) / column.deviation));
}

// -- conditioning image ---------------------------------------------------------------------------

// The conditioning input: the canvas in the model's numbers, 0 where it is hidden, and a channel
// that is 1 where it is known. Painted parts of a photo are hidden. For label maps, `hidden` has the
// index of the label of each pixel.
function readInput() {
  const places = size[0] * size[1], planes = settings.given.channels, [low, high] = settings.given.levels;
  const pixels = find("given").getContext("2d").getImageData(0, 0, size[1], size[0]).data;
  const out = new Float32Array((planes + 1) * places);
  if (settings.given.labels.length) { // a plane for each label
    hidden.forEach((label, k) => { out[label * places + k] = out[planes * places + k] = 1; });
    return out;
  }
  for (let k = 0; k < places; k++) {
    const known = !(settings.given.masks && hidden[k]);
    const rgb = [0, 1, 2].map((c) => pixels[4 * k + c]);
    const grey = Math.round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]);
    for (let c = 0; c < planes; c++) {
      const level = planes === 1 ? grey : rgb[c];
      out[c * places + k] = known ? (level - low) / ((high - low) / 2) - 1 : 0;
    }
    out[planes * places + k] = known ? 1 : 0;
  }
  return out;
}

let photo = null, hidden = null;

// The index of the label of a grey level: of the label itself, or evenly spread.
function findLabel(level) {
  const { labels } = settings.given, place = labels.findIndex(({ value }) => value === level);
  return place < 0 ? Math.round(level / 255 * (labels.length - 1)) : place;
}

// Draw the photo, if there is one, and the hidden part over it.
function showInput() {
  const context = find("given").getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, size[1], size[0]);
  hidden = new Uint8Array(size[0] * size[1]);
  if (photo) {
    const scale = Math.max(size[1] / photo.width, size[0] / photo.height);
    const [width, height] = [photo.width * scale, photo.height * scale];
    context.imageSmoothingQuality = "high";
    context.imageSmoothingEnabled = !settings.given.labels.length;
    context.drawImage(photo, (size[1] - width) / 2, (size[0] - height) / 2, width, height);
  }
  if (settings.given.labels.length) {
    const { data } = context.getImageData(0, 0, size[1], size[0]);
    if (photo) hidden.forEach((_, k) => { hidden[k] = findLabel(data[4 * k]); });
    hidden.forEach((label, k) => {
      context.fillStyle = settings.given.labels[label].color;
      context.fillRect(k % size[1], Math.floor(k / size[1]), 1, 1);
    });
  }
}

// Paint a disk around the pointer.
function paint(event) {
  if (event.buttons !== 1 || event.offsetX < 0) return;
  const canvas = find("given"), context = canvas.getContext("2d"), radius = Number(find("brush").value) / 2;
  const [px, py] = [event.offsetX / canvas.clientWidth * size[1], event.offsetY / canvas.clientHeight * size[0]];
  for (let y = 0; y < size[0]; y++) for (let x = 0; x < size[1]; x++) {
    if ((x + 0.5 - px) ** 2 + (y + 0.5 - py) ** 2 > Math.max(0.5, radius ** 2)) continue;
    hidden[y * size[1] + x] = find("paint") ? Number(find("paint").value) : 1;
    context.fillStyle = settings.given.labels[hidden[y * size[1] + x]]?.color ?? (settings.given.masks ? "#f0f" : "#000");
    context.fillRect(x, y, 1, 1);
  }
}

function prepareInput() {
  if (find("paint")) {
    addOptions(find("paint"), settings.given.labels.map(({ name }, k) => [name, k]));
    find("paint").selectedIndex = 1; // label 0 is the background, which an empty map has already
  }
  showInput();
  find("erase").addEventListener("click", showInput);
  for (const kind of ["pointerdown", "pointermove"]) find("given").addEventListener(kind, paint);
  find("file").addEventListener("change", async () => {
    photo = await createImageBitmap(find("file").files[0]);
    showInput();
  });
}

// -- sampling -------------------------------------------------------------------------------------

function chooseSampling() {
  return settings.samplings[Number(find("sampling").value)];
}

const readScale = (id) => (find(id) ? Number(find(id).value) : 1);

async function generate() {
  const count = Number(find("count").value), seed = BigInt(find("seed").value);
  const { sampler, levels, start } = chooseSampling(), began = performance.now();
  const conditions = readConditions(count, false), own = bind(networks.model, count, conditions);
  const others = [];
  if (readScale("guidance") !== 1) {
    others.push([bind(networks.model, count, readConditions(count, true)), readScale("guidance")]);
  }
  if (readScale("weak") !== 1) {
    others.push([bind(networks.weak, count, conditions), readScale("weak")]);
  }
  const noise = (draw) => {
    const out = new Float32Array(count * numbers);
    for (let k = 0; k < count; k++) out.set(imageNoise(seed, k, numbers, draw), k * numbers);
    return out;
  };
  const x = noise(-1);
  if (start) {
    for (let k = 0; k < count; k++) {
      const own = x.subarray(k * numbers, (k + 1) * numbers);
      own.set(makeInitialNoise(own, levels[0], settings.gaussian));
    }
  }
  const denoise = makeDenoiser(own, others, settings.clipped, settings.interval), canvases = prepareCanvases(count);
  find("progress").max = levels.length;
  for await (const state of SAMPLERS[sampler](denoise, makeSteps(levels), x, noise)) {
    const done = state.step.k + 1;
    show(canvases, done < levels.length ? state.x0 : state.x);
    find("progress").value = done;
    say(`Step ${done} of ${levels.length}`);
    await new Promise((resume) => setTimeout(resume));
    if (stopped) return say("Stopped.");
  }
  const seconds = (performance.now() - began) / 1000;
  const on = networks.provider === "webgpu" ? " on the GPU" : "";
  say(`${count} samples in ${seconds.toFixed(1)} seconds${on}.`);
  offerFiles(canvases);
}

// -- pictures -------------------------------------------------------------------------------------

function prepareCanvases(count) {
  const zoom = Math.max(1, Math.round(96 / Math.max(height, width)));
  const made = Array.from({ length: count }, (_, k) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width * settings.panels.length, height];
    canvas.style.width = `${canvas.width * zoom}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `sample ${k}`);
    if (settings.sound) {
      canvas.setAttribute("aria-label", `play sample ${k}`);
      canvas.addEventListener("click", () => play(k));
    }
    return canvas;
  });
  find("samples").replaceChildren(...made);
  return made;
}

// Show samples. A panel has the channels of red, green and blue, which are equal for a signal.
function show(canvases, x) {
  shown = x;
  const draw = size.length > 1 ? drawImage : drawSignal;
  canvases.forEach((canvas, k) => settings.panels.forEach((panel, place) => {
    const sides = size.reduce((a, b) => a * b, 1);
    const own = panel.map((c) => x.subarray(k * numbers + c * sides, k * numbers + (c + 1) * sides));
    draw(canvas.getContext("2d"), own, place * width);
  }));
}

function drawImage(context, planes, left) {
  const image = new ImageData(width, height);
  image.data.fill(255);
  planes.forEach((values, c) => {
    for (let p = 0; p < width * height; p++) {
      image.data[4 * p + c] = 127.5 + settings.contrast * values[p];
    }
  });
  context.putImageData(image, left, 0);
}

// Draw the range of the values in each column.
function drawSignal(context, [values], left) {
  context.fillStyle = "#fff";
  context.fillRect(left, 0, width, height);
  context.fillStyle = "#0a5bb5";
  const each = values.length / width, place = (v) => height * (0.5 - settings.contrast / 255 * v);
  for (let column = 0; column < width; column++) {
    const part = values.subarray(Math.floor(column * each), Math.floor((column + 1) * each) + 1);
    const [low, high] = [Math.min(...part), Math.max(...part)].map(place);
    context.fillRect(left + column, high, 1, Math.max(1, low - high));
  }
}

function play(k) {
  const context = new AudioContext(), { rate, mean, std } = settings.sound;
  const buffer = context.createBuffer(channels, size[0], rate);
  for (let c = 0; c < channels; c++) {
    const own = shown.subarray(k * numbers + c * size[0], k * numbers + (c + 1) * size[0]);
    buffer.copyToChannel(own.map((value) => value * std[c] + mean[c]), c);
  }
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
}

// Offer a canvas as a file.
function offer(canvas, id, name) {
  canvas.toBlob((blob) => {
    const link = find(id);
    URL.revokeObjectURL(link.href);
    Object.assign(link, { href: URL.createObjectURL(blob), download: name, hidden: false });
  });
}

// Offer a grid of the samples, and the conditioning image with its mask for `diffuse sample`.
function offerFiles(canvases) {
  const columns = Math.ceil(Math.sqrt(canvases.length)), grid = document.createElement("canvas");
  const [wide, high] = [canvases[0].width + 2, height + 2];
  grid.width = columns * wide - 2;
  grid.height = Math.ceil(canvases.length / columns) * high - 2;
  const context = grid.getContext("2d");
  canvases.forEach((canvas, k) => context.drawImage(
    canvas, (k % columns) * wide, Math.floor(k / columns) * high));
  offer(grid, "save", `${settings.name}.png`);
  const labels = settings.given?.labels ?? [];
  if (settings.given) offer(labels.length ? drawMask((k) => labels[k].value) : find("given"), "save-input", "input.png");
  if (find("save-mask")) offer(drawMask((white) => 255 * white), "save-mask", "mask.png");
}

// The hidden part in levels, as --mask reads it, or the labels, as --given does.
function drawMask(level) {
  const mask = document.createElement("canvas");
  [mask.width, mask.height] = [size[1], size[0]];
  const image = new ImageData(size[1], size[0]);
  hidden.forEach((value, k) => image.data.set([...Array(3).fill(level(value)), 255], 4 * k));
  mask.getContext("2d").putImageData(image, 0, 0);
  return mask;
}

// -- the page -------------------------------------------------------------------------------------

function say(words) {
  find("state").textContent = words;
}

const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);

// The command that generates these samples.
function describeCommand() {
  const { sampler, steps } = chooseSampling();
  const words = ["diffuse", "sample", settings.file, "-n", find("count").value, "--seed", find("seed").value];
  words.push("--sampler", sampler, "--steps", String(steps), "--precision", "fp32");
  const label = find("label") && Number(find("label").value);
  if (label >= 0 && find("label")) words.push("--class", settings.classes[label]);
  for (const control of document.querySelectorAll("[data-column]")) {
    const column = settings.columns[Number(control.dataset.column)];
    const value = column.values ? column.values[control.value] : control.value;
    if (control.value !== "") words.push("--on", `${column.name}=${value}`);
  }
  if (settings.weights !== "ema") words.push("--weights", settings.weights);
  if (find("guidance")) words.push("--guidance", find("guidance").value);
  if (find("weak")) words.push("--weak-guidance", find("weak").value);
  if (settings.interval) words.push("--guidance-interval", settings.interval.join(","));
  if (settings.given) words.push("--given", "input.png", ...(settings.given.masks ? ["--mask", "mask.png"] : []));
  find("command").textContent = words.map(quote).join(" ");
}

// Controls whose values are in the address, by name.
const listShared = () => [...document.querySelectorAll("#controls :is(input, select):not([type=file], #brush, #paint)")]
  .map((control) => [control.id || `on-${settings.columns[Number(control.dataset.column)].name}`, control]);

// Set the controls as in the address.
function readAddress() {
  const shared = new URLSearchParams(location.hash.slice(1));
  for (const [name, control] of listShared()) {
    if (shared.has(name)) control.value = shared.get(name);
    if (!control.value && control.options) control.selectedIndex = 0;
  }
}

function writeAddress() {
  const pairs = listShared().map(([name, { value }]) => [name, value]);
  history.replaceState(null, "", `#${new URLSearchParams(pairs)}`);
}

function addOptions(select, entries) {
  select.replaceChildren(...entries.map(([text, value]) => new Option(text, value)));
}

function prepareControls() {
  addOptions(find("sampling"), settings.samplings.map(({ title }, k) => [title, k]));
  find("sampling").value = settings.chosen;
  if (find("label")) {
    addOptions(find("label"), [["all in turn", -1], ...settings.classes.map((name, k) => [name, k])]);
  }
  for (const select of document.querySelectorAll("select[data-column]")) {
    const { values } = settings.columns[Number(select.dataset.column)];
    const any = settings.optional ? [["any", ""]] : [];
    addOptions(select, [...any, ...values.map((name, k) => [name, k])]);
  }
  readAddress();
  if (settings.given) prepareInput();
  find("controls").addEventListener("input", () => {
    describeCommand();
    writeAddress();
  });
  find("stop").addEventListener("click", () => { stopped = true; });
  find("controls").addEventListener("submit", async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await generate().catch(repeat);
    } catch (error) {
      say(`The model cannot be run: ${error.message}`);
    }
    setBusy(false);
  });
  describeCommand();
}

// Repeat with WebAssembly what a GPU cannot do.
async function repeat(error) {
  if (networks.provider !== "webgpu") throw error;
  console.warn(error);
  networks = await openBy("wasm");
  return generate();
}

function setBusy(busy) {
  stopped = false;
  find("start").disabled = busy;
  find("stop").disabled = !busy;
  find("progress").hidden = !busy;
}

prepareControls();
open().then((found) => {
  networks = found;
  find("start").disabled = false;
  say("Ready.");
}, (error) => {
  const local = location.protocol === "file:" && !find(settings.providers.wasm[0]);
  say(local
    ? "A browser opens this page only from a web server. In its folder, run: python -m http.server"
    : `The model cannot be loaded: ${error.message}`);
});
