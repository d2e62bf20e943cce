// 2x2 average pooling.

struct Pool {
    // Of y.
    height: u32,
    width: u32,
    // Blocks of four channels.
    blocks: u32,
    // Blocks of y in all images together.
    count: u32,
}

@group(0) @binding(0) var<uniform> size: Pool;
@group(0) @binding(1) var<storage, read> x: array<real4>;
@group(0) @binding(2) var<storage, read_write> y: array<real4>;

@compute @workgroup_size(64)
fn pool(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let i = invocation.x + invocation.y * workgroups.x * 64u;
    if i >= size.count {
        return;
    }
    let block = i % size.blocks;
    let column = i / size.blocks % size.width;
    // Rows of all images; each has twice as many in x.
    let row = i / size.blocks / size.width;
    let corner = (2u * row * 2u * size.width + 2u * column) * size.blocks + block;
    let below = corner + 2u * size.width * size.blocks;
    let sum = vec4<f32>(x[corner]) + vec4<f32>(x[corner + size.blocks])
        + vec4<f32>(x[below]) + vec4<f32>(x[below + size.blocks]);
    y[i] = real4(0.25 * sum);
}
