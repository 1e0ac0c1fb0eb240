// Reads with zarrita in Node: node read.mjs FOLDER. Fails unless every value is what was recorded, bit for bit, and
// prints how many values it compared. FOLDER holds data.zarr, expected.json and values.bin (see ../conftest.py).

import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

import FileSystemStore from "@zarrita/storage/fs";

import { compare } from "./compare.mjs";

const folder = process.argv[2];
const expected = JSON.parse(readFileSync(join(folder, "expected.json"), "utf8"));
const source = readFileSync(join(folder, "values.bin"));
console.log(await compare(new FileSystemStore(join(folder, "data.zarr")), expected, source));
