// y = activation(x) * factor + term, value by value.

struct Pointwise {
    // Positions of one image.
    positions: u32,
    // Blocks of four channels of a position of y.
    blocks: u32,
    // Blocks of a position of x, and the first one to read.
    x_pitch: u32,
    x_first: u32,
    // 0: none. 1: SiLU. 2: GELU. 3: GELU by the hyperbolic tangent. 4: x sigmoid(1.702 x). 5: ReLU. 6: hyperbolic tangent.
    activation: u32,
    // 0: no factor. 1: a map. 2: one number per channel.
    factor: u32,
    // Blocks of a position of the map, or the distance from one image's numbers to the next; and the first block.
    factor_pitch: u32,
    factor_first: u32,
    // 0: no term. 1: a map. 2: a map that all images share.
    term: u32,
    // The first block of the shared map.
    term_first: u32,
    // Blocks of y in all images together.
    count: u32,
}

// Invocations of a workgroup.
const LINE: u32 = 64u;

@group(0) @binding(0) var<uniform> pointwise: Pointwise;
@group(0) @binding(1) var<storage, read> x: array<real4>;
@group(0) @binding(2) var<storage, read> factor_map: array<real4>;
@group(0) @binding(3) var<storage, read> factor_vector: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> term_map: array<real4>;
@group(0) @binding(5) var<storage, read> term_shared: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> y: array<real4>;

// The error function (Abramowitz and Stegun, 7.1.26).
fn erf(z: vec4<f32>) -> vec4<f32> {
    let size = abs(z);
    let t = 1.0 / (1.0 + 0.3275911 * size);
    let p = ((((1.0614054 * t - 1.453152) * t + 1.4214138) * t - 0.28449672) * t + 0.2548296) * t;
    return sign(z) * (1.0 - p * exp(-size * size));
}

// The hyperbolic tangent, for arguments of any size.
fn bounded_tanh(z: vec4<f32>) -> vec4<f32> {
    return tanh(clamp(z, vec4<f32>(-15.0), vec4<f32>(15.0)));
}

fn activated(z: vec4<f32>) -> vec4<f32> {
    switch pointwise.activation {
        case 1u: { return z / (1.0 + exp(-z)); }
        case 2u: { return 0.5 * z * (1.0 + erf(z * 0.70710678)); }
        case 3u: { return 0.5 * z * (1.0 + bounded_tanh(0.7978846 * (z + 0.044715 * z * z * z))); }
        case 4u: { return z / (1.0 + exp(-1.702 * z)); }
        case 5u: { return max(z, vec4<f32>()); }
        case 6u: { return bounded_tanh(z); }
        default: { return z; }
    }
}

@compute @workgroup_size(LINE)
fn apply(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let i = invocation.x + invocation.y * workgroups.x * LINE;
    if i >= pointwise.count {
        return;
    }
    let block = i % pointwise.blocks;
    // The position, counted over all images.
    let position = i / pointwise.blocks;
    var value = activated(vec4<f32>(x[position * pointwise.x_pitch + pointwise.x_first + block]));
    if pointwise.factor == 1u {
        value *= vec4<f32>(factor_map[position * pointwise.factor_pitch + pointwise.factor_first + block]);
    } else if pointwise.factor == 2u {
        let image = position / pointwise.positions;
        value *= factor_vector[image * pointwise.factor_pitch + pointwise.factor_first + block];
    }
    if pointwise.term == 1u {
        value += vec4<f32>(term_map[i]);
    } else if pointwise.term == 2u {
        value += term_shared[pointwise.term_first + i % (pointwise.positions * pointwise.blocks)];
    }
    y[i] = real4(value);
}
