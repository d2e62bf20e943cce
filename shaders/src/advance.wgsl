// The step of a solver. The new image and the new memory are linear combinations of the old image, the network's output and
// the old memory; fresh noise is added to the image. x, the input of the network, becomes the image times a factor.

struct Step {
    // Factors in the new image.
    image_image: f32,
    image_output: f32,
    image_memory: f32,
    // Factors in the new memory.
    memory_image: f32,
    memory_output: f32,
    memory_memory: f32,
    fresh: f32,
    input_scale: f32,
    // Pixels of all images together.
    count: u32,
}

// Invocations of a workgroup.
const LINE: u32 = 64u;

@group(0) @binding(0) var<uniform> advance_by: Step;
@group(0) @binding(1) var<storage, read> output: array<real4>;
@group(0) @binding(2) var<storage, read> noise: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> image: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> memory: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> x: array<real4>;

// A value that is not used may be anything, and is not multiplied by 0.
fn term(factor: f32, value: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(), factor * value, vec4<bool>(factor != 0.0));
}

@compute @workgroup_size(LINE)
fn advance(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let i = invocation.x + invocation.y * workgroups.x * LINE;
    if i >= advance_by.count {
        return;
    }
    let step = advance_by;
    let old = image[i];
    let f = vec4<f32>(output[i]);
    let kept = memory[i];
    let value = term(step.image_image, old) + term(step.image_output, f) + term(step.image_memory, kept)
        + term(step.fresh, noise[i]);
    memory[i] = term(step.memory_image, old) + term(step.memory_output, f) + term(step.memory_memory, kept);
    image[i] = value;
    x[i] = real4(step.input_scale * value);
}
