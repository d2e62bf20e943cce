// Draws the images of the preset `avatars`: faces in twelve styles, one folder for each style.
//
//     npm install && node draw.mjs [--count 24000] [--held-out 6000] [--size 64] --out avatars
//
// An image is a function of its style, split and number, so any number of images can be added later. Writes
// OUT/train/STYLE/NUMBER.png, OUT/test/STYLE/NUMBER.png and OUT/LICENSES.md.

import { existsSync, realpathSync } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import * as collection from '@dicebear/collection';
import { createAvatar } from '@dicebear/core';
import { Resvg } from '@resvg/resvg-js';

/** Styles under CC0 or CC BY 4.0. */
const STYLES = [
  'adventurer',
  'bigEars',
  'bigSmile',
  'dylan',
  'funEmoji',
  'lorelei',
  'micah',
  'miniavs',
  'personas',
  'pixelArt',
  'thumbs',
  'toonHead',
];

/** Options beside the seed. The backgrounds are light, so that outlines stay visible. */
const OPTIONS = { backgroundColor: ['b6e3f4', 'c0aede', 'd1d4f9', 'ffd5dc', 'ffdfbf', 'c9e4ca'] };

const FREE = /^(CC0 1\.0|CC BY 4\.0)$/;

/** The image of a seed as a PNG of `size` x `size` pixels. */
export function draw(style, seed, size) {
  const svg = createAvatar(collection[style], { ...OPTIONS, seed }).toString();
  return new Resvg(svg, { fitTo: { mode: 'width', value: size }, font: { loadSystemFonts: false } }).render().asPng();
}

/** Title, creator, source and licence of every style, as Markdown. */
export function licences() {
  const lines = STYLES.map((style) => {
    const { title, creator, source, license } = collection[style].meta;
    if (!FREE.test(license.name)) throw new Error(`${style}: expected CC0 or CC BY 4.0, found ${license.name}`);
    return `- ${style}: [${title}](${source}) by ${creator}, [${license.name}](${license.url})\n`;
  });
  return `Drawn with DiceBear (MIT) from these styles:\n\n${lines.join('')}`;
}

/** Refuses a folder with other styles, since every folder in it is a class. */
async function refuseOthers(folder) {
  const found = await readdir(folder, { withFileTypes: true }).catch((error) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  const other = found.find((entry) => entry.isDirectory() && !STYLES.includes(entry.name));
  if (other) throw new Error(`--out: expected a folder with no other pictures, found ${folder}/${other.name}`);
}

async function drawSplit(folder, split, count, size) {
  for (const [index, style] of STYLES.entries()) {
    const target = `${folder}/${split}/${style}`;
    await mkdir(target, { recursive: true });
    // The first styles get one image more if the count is no multiple of their number.
    const images = Math.ceil((count - index) / STYLES.length);
    for (let number = 0; number < images; number += 1) {
      const png = draw(style, `${split}-${number}`, size);
      await writeFile(`${target}/${String(number).padStart(6, '0')}.png`, png);
    }
    console.log(`${target}: ${images} images`);
  }
}

function whole(name, value) {
  if (!/^[0-9]+$/.test(value)) throw new Error(`--${name}: expected a whole number, found ${value}`);
  return Number(value);
}

async function main() {
  const { values } = parseArgs({
    options: {
      count: { type: 'string', default: '24000' },
      'held-out': { type: 'string', default: '6000' },
      size: { type: 'string', default: '64' },
      out: { type: 'string' },
    },
  });
  if (!values.out) throw new Error('--out: expected a folder');
  const size = whole('size', values.size);
  const text = licences();
  for (const split of ['train', 'test']) await refuseOthers(`${values.out}/${split}`);
  await drawSplit(values.out, 'train', whole('count', values.count), size);
  await drawSplit(values.out, 'test', whole('held-out', values['held-out']), size);
  await writeFile(`${values.out}/LICENSES.md`, text);
}

const program = process.argv[1];
if (program && existsSync(program) && realpathSync(program) === fileURLToPath(import.meta.url)) {
  main().catch((error) => {
    console.error(`draw.mjs: ${error.message}`);
    process.exitCode = 1;
  });
}
