// Voxel volumes: decoding, what is drawn in which view and color, and the faces that one can see.
// Flat order is (X, height, Y), as in the arrays of the project: index = (x * H + h) * Y + y.

const EMPTY = 0;
const IGNORE = 255;
const IN_MASK = 1;
const HIT = 2;
const DRAWN = 1 << 24; // above the 24 bits of a color, so that black is drawn too
const FACE_BYTES = 12;
const SURFACE_COLOR = 0xa9adb5; // of the input surface where no image colors it

const packColor = ([red, green, blue]) => (red << 16) | (green << 8) | blue;

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The volumes of a scene; `truth` and `hitColors` are null where there is none, and `known` for a frame: the labels of a
// room, in which one sees faces from known voxels only.
async function decodeScene(entry) {
  const bytes = await unpack(entry.volumes);
  const count = entry.shape[0] * entry.shape[1] * entry.shape[2];
  let offset = 0;
  const take = (length) => bytes.subarray(offset, (offset += length));
  const prediction = take(count);
  const flags = take(count);
  const truth = entry.hasTruth ? take(count) : null;
  let hitColors = null;
  if (entry.hasHitColors) {
    hitColors = new Uint32Array(count);
    for (let voxel = 0; voxel < count; voxel++) {
      if (flags[voxel] & HIT) hitColors[voxel] = packColor(take(3));
    }
  }
  return { ...entry, count, prediction, flags, truth, hitColors, known: entry.path ? prediction : null };
}

const isOccupied = (label) => label !== EMPTY && label !== IGNORE;

// How prediction and truth of a voxel compare: an index into the kinds of errors, or -1 for nothing to draw.
function errorKind(predicted, truth) {
  if (truth === IGNORE || !(isOccupied(predicted) || isOccupied(truth))) return -1;
  if (!isOccupied(predicted)) return 2;
  if (!isOccupied(truth)) return 3;
  return predicted === truth ? 0 : 1;
}

// Color and DRAWN of each voxel in a view, 0 where nothing is drawn.
function paintVoxels(scene, view, settings, palette) {
  const paint = new Uint32Array(scene.count);
  const { prediction, truth, flags } = scene;
  const [, height, depth] = scene.shape;
  const labels = view === "truth" ? truth : prediction;
  const layer = height * depth;
  const cut = Math.min(settings.cut, height) * depth;
  for (let voxel = 0; voxel < scene.count; voxel++) {
    if (voxel % layer >= cut) continue;
    const isHit = (flags[voxel] & HIT) !== 0;
    if (view === "input") {
      if (isHit) paint[voxel] = DRAWN | (scene.hitColors ? scene.hitColors[voxel] : SURFACE_COLOR);
      continue;
    }
    if (!(flags[voxel] & IN_MASK) && !settings.outside) continue;
    if (scene.hasHit && !settings.parts[isHit ? 0 : 1]) continue;
    if (view === "errors") {
      const kind = errorKind(prediction[voxel], truth[voxel]);
      const label = kind >= 0 && isOccupied(truth[voxel]) ? truth[voxel] : prediction[voxel];
      if (kind >= 0 && settings.errors[kind] && settings.classes[label]) paint[voxel] = DRAWN | palette.errors[kind];
    } else {
      const label = labels[voxel];
      if (!isOccupied(label) || !settings.classes[label]) continue;
      paint[voxel] = DRAWN | (settings.colorBy === "part" ? palette.parts[isHit ? 0 : 1] : palette.classes[label]);
    }
  }
  return paint;
}

// Voxels in the mask by class (predicted, true), by kind of error and by part, for the legends.
function countVoxels(scene, numClasses) {
  const counts = {
    predicted: new Array(numClasses).fill(0), truth: new Array(numClasses).fill(0), errors: [0, 0, 0, 0], parts: [0, 0],
  };
  for (let voxel = 0; voxel < scene.count; voxel++) {
    if (!(scene.flags[voxel] & IN_MASK)) continue;
    const predicted = scene.prediction[voxel];
    if (isOccupied(predicted)) {
      counts.predicted[predicted]++;
      counts.parts[scene.flags[voxel] & HIT ? 0 : 1]++;
    }
    if (!scene.truth) continue;
    const truth = scene.truth[voxel];
    if (isOccupied(truth)) counts.truth[truth]++;
    const kind = errorKind(predicted, truth);
    if (kind >= 0) counts.errors[kind]++;
  }
  return counts;
}

// The faces between drawn voxels and open space, 12 bytes each: x, height, y and face (2 * axis + side) in 16 bits; red,
// green, blue, and how many neighbors shade each of the four corners (2 bits a corner). With `known`, the labels of a
// room, those of the classes in `shell` have no faces towards unknown voxels and the outside of the grid.
function buildFaces(paint, shape, known, shell) {
  const size = shape.map((length) => length + 2); // a border spares the bounds checks
  const steps = [size[1] * size[2], size[2], 1];
  const blocks = new Uint8Array(size[0] * size[1] * size[2]); // 1: drawn, 2: unknown
  if (known) blocks.fill(2);
  const drawn = new Uint32Array(paint.length); // voxels, of which the first `count` are set
  let count = 0;
  for (let x = 0, voxel = 0; x < shape[0]; x++) {
    for (let h = 0; h < shape[1]; h++) {
      for (let y = 0, cell = (x + 1) * steps[0] + (h + 1) * steps[1] + 1; y < shape[2]; y++, cell++, voxel++) {
        if (paint[voxel]) {
          blocks[cell] = 1;
          drawn[count++] = voxel;
        } else if (known && known[voxel] !== IGNORE) blocks[cell] = 0;
      }
    }
  }
  let places = new Uint16Array(6 << 14);
  let colors = new Uint8Array(places.buffer);
  let length = 0; // in bytes
  for (let i = 0; i < count; i++) {
    const voxel = drawn[i];
    const y = voxel % shape[2];
    const h = Math.floor(voxel / shape[2]) % shape[1];
    const x = Math.floor(voxel / shape[2] / shape[1]);
    const cell = (x + 1) * steps[0] + (h + 1) * steps[1] + y + 1;
    if (length + 6 * 12 > colors.length) { // no room for six faces more
      const larger = new Uint8Array(2 * colors.length);
      larger.set(colors);
      [colors, places] = [larger, new Uint16Array(larger.buffer)];
    }
    const isShell = known && shell[known[voxel]];
    for (let face = 0; face < 6; face++) {
      const axis = face >> 1;
      const front = cell + (face & 1 ? steps[axis] : -steps[axis]);
      if (blocks[front] === 1 || (blocks[front] && isShell)) continue;
      const across = steps[(axis + 1) % 3];
      const along = steps[(axis + 2) % 3];
      let shade = 0;
      for (let corner = 0; corner < 4; corner++) {
        const a = corner & 1 ? across : -across;
        const b = corner & 2 ? along : -along;
        const first = blocks[front + a] & 1;
        const second = blocks[front + b] & 1;
        shade |= (first && second ? 3 : first + second + (blocks[front + a + b] & 1)) << (2 * corner);
      }
      const place = length >> 1;
      places[place] = x;
      places[place + 1] = h;
      places[place + 2] = y;
      places[place + 3] = face;
      colors[length + 8] = paint[voxel] >> 16;
      colors[length + 9] = paint[voxel] >> 8;
      colors[length + 10] = paint[voxel];
      colors[length + 11] = shade;
      length += FACE_BYTES;
    }
  }
  return colors.subarray(0, length);
}

// Index of the first drawn voxel along a ray, or -1; `origin` and `direction` in voxels along (X, height, Y). With `known`
// and `shell` as for the faces, through which the ray must enter.
function firstVoxel(paint, shape, origin, direction, known, shell) {
  let enter = 0;
  let leave = Infinity;
  for (let axis = 0; axis < 3; axis++) {
    const inverse = 1 / (direction[axis] || 1e-9);
    const [a, b] = [-origin[axis] * inverse, (shape[axis] - origin[axis]) * inverse];
    enter = Math.max(enter, Math.min(a, b));
    leave = Math.min(leave, Math.max(a, b));
  }
  if (enter >= leave) return -1;
  const cell = shape.map((length, axis) =>
    Math.min(length - 1, Math.max(0, Math.floor(origin[axis] + (enter + 1e-6) * direction[axis]))));
  const step = direction.map((part) => (part > 0 ? 1 : -1));
  const crossing = cell.map((index, axis) => (index + (step[axis] > 0 ? 1 : 0) - origin[axis]) / (direction[axis] || 1e-9));
  for (let isOpen = !known; ;) {
    const voxel = (cell[0] * shape[1] + cell[1]) * shape[2] + cell[2];
    if (paint[voxel] && (isOpen || !shell[known[voxel]])) return voxel;
    isOpen = !known || (!paint[voxel] && known[voxel] !== IGNORE);
    const axis = crossing[0] < crossing[1] ? (crossing[0] < crossing[2] ? 0 : 2) : crossing[1] < crossing[2] ? 1 : 2;
    cell[axis] += step[axis];
    if (cell[axis] < 0 || cell[axis] >= shape[axis]) return -1;
    crossing[axis] += Math.abs(1 / (direction[axis] || 1e-9));
  }
}
