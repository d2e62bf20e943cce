// Prepares the preset `emoji`: captioned pictures, and a pipeline without weights whose tokenizer knows the captions.
//
//     npm install && node prepare.mjs --out emoji
//
// The pictures are Microsoft's Fluent Emoji (MIT) without skin tones; the captions are Unicode's names and the short names
// of emoji-datasource (MIT). Writes OUT/pictures/train and OUT/pictures/test with a metadata.jsonl each, and OUT/pipeline in
// diffusers' layout. Held-out pictures are those of the training set with captions that it does not have.

import { existsSync, realpathSync } from 'node:fs';
import { copyFile, mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const require = createRequire(import.meta.url);

/** Tokens of a caption, with the one before and the one after. */
const TOKENS = 16;
/** Size of the vocabulary. */
const VOCABULARY = 2048;
/** One of this many captions of several words, which are not the first of their picture and no flag's, is held out. */
const HELD_OUT = 10;

/** Lower-case words with single spaces; no digits, which only tell variants apart. */
function caption(name) {
  const words = name.toLowerCase().normalize('NFD').replaceAll(/\p{Mark}/gu, '');
  return words.replaceAll(/[^a-z]+/g, ' ').trim();
}

/** The captions of every emoji that has a picture: its name first. A caption belongs to one emoji. */
function captions(emoji, pictures) {
  const found = [];
  for (const { name, short_names: shortNames, unified, non_qualified: plain } of emoji) {
    const picture = [unified, plain].map((code) => code?.toLowerCase()).find((code) => pictures.has(code));
    const names = [name, ...shortNames.filter((short) => !/\d/.test(short))].map(caption);
    if (picture) found.push({ picture, names });
  }
  found.sort((a, b) => (a.picture < b.picture ? -1 : 1));
  // A name goes before a short name of another emoji.
  const owner = new Map();
  for (const rank of [0, 1, 2, 3]) {
    for (const { picture, names } of found) {
      if (names[rank] && !owner.has(names[rank])) owner.set(names[rank], picture);
    }
  }
  const own = found.map(({ picture, names }) => ({
    picture,
    names: [...new Set(names)].filter((name) => owner.get(name) === picture),
  }));
  return own.filter(({ names }) => names.length > 0);
}

/** The symbols that stand for bytes in CLIP's vocabulary: printable characters for themselves, others from U+0100 on. */
function byteSymbols() {
  const printable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const bytes = [...Array(256).keys()];
  const others = bytes.filter((byte) => !printable(byte));
  const symbols = [...bytes.filter(printable), ...others.map((_, place) => 256 + place)];
  return symbols.map((code) => String.fromCodePoint(code));
}

/** The merges of a byte-pair encoding (arXiv 1508.07909) of words: at each step the most frequent pair. */
function merges(texts, count) {
  const counts = new Map();
  for (const text of texts) {
    for (const word of text.split(' ')) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const words = [...counts].map(([word, times]) => {
    const symbols = [...word];
    symbols.push(`${symbols.pop()}</w>`);
    return { symbols, times };
  });
  const found = [];
  while (found.length < count) {
    const pairs = new Map();
    for (const { symbols, times } of words) {
      for (let place = 1; place < symbols.length; place += 1) {
        const pair = `${symbols[place - 1]} ${symbols[place]}`;
        pairs.set(pair, (pairs.get(pair) ?? 0) + times);
      }
    }
    if (pairs.size === 0) break;
    // The first in the alphabet of the most frequent.
    const [best] = [...pairs].reduce((a, b) => (b[1] > a[1] || (b[1] === a[1] && b[0] < a[0]) ? b : a));
    found.push(best);
    const [first, second] = best.split(' ');
    for (const word of words) {
      const merged = [];
      for (const symbol of word.symbols) {
        if (merged.at(-1) === first && symbol === second) merged[merged.length - 1] = first + second;
        else merged.push(symbol);
      }
      word.symbols = merged;
    }
  }
  return found;
}

const BEGIN = '<|startoftext|>';
const END = '<|endoftext|>';

/** The files of the pipeline by name. */
function pipeline(texts) {
  const bytes = byteSymbols();
  const alphabet = [...bytes, ...bytes.map((symbol) => `${symbol}</w>`)];
  const pairs = merges(texts, VOCABULARY - alphabet.length - 2);
  const tokens = [...alphabet, ...pairs.map((pair) => pair.replace(' ', '')), BEGIN, END];
  const channels = 192;
  const json = {
    'model_index.json': {
      _class_name: 'StableDiffusionPipeline',
      scheduler: ['diffusers', 'FlowMatchEulerDiscreteScheduler'],
      text_encoder: ['transformers', 'CLIPTextModel'],
      tokenizer: ['transformers', 'CLIPTokenizer'],
      unet: ['diffusers', 'UNet2DConditionModel'],
    },
    'scheduler/scheduler_config.json': { _class_name: 'FlowMatchEulerDiscreteScheduler', shift: 25 },
    'text_encoder/config.json': {
      architectures: ['CLIPTextModel'],
      model_type: 'clip_text_model',
      vocab_size: tokens.length,
      hidden_size: channels,
      intermediate_size: 2 * channels,
      num_hidden_layers: 3,
      num_attention_heads: 4,
      max_position_embeddings: TOKENS,
      hidden_act: 'quick_gelu',
      bos_token_id: tokens.length - 2,
      eos_token_id: tokens.length - 1,
      pad_token_id: tokens.length - 1,
    },
    'tokenizer/tokenizer_config.json': {
      tokenizer_class: 'CLIPTokenizer',
      model_max_length: TOKENS,
      bos_token: BEGIN,
      eos_token: END,
      unk_token: END,
      pad_token: END,
      do_lower_case: true,
    },
    'tokenizer/vocab.json': Object.fromEntries(tokens.map((token, id) => [token, id])),
    // Patches of 2x2 pixels are this program's; without them it is diffusers'.
    'unet/config.json': {
      _class_name: 'UNet2DConditionModel',
      sample_size: 64,
      patch_size: 2,
      in_channels: 3,
      out_channels: 3,
      block_out_channels: [48, 96, 192],
      down_block_types: ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
      up_block_types: ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
      layers_per_block: 1,
      attention_head_dim: [2, 3, 6],
      cross_attention_dim: channels,
      norm_num_groups: 12,
      use_linear_projection: true,
    },
  };
  const files = new Map(Object.entries(json).map(([name, value]) => [name, `${JSON.stringify(value, null, 2)}\n`]));
  files.set('tokenizer/merges.txt', `#version: 0.2\n${pairs.join('\n')}\n`);
  return files;
}

async function write(file, text) {
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, text);
}

async function main() {
  const { values } = parseArgs({ options: { out: { type: 'string' } } });
  if (!values.out) throw new Error('--out: expected a folder');
  const assets = join(dirname(require.resolve('@lobehub/fluent-emoji-3d/package.json')), 'assets');
  const pictures = new Set((await readdir(assets)).map((file) => file.replace(/\.webp$/, '')));
  const emoji = JSON.parse(await readFile(require.resolve('emoji-datasource/emoji.json'), 'utf8'));
  const lines = { train: [], test: [] };
  const words = [];
  let others = 0;
  for (const { picture, names } of captions(emoji, pictures)) {
    for (const [number, text] of names.entries()) {
      const isOther = number > 0 && / /.test(text) && !/^flag /.test(text);
      if (isOther) others += 1;
      const split = isOther && others % HELD_OUT === 0 ? 'test' : 'train';
      if (split === 'train') words.push(text);
      // Codes of countries are in the vocabulary, but no captions.
      if (/^(flag )?[a-z]{2}$/.test(text) && number > 0) continue;
      const file = `${picture}_${number}.webp`;
      await mkdir(join(values.out, 'pictures', split), { recursive: true });
      await copyFile(join(assets, `${picture}.webp`), join(values.out, 'pictures', split, file));
      lines[split].push({ file_name: file, text });
    }
  }
  for (const [split, of] of Object.entries(lines)) {
    const text = of.map((line) => `${JSON.stringify(line)}\n`).join('');
    await write(join(values.out, 'pictures', split, 'metadata.jsonl'), text);
    console.log(`${split}: ${of.length} captions`);
  }
  for (const [name, text] of pipeline(words)) await write(join(values.out, 'pipeline', name), text);
}

const program = process.argv[1];
if (program && existsSync(program) && realpathSync(program) === fileURLToPath(import.meta.url)) {
  main().catch((error) => {
    console.error(`prepare.mjs: ${error.message}`);
    process.exitCode = 1;
  });
}
