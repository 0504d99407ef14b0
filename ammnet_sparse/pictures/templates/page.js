// The page: legends that are switches, scenes to choose from, views beside each other, and what lies under the pointer.

const data = JSON.parse(document.getElementById("data").textContent);
const palette = {
  classes: data.classes.map((entry) => packColor(entry.color)),
  errors: data.errors.map((entry) => packColor(entry.color)),
  parts: data.parts.map((entry) => packColor(entry.color)),
};
const SHELL = data.classes.map((entry) => entry.shell);
const VIEW_NAMES = { prediction: "Prediction", truth: "Ground truth", errors: "Errors", input: "Input surface" };
const element = (id) => document.getElementById(id);

const settings = {
  classes: data.classes.map((entry) => !entry.hidden),
  errors: data.errors.map(() => true),
  parts: data.parts.map(() => true),
  colorBy: "class",
  outside: false,
  path: true,
  cut: Infinity,
};
let scene = null;
let camera = null;
const cameras = {}; // of frames and of the room
const latest = {}; // of a live page: the newest frame and the room, by the names that they are asked for by
let renderer = null;
let choice = null; // key of the chosen views
let panes = [];
let paints = new Map(); // of the views shown, for the faces and for the pointer

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function swatch(color) {
  const square = make("span", { className: "swatch" });
  square.style.background = `rgb(${color})`;
  return square;
}

// --- what can be chosen ---

function buildLegend(id, entries, states) {
  entries.forEach((entry, index) => {
    if (entry.skipped) return;
    const box = make("input", { type: "checkbox", checked: states[index], id: `${id}-${index}` });
    box.dataset.name = entry.name;
    box.addEventListener("change", () => {
      states[index] = box.checked;
      repaint();
    });
    const count = make("span", { className: "count" });
    element(id).append(make("label", { className: "row" }, box, swatch(entry.color), make("span", { textContent: entry.name }), count));
  });
}

function buildAllAndNone(id, states, ...others) {
  const set = (value) => {
    states.fill(value);
    for (const box of element(id).querySelectorAll("input[type=checkbox]")) box.checked = value;
    repaint();
  };
  element(id).append(make("div", { className: "pair" },
    make("button", { type: "button", textContent: "All", onclick: () => set(true) }),
    make("button", { type: "button", textContent: "None", onclick: () => set(false) }), ...others));
}

// The switch between the colors of the classes and distinct ones, where these are others.
function buildPaletteChoice() {
  const box = make("input", { type: "checkbox", id: "distinct" });
  box.addEventListener("change", () => {
    data.classes.forEach((entry, index) => {
      const color = box.checked ? entry.distinct : entry.color;
      palette.classes[index] = packColor(color);
      element(`classes-${index}`)?.closest("label").querySelector(".swatch").replaceWith(swatch(color));
    });
    repaint();
  });
  const label = make("label", { className: "row", title: "Also for the color blind" }, box, "Distinct colors");
  label.hidden = data.classes.every((entry) => `${entry.color}` === `${entry.distinct}`);
  return label;
}

function buildColorChoice() {
  const box = make("input", { type: "checkbox", id: "color-by-part" });
  box.addEventListener("change", () => {
    settings.colorBy = box.checked ? "part" : "class";
    repaint();
  });
  element("parts").append(make("label", { className: "row" }, box, "Color by this, not by class"));
}

// The views that a scene offers: key to label and panes.
function viewChoices() {
  const available = ["prediction"];
  if (scene.truth) available.push("truth", "errors");
  if (scene.hasHit) available.push("input");
  const choices = new Map();
  const beside = scene.truth ? ["prediction", "truth"] : ["prediction", "input"];
  if (available.length > 1) choices.set("beside", ["Side by side", beside]);
  for (const view of available) choices.set(view, [viewName(view), [view]]);
  if (available.length > 2) choices.set("all", ["All", available]);
  return choices;
}

function buildViews() {
  const choices = viewChoices();
  if (!choices.has(choice)) {
    const isWide = element("panes").clientWidth > 1.1 * element("panes").clientHeight;
    choice = isWide && choices.has("beside") ? "beside" : "prediction";
  }
  element("views").replaceChildren(...[...choices].map(([key, [label]]) => {
    const radio = make("input", { type: "radio", name: "view", value: key, id: `view-${key}`, checked: key === choice });
    radio.addEventListener("change", () => {
      choice = key;
      arrange();
    });
    return make("label", {}, radio, make("span", { textContent: label }));
  }));
}

const viewName = (view) => (scene.path ? "Room" : VIEW_NAMES[view]);

// The word for voxels that are hidden at first.
const unshown = () => (scene.truth ? "unscored" : "unreliable");

// --- from choices to a picture ---

async function showScene(index) {
  element("scene").selectedIndex = index;
  const decoded = await decodeScene(data.scenes[index]);
  if (element("scene").selectedIndex === index) show(decoded); // else another one has been chosen meanwhile
}

function show(decoded) {
  scene = decoded;
  element("viewer").hidden = false;
  fitToShape();
  element("parts").hidden = !scene.hasHit;
  element("outside-row").hidden = !scene.hasMask;
  element("outside-words").textContent = `Show ${unshown()} voxels, too`;
  element("path-row").hidden = !scene.path;
  element("camera-side").textContent = scene.path ? "Overview" : "Camera's side";
  showBeside(scene);
  showCounts();
  buildViews();
  arrange();
}

function showBeside({ image, note }) {
  element("input").hidden = !image;
  if (image) element("image").src = image;
  element("note").hidden = !note;
  element("note").textContent = note;
}

// The camera and the height above which is cut off, which are kept as long as the shape, or the room, is the same.
function fitToShape() {
  const kind = scene.path ? "room" : "frame";
  const known = cameras[kind];
  if (known && scene.path) known.grow(scene);
  else if (!known || known.shape.join() !== scene.shape.join()) cameras[kind] = new OrbitCamera(scene);
  camera = cameras[kind];
  const [cut, height] = [element("cut"), scene.shape[1]];
  settings.cut = known && settings.cut < cut.max ? Math.min(settings.cut, height) : height;
  Object.assign(cut, { max: height, value: settings.cut });
}

function showCounts() {
  const counts = countVoxels(scene, data.classes.length);
  const write = (id, index, numbers) => {
    const row = element(`${id}-${index}`)?.closest("label");
    if (!row) return;
    row.querySelector(".count").textContent = numbers.map((number) => number.toLocaleString("en")).join(" / ");
    row.classList.toggle("absent", numbers.every((number) => number === 0));
  };
  counts.predicted.forEach((count, index) => write("classes", index, scene.truth ? [count, counts.truth[index]] : [count]));
  counts.errors.forEach((count, index) => write("errors", index, [count]));
  counts.parts.forEach((count, index) => write("parts", index, [count]));
  element("classes").querySelector("legend").textContent = scene.truth ? "Classes: predicted / true" : "Classes";
}

// Splits the canvas into the panes of the chosen views, as square as can be.
function arrange() {
  const views = viewChoices().get(choice)[1];
  element("errors").hidden = !views.includes("errors");
  const [width, height] = [element("panes").clientWidth, element("panes").clientHeight];
  let columns = 1;
  let best = 0;
  for (let tried = 1; tried <= views.length; tried++) {
    const smaller = Math.min(width / tried, height / Math.ceil(views.length / tried));
    if (smaller > best) [best, columns] = [smaller, tried];
  }
  const rows = Math.ceil(views.length / columns);
  panes = views.map((view, index) => ({
    view, left: (index % columns) / columns, top: Math.floor(index / columns) / rows, width: 1 / columns, height: 1 / rows,
  }));
  element("captions").replaceChildren(...panes.map((pane) => {
    const box = make("div", { className: "caption" }, make("span", { textContent: viewName(pane.view) }),
      make("i", {}), ...scene.shape.map((length, axis) =>
        make("b", { textContent: `${["X", "height", "Y"][axis]} ${(length * data.voxelSize).toFixed(1)} m` })));
    for (const side of ["left", "top", "width", "height"]) box.style[side] = `${100 * pane[side]}%`;
    return box;
  }));
  repaint();
}

function repaint() {
  element("cut-height").textContent = `${(settings.cut * data.voxelSize).toFixed(2)} m`;
  paints = new Map();
  if (renderer) {
    for (const { view } of panes) {
      paints.set(view, paintVoxels(scene, view, settings, palette));
      renderer.setFaces(view, buildFaces(paints.get(view), scene.shape, scene.known, SHELL));
    }
    renderer.setLines(settings.path ? pathLines() : []);
  }
  redraw();
}

// The path of the camera through a room and the pyramid of its newest view, as pairs of points.
function pathLines() {
  const { path = [], view } = scene;
  const lines = path.slice(1).flatMap((point, index) => [path[index], point]);
  view?.forEach((corner, index) => lines.push(path.at(-1), corner, corner, view[(index + 1) % view.length]));
  return lines;
}

let isWaiting = false;

function redraw() {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    if (!renderer || !scene) return;
    renderer.draw(panes, camera, { shape: scene.shape, voxelSize: data.voxelSize });
    placeLabels();
  });
}

// The lengths of the grid at its axes, and the word "camera" where it stood, or "camera's side" before the face of the
// grid that it looked in through.
function placeLabels() {
  const [x, height, y] = scene.shape;
  panes.forEach((pane, index) => {
    const aspect = (pane.width * element("panes").clientWidth) / (pane.height * element("panes").clientHeight);
    const m = camera.matrix(aspect);
    const [right, far] = scene.camera || [x / 2, -0.06 * y];
    const place = (label, point) => {
      const at = (row) => m[row] * point[0] + m[4 + row] * point[1] - m[8 + row] * point[2] + m[12 + row];
      label.hidden = at(3) <= 0;
      label.style.left = `${50 + (50 * at(0)) / at(3)}%`;
      label.style.top = `${50 - (50 * at(1)) / at(3)}%`;
    };
    const box = element("captions").children[index];
    const mark = box.querySelector("i");
    mark.textContent = scene.camera ? "camera" : "camera's side";
    place(mark, [right, 0, far]);
    if (scene.path) mark.hidden = true; // the camera itself is drawn
    const ends = [[0.8 * x, 0, -0.04 * y], [-0.06 * x, 0.6 * height, y], [-0.06 * x, 0, 0.5 * y]];
    box.querySelectorAll("b").forEach((label, axis) => place(label, ends[axis]));
  });
}

// The 3D view as it is, with the names of its panes, as a file.
function savePicture() {
  renderer.draw(panes, camera, { shape: scene.shape, voxelSize: data.voxelSize });
  const { width, height } = element("canvas");
  const picture = make("canvas", { width, height });
  const context = picture.getContext("2d");
  context.drawImage(element("canvas"), 0, 0);
  const size = (16 * width) / element("canvas").clientWidth;
  context.font = `600 ${size}px system-ui, sans-serif`;
  for (const pane of panes) context.fillText(viewName(pane.view), pane.left * width + size, pane.top * height + 2 * size);
  picture.toBlob((blob) => {
    const address = URL.createObjectURL(blob);
    make("a", { href: address, download: `${scene.name}.png` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}

function describeVoxel(left, top) {
  const [right, down] = [left / element("panes").clientWidth, top / element("panes").clientHeight];
  const pane = panes.find((each) =>
    right >= each.left && right < each.left + each.width && down >= each.top && down < each.top + each.height);
  if (!pane || !paints.has(pane.view)) return "";
  const aspect = (pane.width * element("panes").clientWidth) / (pane.height * element("panes").clientHeight);
  const ray = camera.ray((2 * (right - pane.left)) / pane.width - 1, 1 - (2 * (down - pane.top)) / pane.height, aspect);
  const voxel = firstVoxel(paints.get(pane.view), scene.shape, ray.origin, ray.direction, scene.known, SHELL);
  if (voxel < 0) return "";
  const [, height, depth] = scene.shape;
  const place = [Math.floor(voxel / depth / height), Math.floor(voxel / depth) % height, voxel % depth];
  const name = (label) => (label === IGNORE ? "ignored" : data.classes[label].name);
  const words = [`predicted ${name(scene.prediction[voxel])}`];
  if (scene.truth) {
    const kind = errorKind(scene.prediction[voxel], scene.truth[voxel]);
    words.push(`truly ${name(scene.truth[voxel])}`);
    if (kind >= 0) words.push(data.errors[kind].name);
  }
  if (scene.hasHit) words.push(scene.flags[voxel] & HIT ? data.parts[0].name : data.parts[1].name);
  if (!(scene.flags[voxel] & IN_MASK)) words.push(unshown());
  return `Voxel ${place.join(", ")}: ${words.join(", ")}`;
}

// --- a live page: the newest frame of the program that serves it, and the room ---

const tell = (text) => Object.assign(element("state"), { textContent: text, hidden: !text });

function goLive() {
  element("viewer").hidden = true;
  element("follow-row").hidden = false;
  element("frame-only-row").hidden = !data.hasRoom;
  element("frame-only").addEventListener("change", () => showLatest());
  tell("Waiting for the first frame.");
  follow("newest");
  if (data.hasRoom) follow("room");
}

// The room, with image and words of the newest frame, or the frame alone; only these where nothing but it has arrived.
function showLatest(arrived) {
  const { newest, room } = latest;
  if (!room || element("frame-only").checked) {
    if (arrived !== "room" && newest) show(newest);
    return;
  }
  if (arrived !== "newest" || scene !== room) show(room);
  if (newest) showBeside({ image: newest.image, note: `${newest.note}\n${room.note}` });
}

async function follow(name) {
  const box = element("follow");
  for (let number = 0; ;) {
    while (!box.checked) await new Promise((done) => box.addEventListener("change", done, { once: true }));
    try {
      const answer = await fetch(`${name}?after=${number}`);
      if (!answer.ok) throw new Error(answer.statusText); // another program has the port now
      if (answer.status === 200 && box.checked) {
        const received = await answer.json();
        number = received.number;
        latest[name] = await decodeScene(received.scene);
        showLatest(name);
      }
      if (scene) tell("");
    } catch {
      tell("No answer: the program that completes the frames has ended, or cannot be reached.");
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
}

// --- start ---

function complain(text) {
  element("save").hidden = true;
  element("message").hidden = false;
  element("message").textContent = text;
  element("canvas").hidden = true;
  element("captions").hidden = true;
}

function connect() {
  data.scenes.forEach((entry) => element("scene").append(make("option", { textContent: entry.name })));
  element("scenes").hidden = data.scenes.length < 2;
  const step = (by) => showScene((element("scene").selectedIndex + by + data.scenes.length) % data.scenes.length);
  element("scene").addEventListener("change", () => showScene(element("scene").selectedIndex));
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  buildLegend("classes", data.classes, settings.classes);
  buildAllAndNone("classes", settings.classes, buildPaletteChoice());
  buildLegend("errors", data.errors, settings.errors);
  buildLegend("parts", data.parts, settings.parts);
  buildColorChoice();
  element("outside").addEventListener("change", () => {
    settings.outside = element("outside").checked;
    repaint();
  });
  element("path").addEventListener("change", () => {
    settings.path = element("path").checked;
    repaint();
  });
  element("cut").addEventListener("input", () => {
    settings.cut = Number(element("cut").value);
    repaint();
  });
  for (const [id, move] of [["camera-side", "cameraSide"], ["eye-level", "eyeLevel"], ["from-above", "fromAbove"]]) {
    element(id).addEventListener("click", () => {
      camera[move]();
      redraw();
    });
  }
  steer(element("canvas"), () => camera, {
    onChange: redraw,
    onPoint: (left, top) => {
      element("readout").textContent = describeVoxel(left, top) || "No voxel there.";
    },
  });
  element("save").addEventListener("click", savePicture);
  new ResizeObserver(() => scene && arrange()).observe(element("panes"));
  element("canvas").addEventListener("webglcontextlost", (event) => event.preventDefault());
  element("canvas").addEventListener("webglcontextrestored", () => {
    renderer.prepare();
    repaint();
  });
}

async function start() {
  connect();
  if (typeof DecompressionStream === "undefined") {
    complain("This browser is too old to unpack the scenes. Use Firefox 113, Chrome 80, Safari 16.4 or later.");
    document.body.dataset.state = "ready";
    return;
  }
  try {
    renderer = new Renderer(element("canvas"));
  } catch (error) {
    complain("The 3D view needs WebGL2, which this browser does not have or has switched off. Allow hardware "
      + "acceleration in its settings, or open the page in another browser.");
  }
  if (data.live) goLive();
  else await showScene(0);
  document.body.dataset.state = "ready";
}

start();
