// Draws the faces of cubes with WebGL2: one instance a face, shaded by direction, corners and edges.

const FACE_VERTEX = `#version 300 es
layout(location = 0) in uvec4 place; // x, height, y, face
layout(location = 1) in uvec4 paint; // red, green, blue, shade of the corners
uniform mat4 camera;
uniform vec3 eye; // along X, height and Y, in voxels
out vec2 within;
flat out vec3 color;
flat out vec4 corners;
void main() {
  int axis = int(place.w) >> 1;
  within = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  vec3 position = vec3(place.xyz);
  position[axis] += float(place.w & 1u);
  position[(axis + 1) % 3] += within.x;
  position[(axis + 2) % 3] += within.y;
  float light = axis == 1 ? 1.0 : axis == 0 ? 0.76 : 0.87;
  color = vec3(paint.rgb) / 255.0 * light;
  corners = vec4(paint.w & 3u, (paint.w >> 2) & 3u, (paint.w >> 4) & 3u, (paint.w >> 6) & 3u);
  bool isFront = (eye[axis] - position[axis]) * (float(place.w & 1u) - 0.5) > 0.0;
  gl_Position = isFront ? camera * vec4(position.xy, -position.z, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
}`;

const FACE_FRAGMENT = `#version 300 es
precision highp float;
in vec2 within;
flat in vec3 color;
flat in vec4 corners;
out vec4 pixel;
void main() {
  float shade = mix(mix(corners.x, corners.y, within.x), mix(corners.z, corners.w, within.x), within.y);
  vec2 border = min(within, 1.0 - within);
  vec2 width = fwidth(within);
  vec2 near = 1.0 - smoothstep(vec2(0.03), 0.03 + width, border);
  float edge = max(near.x, near.y) * clamp(1.2 - 5.0 * max(width.x, width.y), 0.0, 1.0); // far cubes have no edges
  pixel = vec4(color * (1.0 - 0.13 * shade) * (1.0 - 0.16 * edge), 1.0);
}`;

const GROUND_VERTEX = `#version 300 es
uniform mat4 camera;
uniform vec2 extent; // of the grid along X and Y, in voxels
out vec2 position;
void main() {
  position = vec2(gl_VertexID & 1, gl_VertexID >> 1) * extent;
  gl_Position = camera * vec4(position.x, -0.02, -position.y, 1.0);
}`;

const GROUND_FRAGMENT = `#version 300 es
precision highp float;
in vec2 position;
uniform float meter; // in voxels
out vec4 pixel;
void main() {
  vec2 cell = position / meter;
  vec2 line = abs(fract(cell + 0.5) - 0.5) / fwidth(cell);
  pixel = vec4(vec3(mix(0.86, 0.94, smoothstep(0.4, 1.2, min(line.x, line.y)))), 1.0);
}`;

const AXES_VERTEX = `#version 300 es
uniform mat4 camera;
uniform vec3 extent; // of the grid along X, height and Y, in voxels
void main() { // a line along three edges: X before the camera, the others left of it, height at the far end
  int axis = gl_VertexID >> 1;
  vec3 position = vec3(-0.05, -0.05, axis == 1 ? extent.z : -0.05);
  position[axis] = float(gl_VertexID & 1) * extent[axis];
  gl_Position = camera * vec4(position.xy, -position.z, 1.0);
}`;

const AXES_FRAGMENT = `#version 300 es
precision highp float;
out vec4 pixel;
void main() {
  pixel = vec4(0.42, 0.45, 0.5, 1.0);
}`;

const LINE_VERTEX = `#version 300 es
layout(location = 0) in vec3 start; // along X, height and Y, in voxels
layout(location = 1) in vec3 end;
uniform mat4 camera;
uniform vec2 pixels; // of the pane
void main() { // a rectangle of LINE_WIDTH pixels along each line
  vec4 ends[2] = vec4[2](camera * vec4(start.xy, -start.z, 1.0), camera * vec4(end.xy, -end.z, 1.0));
  vec2 along = (ends[1].xy / ends[1].w - ends[0].xy / ends[0].w) * pixels;
  vec2 across = vec2(-along.y, along.x) / max(length(along), 0.001) * float(2 * (gl_VertexID & 1) - 1);
  gl_Position = ends[gl_VertexID >> 1];
  gl_Position.xy += across * 3.0 / pixels * gl_Position.w;
  if (ends[0].w <= 0.0 || ends[1].w <= 0.0) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;

const LINE_FRAGMENT = `#version 300 es
precision highp float;
out vec4 pixel;
void main() {
  pixel = vec4(0.78, 0.0, 0.47, 1.0);
}`;

function buildProgram(gl, vertexSource, fragmentSource) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertexSource], [gl.FRAGMENT_SHADER, fragmentSource]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

class Renderer {
  // Throws where the browser has no WebGL2.
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", { antialias: true, alpha: false });
    if (!this.gl) throw new Error("no WebGL2");
    this.prepare();
  }

  // Also after a lost context, with which everything on the device is gone.
  prepare() {
    this.faces = buildProgram(this.gl, FACE_VERTEX, FACE_FRAGMENT);
    this.ground = buildProgram(this.gl, GROUND_VERTEX, GROUND_FRAGMENT);
    this.axes = buildProgram(this.gl, AXES_VERTEX, AXES_FRAGMENT);
    this.lines = buildProgram(this.gl, LINE_VERTEX, LINE_FRAGMENT);
    this.meshes = new Map();
    this.path = { layout: this.gl.createVertexArray(), buffer: this.gl.createBuffer(), count: 0 };
    this.nothing = this.gl.createVertexArray();
    this.gl.enable(this.gl.DEPTH_TEST);
  }

  setFaces(view, bytes) {
    const gl = this.gl;
    if (!this.meshes.has(view)) {
      const mesh = { layout: gl.createVertexArray(), buffer: gl.createBuffer(), count: 0 };
      gl.bindVertexArray(mesh.layout);
      gl.bindBuffer(gl.ARRAY_BUFFER, mesh.buffer);
      for (const location of [0, 1]) {
        gl.enableVertexAttribArray(location);
        gl.vertexAttribIPointer(location, 4, location ? gl.UNSIGNED_BYTE : gl.UNSIGNED_SHORT, FACE_BYTES, 8 * location);
        gl.vertexAttribDivisor(location, 1);
      }
      this.meshes.set(view, mesh);
    }
    const mesh = this.meshes.get(view);
    gl.bindBuffer(gl.ARRAY_BUFFER, mesh.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, bytes, gl.STATIC_DRAW);
    mesh.count = bytes.length / FACE_BYTES;
  }

  // Lines between pairs of points in voxels along (X, height, Y).
  setLines(points) {
    const gl = this.gl;
    gl.bindVertexArray(this.path.layout);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.path.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(points.flat()), gl.STATIC_DRAW);
    for (const location of [0, 1]) {
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, 3, gl.FLOAT, false, 24, 12 * location);
      gl.vertexAttribDivisor(location, 1);
    }
    this.path.count = points.length / 2;
  }

  // Each pane: the view, and where it lies in fractions of the canvas from its top left corner.
  draw(panes, camera, { shape, voxelSize }) {
    const gl = this.gl;
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((length) => Math.max(1, Math.round(length * scale)));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(1, 1, 1, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    for (const pane of panes) {
      const box = [pane.left * width, (1 - pane.top - pane.height) * height, pane.width * width, pane.height * height].map(Math.round);
      gl.viewport(...box);
      gl.scissor(...box);
      const matrix = camera.matrix(box[2] / box[3]);
      const [right, up, back] = camera.basis().eye;
      if (up > 0) this.drawGround(matrix, shape, voxelSize);
      this.drawAxes(matrix, shape);
      this.drawLines(matrix, box);
      const mesh = this.meshes.get(pane.view);
      if (!mesh || !mesh.count) continue;
      gl.useProgram(this.faces);
      gl.uniformMatrix4fv(gl.getUniformLocation(this.faces, "camera"), false, matrix);
      gl.uniform3f(gl.getUniformLocation(this.faces, "eye"), right, up, -back);
      gl.bindVertexArray(mesh.layout);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, mesh.count);
    }
  }

  drawGround(matrix, shape, voxelSize) {
    const gl = this.gl;
    gl.useProgram(this.ground);
    gl.uniformMatrix4fv(gl.getUniformLocation(this.ground, "camera"), false, matrix);
    gl.uniform2f(gl.getUniformLocation(this.ground, "extent"), shape[0], shape[2]);
    gl.uniform1f(gl.getUniformLocation(this.ground, "meter"), 1 / voxelSize);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  drawLines(matrix, [, , width, height]) {
    const gl = this.gl;
    gl.useProgram(this.lines);
    gl.uniformMatrix4fv(gl.getUniformLocation(this.lines, "camera"), false, matrix);
    gl.uniform2f(gl.getUniformLocation(this.lines, "pixels"), width, height);
    gl.bindVertexArray(this.path.layout);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.path.count);
  }

  drawAxes(matrix, shape) {
    const gl = this.gl;
    gl.useProgram(this.axes);
    gl.uniformMatrix4fv(gl.getUniformLocation(this.axes, "camera"), false, matrix);
    gl.uniform3fv(gl.getUniformLocation(this.axes, "extent"), shape);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.LINES, 0, 6);
  }
}
