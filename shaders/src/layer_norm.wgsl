// y = gain * (x - mean) / deviation + offset, over the channels of each head at each position.
//
// A workgroup handles one head at one position. Without the mean, the deviation is the root mean square.

struct LayerNorm {
    // Positions of one image.
    positions: u32,
    heads: u32,
    // Blocks of four channels of a head.
    blocks: u32,
    // Positions of gain and offset in blocks, and the distance from one image's to the next; 0 if all images share them.
    gain_start: u32,
    gain_pitch: u32,
    offset_start: u32,
    offset_pitch: u32,
    // 1: the mean is subtracted. 0: it is not.
    centred: u32,
    // Heads of all positions of all images together.
    count: u32,
    // Added to the variance.
    epsilon: f32,
}

// Invocations of a workgroup.
const ROW: u32 = 64u;

@group(0) @binding(0) var<uniform> norm: LayerNorm;
@group(0) @binding(1) var<storage, read> x: array<real4>;
@group(0) @binding(2) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> offset: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<real4>;

var<workgroup> partial: array<f32, ROW>;

// The sum over the invocations of a workgroup; all of them get the same sum.
fn total(index: u32, value: f32) -> f32 {
    partial[index] = value;
    for (var reach = ROW / 2u; reach > 0u; reach /= 2u) {
        workgroupBarrier();
        if index < reach {
            partial[index] += partial[index + reach];
        }
    }
    workgroupBarrier();
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(ROW)
fn layer_norm(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let row = workgroup.x + workgroup.y * workgroups.x;
    if row >= norm.count {
        return;
    }
    let start = row * norm.blocks;
    let channels = 4.0 * f32(norm.blocks);
    let ones = vec4<f32>(1.0);
    var mean = 0.0;
    if norm.centred == 1u {
        var sum = vec4<f32>();
        for (var block = index; block < norm.blocks; block += ROW) {
            sum += vec4<f32>(x[start + block]);
        }
        mean = total(index, dot(sum, ones)) / channels;
    }
    var squares = vec4<f32>();
    for (var block = index; block < norm.blocks; block += ROW) {
        let distance = vec4<f32>(x[start + block]) - mean;
        squares += distance * distance;
    }
    let inverse = inverseSqrt(total(index, dot(squares, ones)) / channels + norm.epsilon);
    let image = row / norm.heads / norm.positions;
    let first = row % norm.heads * norm.blocks;
    let gains = norm.gain_start + image * norm.gain_pitch + first;
    let offsets = norm.offset_start + image * norm.offset_pitch + first;
    for (var block = index; block < norm.blocks; block += ROW) {
        let value = (vec4<f32>(x[start + block]) - mean) * inverse;
        y[start + block] = real4(value * gain[gains + block] + offset[offsets + block]);
    }
}
