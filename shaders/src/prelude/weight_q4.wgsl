// Weights in four bits: bits n are n - 8 times the scale, which 32 input channels share. An element of `weights` holds two
// blocks, the even one in the low bits; an element of `scales` holds those of a block in half precision.
@group(0) @binding(6) var<storage, read> weights: array<u32>;
@group(0) @binding(7) var<storage, read> scales: array<vec2<u32>>;

fn weight(row: u32, block: u32) -> real4 {
    let i = row * conv.out_blocks + block;
    let bits = vec4<u32>(weights[i / 2u] >> (i % 2u * 16u)) >> vec4<u32>(0u, 4u, 8u, 12u);
    let packed = scales[row / 32u * conv.out_blocks + block];
    let scale = vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y));
    return real4((vec4<f32>(bits & vec4<u32>(15u)) - 8.0) * scale);
}

fn scaled(sum: vec4<f32>, block: u32) -> vec4<f32> {
    return sum;
}
