// The models of the demo page: for each, a name, a note, and the URLs of student and teacher, relative to the page.

const pair = (name, folder, note = "") => ({
  name,
  note,
  student: `web/models/${folder}/student.safetensors`,
  teacher: `web/models/${folder}/teacher.safetensors`,
});

export const MODELS = [
  pair("Shapes, 16 x 16", "shapes"),
  pair("Digits, 28 x 28", "mnist"),
  pair("CIFAR-10, 32 x 32", "cifar10", "A small network, trained for an hour on a CPU: sketches, not photographs."),
];
