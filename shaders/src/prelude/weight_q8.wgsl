// Weights as signed bytes: a byte n is the weight n / 127 times the scale of its output channel.
@group(0) @binding(6) var<storage, read> weights: array<u32>;
@group(0) @binding(7) var<storage, read> scales: array<vec4<f32>>;

fn weight(row: u32, block: u32) -> real4 {
    return real4(unpack4x8snorm(weights[row * conv.out_blocks + block]));
}

fn scaled(sum: vec4<f32>, block: u32) -> vec4<f32> {
    return sum * scales[block];
}
