// Reads with zarrita in Node: node read.mjs FOLDER. Fails unless every value is what was recorded, bit for bit, and
// prints how many values it compared. FOLDER holds data.zarr, expected.json and values.bin (see ../conftest.py).

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

import FileSystemStore from "@zarrita/storage/fs";
import * as zarr from "zarrita";

const folder = process.argv[2];
const expected = JSON.parse(readFileSync(join(folder, "expected.json"), "utf8"));
const source = readFileSync(join(folder, "values.bin"));

/** The lengths of the rows of an array: those of its clock. */
function lengthsOf(name) {
  const clock = Object.values(expected.clocks).find(({ arrays }) => arrays.includes(name));
  return clock ? clock.lengths : expected.lengths;
}

/** The bytes that row `row` of the array `name` must hold, from step `first` on, up to `last`. */
function wanted(name, row, first = 0, last = lengthsOf(name)[row]) {
  const { rows, step_shape: shape, dtype } = expected.arrays[name];
  const bits = dtype === "bool" ? 8 : Number(/[0-9]+$/.exec(dtype)[0]);
  const size = (product(shape) * bits) / 8;
  return source.subarray(rows[row] + first * size, rows[row] + last * size);
}

const product = (lengths) => lengths.reduce((result, length) => result * length, 1);

/** The bytes of what zarrita read, in C order: it hands out transposed chunks as they are, with strides. */
function bytes({ data, shape, stride }) {
  let values = data;
  if (shape.some((length, axis) => length > 1 && stride[axis] !== product(shape.slice(axis + 1)))) {
    values = new data.constructor(product(shape));
    let to = 0;
    const copy = (axis, from) => {
      const [length, step] = [shape[axis], stride[axis]];
      if (axis === shape.length - 1) {
        for (let n = 0; n < length; n += 1) values[to + n] = data[from + n * step];
        to += length;
      } else {
        for (let n = 0; n < length; n += 1) copy(axis + 1, from + n * step);
      }
    };
    copy(0, 0);
  }
  return Buffer.from(values.buffer, values.byteOffset, product(shape) * values.BYTES_PER_ELEMENT);
}

function same(actual, name, row, first, last) {
  const left = bytes(actual);
  const right = wanted(name, row, first, last);
  const what = `${name}[${row}, ${first}:${last}]`;
  assert.equal(left.length, right.length, `${what}: ${left.length} bytes, expected ${right.length}`);
  assert.ok(left.equals(right), `${what}: differs from what was recorded`);
  return product(actual.shape);
}

async function open(root, name) {
  const array = await zarr.open(root.resolve(name), { kind: "array" });
  assert.deepEqual(array.dimensionNames, expected.dimensions[name], name);
  return array;
}

async function checkIndex(root) {
  const lengths = await zarr.get(await open(root, "episode_length"));
  assert.ok(lengths.data instanceof Int32Array);
  assert.deepEqual([...lengths.data], expected.lengths, "episode_length");
  for (const [clock, about] of Object.entries(expected.clocks)) {
    const { data } = await zarr.get(await open(root, `${clock}.episode_length`));
    assert.deepEqual([...data], about.lengths, `${clock}.episode_length`);
  }
  const { data: texts } = await zarr.get(await open(root, "episode_metadata"));
  assert.equal(texts.length, expected.metadata.length);
  for (const [row, metadata] of expected.metadata.entries()) {
    if (metadata === null) {
      assert.equal(texts[row], "", `episode_metadata[${row}]`);
      continue;
    }
    const found = JSON.parse(texts[row] || "{}");
    for (const [key, value] of Object.entries(metadata)) {
      assert.deepEqual(found[key], value, `episode_metadata[${row}]: ${key}`);
    }
  }
  return lengths.data.length + texts.length;
}

async function checkArray(root, name) {
  const { rows, step_shape: stepShape, dtype } = expected.arrays[name];
  const array = await open(root, name);
  const steps = Math.max(...lengthsOf(name));
  assert.equal(array.dtype, dtype, name);
  assert.deepEqual(array.shape, [expected.lengths.length, steps, ...stepShape], name);
  const rest = stepShape.map(() => null);
  let count = 0;
  for (const row of Object.keys(rows).map(Number)) {
    const length = lengthsOf(name)[row];
    count += same(await zarr.get(array, [row, zarr.slice(0, length), ...rest]), name, row, 0, length);
    const first = (row * 7) % length;
    const last = Math.min(first + 3, length);
    count += same(await zarr.get(array, [row, zarr.slice(first, last), ...rest]), name, row, first, last);
  }
  return count;
}

async function checkText(root, name) {
  const array = await open(root, name);
  assert.equal(array.dtype, "string", name);
  let count = 0;
  for (const [row, words] of Object.entries(expected.texts[name])) {
    const { data } = await zarr.get(array, [Number(row), zarr.slice(0, words.length)]);
    assert.deepEqual([...data], words, `${name}[${row}]`);
    count += words.length;
  }
  return count;
}

// Consolidated, as one reads from far away, and array by array.
const files = new FileSystemStore(join(folder, "data.zarr"));
const store = await zarr.withConsolidatedMetadata(files, { format: "v3" });
const names = store.contents().filter(({ kind }) => kind === "array").map(({ path }) => path.slice(1));
assert.deepEqual(names.sort(), Object.keys(expected.dimensions).sort());
let count = 0;
for (const root of [zarr.root(store), zarr.root(files)]) {
  const group = await zarr.open(root, { kind: "group" });
  assert.equal(group.attrs.salus.format, 1);
  count += await checkIndex(root);
}
const root = zarr.root(store);
for (const name of Object.keys(expected.arrays)) count += await checkArray(root, name);
for (const name of Object.keys(expected.texts)) count += await checkText(root, name);
console.log(count);
