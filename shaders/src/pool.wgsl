// 2x2 average pooling.

struct Pool {
    // Height and width of y in pixels.
    height: u32,
    width: u32,
    // Blocks of four channels of a pixel.
    blocks: u32,
    // Blocks of y in all images together.
    count: u32,
}

// Invocations of a workgroup.
const LINE: u32 = 64u;

@group(0) @binding(0) var<uniform> size: Pool;
@group(0) @binding(1) var<storage, read> x: array<real4>;
@group(0) @binding(2) var<storage, read_write> y: array<real4>;

@compute @workgroup_size(LINE)
fn pool(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let i = invocation.x + invocation.y * workgroups.x * LINE;
    if i >= size.count {
        return;
    }
    let block = i % size.blocks;
    let column = i / size.blocks % size.width;
    // The row of y, counted over all images. x has twice as many rows.
    let row = i / size.blocks / size.width;
    let corner = (2u * row * 2u * size.width + 2u * column) * size.blocks + block;
    let below = corner + 2u * size.width * size.blocks;
    let sum = vec4<f32>(x[corner]) + vec4<f32>(x[corner + size.blocks])
        + vec4<f32>(x[below]) + vec4<f32>(x[below + size.blocks]);
    y[i] = real4(0.25 * sum);
}
