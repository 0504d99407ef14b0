// A camera that orbits a point. Positions are in voxels along (X, height, -Y): X to the right, height up, and so
// right-handed, as WebGL has it; with Y instead of -Y left and right would change places.

const FIELD_OF_VIEW = 0.64; // radians over the smaller side of a pane

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const along = (point, direction, distance) => point.map((value, axis) => value + distance * direction[axis]);

class OrbitCamera {
  constructor({ shape, path }) {
    Object.assign(this, { shape, isRoom: Boolean(path), start: path?.[0] });
    this.cameraSide();
  }

  // From behind and above the camera that took the frame: it stands in front of the face Y = 0 and looks along Y. Of a
  // room, all of it, from higher up.
  cameraSide() {
    const [x, height, y] = this.shape;
    if (this.isRoom) this.place("cameraSide", [x / 2, 0.2 * height, -0.47 * y], 0, 0.9, 1.3 * Math.hypot(x, y));
    else this.place("cameraSide", [x / 2, 0.33 * height, -0.42 * y], 0, 0.585, 1.04 * Math.hypot(1.57 * height, 1.42 * y));
  }

  fromAbove() {
    const [x, height, y] = this.shape;
    this.place("fromAbove", [x / 2, 0.3 * height, -y / 2], 0, Math.PI / 2, 1.7 * Math.max(x, y));
  }

  eyeLevel() {
    const [x, height, y] = this.shape;
    this.place("eyeLevel", [x / 2, 0.42 * height, -0.55 * y], 0, 0.06, 1.25 * y);
  }

  place(named, target, azimuth, elevation, distance) {
    Object.assign(this, { named, target, azimuth, elevation, distance });
  }

  // The room has grown. A view that somebody has turned to stays; where the path starts tells how the grid has moved.
  grow({ shape, path }) {
    const [x, height, y] = path[0].map((place, axis) => place - this.start[axis]);
    Object.assign(this, { shape, start: path[0] });
    if (this.named) this[this.named]();
    else this.target = [this.target[0] + x, this.target[1] + height, this.target[2] - y];
  }

  // Pixels of a drag, in panes `size` pixels wide or high: the scene follows the pointer.
  orbit(right, down, size) {
    this.named = null;
    this.azimuth -= (right / size) * 4;
    this.elevation = Math.min(Math.PI / 2, Math.max(-0.5, this.elevation + (down / size) * 4));
  }

  pan(right, down, size) {
    this.named = null;
    const scale = (2 * this.distance * Math.tan(FIELD_OF_VIEW / 2)) / size;
    const basis = this.basis();
    this.target = along(along(this.target, basis.right, -right * scale), basis.up, down * scale);
  }

  zoom(factor) {
    this.named = null;
    const largest = Math.max(...this.shape);
    this.distance = Math.min(8 * largest, Math.max(0.1 * largest, this.distance / factor));
  }

  basis() {
    const [sine, cosine] = [Math.sin(this.azimuth), Math.cos(this.azimuth)];
    const [rise, reach] = [Math.sin(this.elevation), Math.cos(this.elevation)];
    const back = [sine * reach, rise, cosine * reach];
    const right = [cosine, 0, -sine];
    return { right, up: cross(back, right), back, eye: along(this.target, back, this.distance) };
  }

  // Tangents of half the opening angles of a pane.
  tangents(aspect) {
    const tangent = Math.tan(FIELD_OF_VIEW / 2);
    return aspect >= 1 ? [tangent * aspect, tangent] : [tangent, tangent / aspect];
  }

  // World to clip coordinates, column by column.
  matrix(aspect) {
    const { right, up, back, eye } = this.basis();
    const [wide, high] = this.tangents(aspect);
    const near = Math.max(0.2, 0.02 * this.distance);
    const far = this.distance + 6 * Math.max(...this.shape);
    const slope = -(far + near) / (far - near);
    const shift = (-2 * far * near) / (far - near);
    const columns = [];
    for (let axis = 0; axis < 4; axis++) {
      const of = (row) => (axis < 3 ? row[axis] : -dot(row, eye));
      columns.push(of(right) / wide, of(up) / high, slope * of(back) + (axis === 3 ? shift : 0), -of(back));
    }
    return new Float32Array(columns);
  }

  // The ray through a point of a pane (-1..1 to the right and up), in voxels along (X, height, Y).
  ray(pointRight, pointUp, aspect) {
    const { right, up, back, eye } = this.basis();
    const [wide, high] = this.tangents(aspect);
    const direction = along(along(back.map((value) => -value), right, pointRight * wide), up, pointUp * high);
    const flip = ([x, height, z]) => [x, height, -z];
    return { origin: flip(eye), direction: flip(direction) };
  }
}

// Mouse, touch and keys on the canvas. `onChange` after a move; `onPoint(x, y)` for a pointer that rests or taps.
function steer(canvas, camera, { onChange, onPoint }) {
  const pointers = new Map();
  let moved = 0;
  const span = () => {
    const [a, b] = [...pointers.values()];
    return { distance: Math.hypot(a.x - b.x, a.y - b.y), x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  };
  const size = () => Math.min(canvas.clientWidth, canvas.clientHeight) || 1;

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = pointers.size > 1 ? Infinity : 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) {
      onPoint(event.offsetX, event.offsetY);
      return;
    }
    const [right, down] = [event.clientX - before.x, event.clientY - before.y];
    moved += Math.hypot(right, down);
    if (pointers.size === 2) {
      const was = span();
      Object.assign(before, { x: event.clientX, y: event.clientY });
      const is = span();
      camera().zoom(is.distance / Math.max(was.distance, 1));
      camera().pan(is.x - was.x, is.y - was.y, size());
    } else {
      Object.assign(before, { x: event.clientX, y: event.clientY });
      if (event.shiftKey || event.buttons & 6) camera().pan(right, down, size());
      else camera().orbit(right, down, size());
    }
    onChange();
  });
  const release = (event) => {
    if (pointers.delete(event.pointerId) && event.type === "pointerup" && moved < 5) onPoint(event.offsetX, event.offsetY);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    camera().zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 120) / 800));
    onChange();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow) {
      const [right, down] = arrow.map((part) => part * 0.04 * size());
      if (event.shiftKey) camera().pan(right, down, size());
      else camera().orbit(right, down, size());
    } else if (event.key === "+" || event.key === "=") camera().zoom(1.1);
    else if (event.key === "-") camera().zoom(1 / 1.1);
    else if (event.key === "Home") camera().cameraSide();
    else return;
    event.preventDefault();
    onChange();
  });
}
