// The models that the page offers, each a student and its teacher, by their addresses from the page, and what a visitor
// should know of them.

const pair = (name, folder, note = "") => ({
  name,
  note,
  student: `web/models/${folder}/student.safetensors`,
  teacher: `web/models/${folder}/teacher.safetensors`,
});

export const MODELS = [
  pair("Shapes, 16 x 16", "shapes"),
  pair("Digits, 28 x 28", "mnist"),
  pair("CIFAR-10, 32 x 32", "cifar10", "A small network that had an hour of a CPU: sketches, not photographs."),
];
