// Weights in single precision.
@group(0) @binding(6) var<storage, read> weights: array<vec4<f32>>;

fn weight(row: u32, block: u32) -> real4 {
    return real4(weights[row * conv.out_blocks + block]);
}

fn scaled(sum: vec4<f32>, block: u32) -> vec4<f32> {
    return sum;
}
