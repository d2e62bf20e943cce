// Weights in half precision. They are expanded without the feature `shader-f16`.
@group(0) @binding(6) var<storage, read> weights: array<vec2<u32>>;

fn weight(row: u32, block: u32) -> real4 {
    let packed = weights[row * conv.out_blocks + block];
    return real4(vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y)));
}

fn scaled(sum: vec4<f32>, block: u32) -> vec4<f32> {
    return sum;
}
