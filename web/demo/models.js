// The models of the demo page. URLs are relative to the page.

/**
 * @typedef {object} Entry
 * @property {string} name - in the list of models
 * @property {string} title - of the page
 * @property {string} legend - of the choice of a class
 * @property {string | Blob} student
 * @property {string | Blob | null} teacher
 * @property {string} [first] - the class that is chosen at first
 * @property {string} credits - of the training images, as HTML of this file
 * @property {string[]} [samples] - words for the gallery of a model with text
 */

/** @returns {Entry} */
const pair = (folder, name, title, legend, credits = "", first = undefined) => ({
  name,
  title,
  legend,
  first,
  credits,
  student: `web/models/${folder}/student.safetensors`,
  teacher: `web/models/${folder}/teacher.safetensors`,
});

/** A model that reads words, without a teacher. @returns {Entry} */
const words = (folder, name, title, credits, samples) => ({
  name,
  title,
  legend: "",
  credits,
  student: `web/models/${folder}/student.safetensors`,
  teacher: null,
  samples: samples.split(","),
});

// The styles that avatars are drawn in, with their creators, by licence.
const FACES =
  'Trained on faces drawn with <a href="https://www.dicebear.com">DiceBear</a> (MIT) in the styles ' +
  '<a href="https://www.figma.com/community/file/1184595184137881796">Adventurer</a> by Lisa Wischofsky, ' +
  '<a href="https://www.figma.com/community/file/986078800058673824">Face Generator</a> by The Visual Team, ' +
  '<a href="https://www.figma.com/community/file/881358461963645496">Custom Avatar</a> by Ashley Seo, ' +
  '<a href="https://www.figma.com/community/file/1356575240759683500">Dylan! The Avatar Generator</a> by Natalia Spivak, ' +
  '<a href="https://www.figma.com/community/file/968125295144990435">Fun Emoji Set</a> by Davis Uche, ' +
  '<a href="https://www.figma.com/community/file/829741575478342595">Avatar Illustration System</a> by Micah Lanier, ' +
  '<a href="https://www.figma.com/community/file/923211396597067458">Miniavs - Free Avatar Creator</a> by Webpixels, ' +
  '<a href="https://personas.draftbit.com/">Personas by Draftbit</a> by Draftbit - draftbit.com, ' +
  '<a href="https://www.figma.com/community/file/1589627891082866389">ToonHead</a> by Johan Melin' +
  ' (<a href="https://creativecommons.org/licenses/by/4.0/">CC BY 4.0</a>); ' +
  '<a href="https://www.figma.com/community/file/1198749693280469639">Lorelei</a> by Lisa Wischofsky, ' +
  '<a href="https://www.figma.com/community/file/1198754108850888330">Pixel Art</a> by DiceBear, ' +
  '<a href="https://www.dicebear.com">Thumbs</a> by DiceBear' +
  ' (<a href="https://creativecommons.org/publicdomain/zero/1.0/">CC0 1.0</a>).';

export const MODELS = [
  pair("avatars", "Faces, 64 x 64", "A face for every name", "Style", FACES, "micah"),
  pair("shapes", "Creatures, 32 x 32", "A creature for every name", "Kind"),
  pair("mnist", "Digits, 28 x 28", "A digit for every name", "Digit",
    "Trained on MNIST by Yann LeCun, Corinna Cortes and Christopher Burges."),
  words("emoji", "Emoji from words, 64 x 64", "An emoji for your words",
    'Trained on <a href="https://github.com/microsoft/fluentui-emoji">Fluent Emoji</a> by Microsoft (MIT), with the names of ' +
      '<a href="https://github.com/iamcal/emoji-data">emoji-data</a> (MIT).',
    "red apple,grinning face,rocket,cat face,pizza,rainbow,heart with arrow,umbrella,soccer ball,brazil flag,crown,penguin," +
      "birthday cake,violin,cactus,ghost,sunflower,bicycle,dragon face,hot beverage,guitar,fox face,snowman,watermelon",
  ),
];

/** A file of the visitor. @returns {Entry} */
export const own = (file) => ({ name: file.name, title: "A picture for every name", legend: "Class", credits: "", student: file, teacher: null });

/** First names, for the gallery and for "another name". */
const NAMES = (
  "Ada Alan Grace Linus Mei Kofi Priya Mateo Yuki Amara Omar Ingrid Tariq Chloé Diego Anouk Hiro Zola Leila Emil Noor " +
  "Sven Aiko Luca Maya Ravi Elif Jonas Nia Pablo Iris Otto Rosa Felix Sana Hugo Uma Milo Vera Igor Lola Karim Edda " +
  "Theo Wangari Ines Bo Marta Axel Dalia Ewa Farid Greta Jun Kira Lars Mina Nils Olga Paul Quinn Rhea Sami Tess"
).split(" ");

/**
 * What the page says about a model: of names, whose seeds draw different pictures, or of words that a model with text reads.
 *
 * @typedef {object} Wording
 * @property {string} field - label of the text field
 * @property {string} lede
 * @property {string} another - the button for another picture
 * @property {string[]} gallery - heading and sentence of the gallery
 * @property {string[]} samples - the texts of the gallery; the first one is the text field's
 */

const PLACE = "in a single step, in this page: on your own GPU or CPU, without a server.";

/** @param {Entry} entry @param {boolean} readsText @returns {Wording} */
export const wording = (entry, readsText) =>
  readsText
    ? {
        field: "Words",
        lede: `Type words. A neural network draws what they say ${PLACE}`,
        another: "Other words",
        gallery: ["Words to try", "Choose a picture to enlarge it, then change its words."],
        samples: entry.samples ?? ["a red apple on a table", "a cat", "a house by the sea", "a bowl of fruit"],
      }
    : {
        field: "Name",
        lede: `Type a name. A neural network draws its picture ${PLACE}`,
        another: "Another name",
        gallery: ["The same name, the same picture", "In every browser and on every device. Choose a picture to enlarge it."],
        samples: NAMES,
      };
