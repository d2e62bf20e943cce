// The models of the demo page. URLs are relative to the page.

/**
 * @typedef {object} Entry
 * @property {string} name - in the list of models
 * @property {string} title - of the page
 * @property {string} legend - of the choice of a class
 * @property {string | Blob} student
 * @property {string | Blob | null} teacher
 * @property {string} credits - of the training images, as HTML of this file
 */

/** @returns {Entry} */
const pair = (folder, name, title, legend, credits = "") => ({
  name,
  title,
  legend,
  credits,
  student: `web/models/${folder}/student.safetensors`,
  teacher: `web/models/${folder}/teacher.safetensors`,
});

export const MODELS = [
  pair("shapes", "Creatures, 32 x 32", "A creature for every name", "Kind"),
  pair("mnist", "Digits, 28 x 28", "A digit for every name", "Digit"),
];

/** A file of the visitor. @returns {Entry} */
export const own = (file) => ({ name: file.name, title: "A picture for every name", legend: "Class", credits: "", student: file, teacher: null });

/** First names, for the gallery and for "another name". */
export const NAMES = (
  "Ada Alan Grace Linus Mei Kofi Priya Mateo Yuki Amara Omar Ingrid Tariq Chloé Diego Anouk Hiro Zola Leila Emil Noor " +
  "Sven Aiko Luca Maya Ravi Elif Jonas Nia Pablo Iris Otto Rosa Felix Sana Hugo Uma Milo Vera Igor Lola Karim Edda " +
  "Theo Wangari Ines Bo Marta Axel Dalia Ewa Farid Greta Jun Kira Lars Mina Nils Olga Paul Quinn Rhea Sami Tess"
).split(" ");
