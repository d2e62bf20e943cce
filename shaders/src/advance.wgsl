// image = keep (image + step velocity) + fresh noise. x, the input of the network, becomes a copy of the image.

struct Step {
    step: f32,
    keep: f32,
    fresh: f32,
    // Pixels of all images together.
    count: u32,
}

// Invocations of a workgroup.
const LINE: u32 = 64u;

@group(0) @binding(0) var<uniform> advance_by: Step;
@group(0) @binding(1) var<storage, read> velocity: array<real4>;
@group(0) @binding(2) var<storage, read> noise: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> image: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> x: array<real4>;

@compute @workgroup_size(LINE)
fn advance(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let i = invocation.x + invocation.y * workgroups.x * LINE;
    if i >= advance_by.count {
        return;
    }
    var value = vec4<f32>();
    if advance_by.keep != 0.0 {
        value = advance_by.keep * (image[i] + advance_by.step * vec4<f32>(velocity[i]));
    }
    if advance_by.fresh != 0.0 {
        value += advance_by.fresh * noise[i];
    }
    image[i] = value;
    x[i] = real4(value);
}
