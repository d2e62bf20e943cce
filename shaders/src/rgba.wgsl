// Draws one image, with values in [-1, 1], over the whole render target.

struct Picture {
    height: u32,
    width: u32,
    // 1 (grey) or 3 (RGB).
    channels: u32,
    // Side of the patches of pixels, which are stored as channels.
    side: u32,
    // Blocks of a patch.
    blocks: u32,
}

@group(0) @binding(0) var<uniform> picture: Picture;
@group(0) @binding(1) var<storage, read> image: array<vec4<f32>>;

@vertex
fn corner(@builtin(vertex_index) index: u32) -> @builtin(position) vec4<f32> {
    // One triangle that covers the whole target.
    return vec4<f32>(f32(index & 1u) * 4.0 - 1.0, f32(index >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment
fn colour(@builtin(position) position: vec4<f32>) -> @location(0) vec4<f32> {
    let column = min(u32(position.x), picture.width - 1u);
    let row = min(u32(position.y), picture.height - 1u);
    let side = picture.side;
    let cell = row / side * (picture.width / side) + column / side;
    let pixel = row % side * side + column % side;
    var value: vec4<f32>;
    for (var channel = 0u; channel < picture.channels; channel++) {
        let place = channel * side * side + pixel;
        value[channel] = clamp(image[cell * picture.blocks + place / 4u][place % 4u] * 0.5 + 0.5, 0.0, 1.0);
    }
    if picture.channels == 1u {
        return vec4<f32>(value.xxx, 1.0);
    }
    return vec4<f32>(value.xyz, 1.0);
}
