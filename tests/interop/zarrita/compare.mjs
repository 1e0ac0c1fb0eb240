// What is the same in Node and in a browser: reads a dataset with zarrita, and compares it with what was recorded.

import * as zarr from "zarrita";

/** Equal all the way down: of JSON, whatever the order of the keys. */
function isEqual(left, right) {
  if (left === null || right === null || typeof left !== "object" || typeof right !== "object") return left === right;
  const keys = Object.keys(left);
  return keys.length === Object.keys(right).length && keys.every((key) => key in right && isEqual(left[key], right[key]));
}

function areEqual(left, right) {
  for (let at = 0; at < left.length; at += 1) if (left[at] !== right[at]) return false;
  return true;
}

function same(actual, wanted, what) {
  if (!isEqual(actual, wanted)) throw new Error(`${what}: ${JSON.stringify(actual)}, expected ${JSON.stringify(wanted)}`);
}

/**
 * Throws unless every value is what was recorded, bit for bit.
 * @param files - A store of zarrita, of the dataset.
 * @param expected - The content of expected.json (see ../conftest.py).
 * @param source - The bytes of values.bin.
 * @returns How many values were compared.
 */
export async function compare(files, expected, source) {
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
    return new Uint8Array(values.buffer, values.byteOffset, product(shape) * values.BYTES_PER_ELEMENT);
  }

  function sameValues(actual, name, row, first, last) {
    const left = bytes(actual);
    const right = wanted(name, row, first, last);
    const what = `${name}[${row}, ${first}:${last}]`;
    if (left.length !== right.length) throw new Error(`${what}: ${left.length} bytes, expected ${right.length}`);
    if (!areEqual(left, right)) throw new Error(`${what}: differs from what was recorded`);
    return product(actual.shape);
  }

  async function open(root, name) {
    const array = await zarr.open(root.resolve(name), { kind: "array" });
    same(array.dimensionNames, expected.dimensions[name], `${name}: dimensions`);
    return array;
  }

  async function checkIndex(root) {
    const lengths = await zarr.get(await open(root, "episode_length"));
    same(lengths.data instanceof Int32Array, true, "episode_length: int32");
    same([...lengths.data], expected.lengths, "episode_length");
    for (const [clock, about] of Object.entries(expected.clocks)) {
      const { data } = await zarr.get(await open(root, `${clock}.episode_length`));
      same([...data], about.lengths, `${clock}.episode_length`);
    }
    const { data: texts } = await zarr.get(await open(root, "episode_metadata"));
    same(texts.length, expected.metadata.length, "episode_metadata");
    for (const [row, metadata] of expected.metadata.entries()) {
      if (metadata === null) {
        same(texts[row], "", `episode_metadata[${row}]`);
        continue;
      }
      const found = JSON.parse(texts[row] || "{}");
      for (const [key, value] of Object.entries(metadata)) {
        same(found[key], value, `episode_metadata[${row}]: ${key}`);
      }
    }
    return lengths.data.length + texts.length;
  }

  async function checkArray(root, name) {
    const { rows, step_shape: stepShape, dtype } = expected.arrays[name];
    const array = await open(root, name);
    const steps = Math.max(...lengthsOf(name));
    same(array.dtype, dtype, `${name}: dtype`);
    same(array.shape, [expected.lengths.length, steps, ...stepShape], `${name}: shape`);
    const rest = stepShape.map(() => null);
    let count = 0;
    for (const row of Object.keys(rows).map(Number)) {
      const length = lengthsOf(name)[row];
      count += sameValues(await zarr.get(array, [row, zarr.slice(0, length), ...rest]), name, row, 0, length);
      const first = (row * 7) % length;
      const last = Math.min(first + 3, length);
      count += sameValues(await zarr.get(array, [row, zarr.slice(first, last), ...rest]), name, row, first, last);
    }
    return count;
  }

  async function checkText(root, name) {
    const array = await open(root, name);
    same(array.dtype, "string", `${name}: dtype`);
    let count = 0;
    for (const [row, words] of Object.entries(expected.texts[name])) {
      const { data } = await zarr.get(array, [Number(row), zarr.slice(0, words.length)]);
      same([...data], words, `${name}[${row}]`);
      count += words.length;
    }
    return count;
  }

  // Consolidated, as one reads from far away, and array by array.
  const store = await zarr.withConsolidatedMetadata(files, { format: "v3" });
  const names = store.contents().filter(({ kind }) => kind === "array").map(({ path }) => path.slice(1));
  same(names.sort(), Object.keys(expected.dimensions).sort(), "arrays");
  let count = 0;
  for (const root of [zarr.root(store), zarr.root(files)]) {
    const group = await zarr.open(root, { kind: "group" });
    same(group.attrs.salus.format, 1, "format");
    count += await checkIndex(root);
  }
  const root = zarr.root(store);
  for (const name of Object.keys(expected.arrays)) count += await checkArray(root, name);
  for (const name of Object.keys(expected.texts)) count += await checkText(root, name);
  return count;
}
