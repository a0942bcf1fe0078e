// The page at /: a form or a pad made from the model's manifest, and what the model answers.
const $ = id => document.getElementById(id);
const short = text => /^-?\d*\.\d{6,}$/.test(text) ? String(Number(Number(text).toPrecision(4))) : text;
const percent = p => `${(100 * p).toFixed(1)}\u00a0%`;
const store = { get key() { return sessionStorage.getItem("nas-key"); }, set key(k) { sessionStorage.setItem("nas-key", k); } };
let model, newest = 0;

function element(name, content = "", attributes = {}) {
  const made = document.createElement(name);
  made.append(content);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// An answer's JSON. What goes wrong is shown on the page, and null returned.
async function ask(path, body) {
  const headers = store.key ? { Authorization: `Bearer ${store.key}` } : {};
  let problem;
  try {
    const options = body === undefined ? { headers } : { headers, method: "POST", body: JSON.stringify(body) };
    const response = await fetch(path, options);
    const answer = await response.json();
    $("key").hidden = response.status !== 401;
    if (response.ok) {
      show("problem", false);
      return answer;
    }
    problem = answer.error;
  } catch {
    problem = "The server doesn't answer.";
  }
  if ($("problem").textContent !== problem) $("problem").textContent = problem;
  show("problem", true);
  return null;
}

const show = (id, shown) => { $(id).hidden = !shown; };

async function describe() {
  const manifest = await ask("/model");
  if (!manifest) return void setTimeout(describe, 2000);
  const first = !model;
  model = manifest;
  document.title = $("title").textContent = `Model ${manifest.model}`;
  const { validation, test } = manifest.metrics;
  const facts = {
    Accuracy: `${percent(validation.accuracy)} on ${validation.rows} validation rows (${validation.estimator})`,
    ...(test && { Test: `${percent(test.accuracy)} on ${test.rows} rows` }),
    Trial: manifest.trial,
    ...Object.fromEntries(Object.entries(manifest.parameters).filter(([, v]) => v).map(([k, v]) => [k, short(v)])),
    Epoch: `${manifest.epoch} of ${manifest.epochs_run}`,
    Made: new Date(manifest.created).toLocaleString(),
    Digest: manifest.digest,
  };
  $("facts").replaceChildren(...terms(facts));
  for (const id of ["ask", "answer", "about"]) show(id, true);
  if (first && manifest.input.features) form(manifest.input.features);
  if (first && manifest.input.image) pad(manifest.input.image);
  const line = await ask("/model/lineage");
  if (line) $("ancestors").replaceChildren(...line.map(ancestor));
  show("lineage", Boolean(line));
}

const terms = facts => Object.entries(facts).flatMap(([k, v]) => [element("dt", k), element("dd", v)]);

// The model that answers, its parent, and so on: a digest alone is no longer in the store.
function ancestor({ digest, experiment, trial, parameters, data_digest, image, metrics, created }, generation) {
  const item = element("li", element("strong", ["This model", "Its parent"][generation] ?? "Parent of that"));
  if (!experiment) {
    item.append(element("p", `${digest} is no longer in the store.`));
    return item;
  }
  const list = element("dl");
  list.append(...terms({
    Digest: digest,
    Accuracy: percent(metrics.validation.accuracy),
    Experiment: experiment,
    Trial: trial,
    Parameters: Object.entries(parameters).map(([k, v]) => `${k}=${short(v)}`).join(", ") || "none",
    Data: data_digest,
    Image: image || "not told",
    Made: new Date(created).toLocaleString(),
  }));
  item.append(list);
  return item;
}

async function predict(body) {
  const number = ++newest;
  const answer = await ask("/predict", body);
  if (!answer || number !== newest) return;  // a newer question is on its way
  if (answer.digest !== model.digest) await describe();
  $("label").textContent = `${answer.label} (${percent(answer.probabilities[answer.prediction])})`;
  $("probabilities").replaceChildren(...answer.probabilities.map((p, i) => {
    const row = element("tr", element("th", model.classes[i], { scope: "row" }), i === answer.prediction ? { class: "best" } : {});
    const bar = element("progress", "", { max: 1, value: p, "aria-label": `probability of ${model.classes[i]}` });
    row.append(element("td", bar), element("td", percent(p)));
    return row;
  }));
}

function form(features) {
  const inputs = features.map(({ name, min, max, values }) => {
    if (values) return choice(name, values);
    const middle = ((min + max) / 2).toFixed(2), id = `feature-${name}`, step = 10 ** Math.floor(Math.log10((max - min) / 50 || 1));
    const number = element("input", "", { id, type: "number", step: "any", value: middle, required: "", "aria-describedby": `${id}-range` });
    const range = element("input", "", { type: "range", min, max, step, value: middle, "aria-label": `${name}, slider` });
    number.addEventListener("input", () => { range.value = number.value; send(); });
    range.addEventListener("input", () => { number.value = range.value; send(); });
    const line = element("div", element("label", name.replaceAll("_", " "), { for: id }), { class: "feature" });
    line.append(range, number, element("small", `${min} to ${max} in training`, { id: `${id}-range` }));
    $("features").append(line);
    return number;
  });
  const send = () => { if ($("features").checkValidity()) predict(inputs.map(input => input.type === "number" ? input.valueAsNumber : input.value)); };
  $("features").addEventListener("change", send);  // a category was chosen
  $("features").addEventListener("submit", event => event.preventDefault());
  show("features", true);
  send();
}

function choice(name, values) {
  const id = `feature-${name}`, select = element("select", "", { id });
  select.append(...values.map(value => element("option", value, { value })));
  const line = element("div", element("label", name.replaceAll("_", " "), { for: id }), { class: "feature" });
  line.append(select);
  $("features").append(line);
  return select;
}

function pad([height, width]) {
  const canvas = $("pad"), ink = canvas.getContext("2d"), size = canvas.width;
  let strokes = [], drawing = false, pen = { x: size / 2, y: size / 4, down: false };

  function paint() {
    ink.clearRect(0, 0, size, size);
    trace(ink, strokes, point => point, 20);
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
      ink.strokeStyle = pen.down ? "#7db3f2" : "#a3adb8";
      ink.lineWidth = 2;
      ink.strokeRect(pen.x - 8, pen.y - 8, 16, 16);
    }
  }
  function changed() {
    paint();
    if (strokes.length) predict(pixels(strokes, height, width));
  }
  const at = event => {
    const box = canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) * size / box.width, y: (event.clientY - box.top) * size / box.height };
  };
  canvas.addEventListener("pointerdown", event => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    strokes.push([at(event)]);
    changed();
  });
  canvas.addEventListener("pointermove", event => {
    if (!drawing) return;
    for (const point of event.getCoalescedEvents?.() ?? [event]) strokes.at(-1).push(at(point));
    changed();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { drawing = false; });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, paint);

  function clear() {
    strokes = [];
    pen.down = false;
    newest += 1;  // an answer on its way is to what was there
    $("pen").textContent = "Cleared";
    $("label").textContent = "Nothing asked yet";
    $("probabilities").replaceChildren();
    paint();
  }
  $("clear").addEventListener("click", clear);
  const steps = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
  canvas.addEventListener("keydown", event => {
    if (event.key === "Escape") clear();
    else if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) strokes.push([{ x: pen.x, y: pen.y }]);
      $("pen").textContent = pen.down ? "Pen down" : "Pen up";
      changed();
    } else if (steps[event.key]) {
      pen.x = Math.min(size, Math.max(0, pen.x + steps[event.key][0]));
      pen.y = Math.min(size, Math.max(0, pen.y + steps[event.key][1]));
      if (pen.down) strokes.at(-1).push({ x: pen.x, y: pen.y });
      changed();
    } else return;
    event.preventDefault();
  });
  show("drawing", true);
  paint();
}

function trace(ink, strokes, place, width) {
  Object.assign(ink, { strokeStyle: "#fff", lineWidth: width, lineCap: "round", lineJoin: "round" });
  for (const stroke of strokes) {
    ink.beginPath();
    for (const point of [...stroke, stroke.at(-1)]) {
      const { x, y } = place(point);
      ink.lineTo(x, y);
    }
    ink.stroke();
  }
}

// The strokes as an image of the kind in MNIST: the ink fits a box of 20 of the 28 pixels, its centre of mass is in
// the middle (http://yann.lecun.com/exdb/mnist/), and lines are about two pixels wide however large one drew.
function pixels(strokes, height, width) {
  const fine = 4, points = strokes.flat(), line = 2.4;
  const [left, right] = [Math.min, Math.max].map(f => f(...points.map(p => p.x)));
  const [top, bottom] = [Math.min, Math.max].map(f => f(...points.map(p => p.y)));
  const scale = (height * 20 / 28 - line) / Math.max(right - left, bottom - top, 40);
  const canvas = element("canvas", "", { width: width * fine, height: height * fine });
  const ink = canvas.getContext("2d", { willReadFrequently: true });
  const render = (dx, dy) => {
    ink.clearRect(0, 0, canvas.width, canvas.height);
    const place = ({ x, y }) => ({
      x: fine * ((x - (left + right) / 2) * scale + width / 2 + dx), y: fine * ((y - (top + bottom) / 2) * scale + height / 2 + dy),
    });
    trace(ink, strokes, place, line * fine);
    const { data } = ink.getImageData(0, 0, canvas.width, canvas.height), sums = new Array(height * width).fill(0);
    for (let y = 0; y < canvas.height; y++)
      for (let x = 0; x < canvas.width; x++)
        sums[Math.floor(y / fine) * width + Math.floor(x / fine)] += data[4 * (y * canvas.width + x) + 3];
    return sums.map(sum => Math.round(sum / fine ** 2));
  };
  const drawn = render(0, 0), total = drawn.reduce((a, b) => a + b, 0) || 1;
  const centre = drawn.reduce(([x, y], v, i) => [x + v * (i % width + 0.5), y + v * (Math.floor(i / width) + 0.5)], [0, 0]);
  return render(width / 2 - centre[0] / total, height / 2 - centre[1] / total);
}

$("key").addEventListener("submit", event => {
  event.preventDefault();
  store.key = $("api-key").value;
  describe();
});
describe();
