// The models that the page offers, each a student and its teacher, by their addresses from the page.

export const MODELS = [
  {
    name: "Shapes, 16 x 16",
    student: "web/models/shapes/student.safetensors",
    teacher: "web/models/shapes/teacher.safetensors",
  },
];
