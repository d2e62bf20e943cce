// y = act(gain * (x - mean) / deviation + offset), with mean and deviation over each group of channels.
//
// `moments` computes each channel's mean and its mean squared distance from that mean. `normalize` combines those of a
// group (Chan, Golub and LeVeque, 1979), which never subtracts two large sums, and applies the result. A workgroup
// handles 32 channels, which are eight adjacent blocks, and eight pixels at a time.

struct GroupNorm {
    // Pixels of one image.
    pixels: u32,
    // Blocks of four channels of a pixel.
    first_blocks: u32,
    second_blocks: u32,
    // Positions of gain and offset, and distance from one image's to the next, in channels.
    gain_start: u32,
    offset_start: u32,
    pitch: u32,
    // 1: SiLU follows. 0: nothing follows.
    silu: u32,
    // Channels of a group.
    of_group: u32,
    // Added to the variance.
    epsilon: f32,
}

const BLOCKS: u32 = 8u;
const ROWS: u32 = 8u;

@group(0) @binding(0) var<uniform> norm: GroupNorm;
@group(0) @binding(1) var<storage, read> first: array<real4>;
@group(0) @binding(2) var<storage, read> second: array<real4>;
// For each image and block of channels: the mean, then the mean squared distance from it.
@group(0) @binding(3) var<storage, read_write> statistics: array<vec4<f32>>;

fn input(image: u32, pixel: u32, block: u32) -> vec4<f32> {
    let place = image * norm.pixels + pixel;
    if block >= norm.first_blocks + norm.second_blocks {
        return vec4<f32>();
    }
    if block < norm.first_blocks {
        return vec4<f32>(first[place * norm.first_blocks + block]);
    }
    return vec4<f32>(second[place * norm.second_blocks + block - norm.first_blocks]);
}

var<workgroup> partial: array<vec4<f32>, BLOCKS * ROWS>;

// The sum over the rows of a workgroup; all of them get the same sum.
fn total(local: vec3<u32>, value: vec4<f32>) -> vec4<f32> {
    partial[local.y * BLOCKS + local.x] = value;
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var row = 0u; row < ROWS; row++) {
        sum += partial[row * BLOCKS + local.x];
    }
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(BLOCKS, ROWS)
fn moments(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let block = workgroup.x * BLOCKS + local.x;
    let image = workgroup.y;
    let scale = 1.0 / f32(norm.pixels);
    var sum = vec4<f32>();
    for (var pixel = local.y; pixel < norm.pixels; pixel += ROWS) {
        sum += input(image, pixel, block);
    }
    let mean = total(local, sum) * scale;
    sum = vec4<f32>();
    for (var pixel = local.y; pixel < norm.pixels; pixel += ROWS) {
        let difference = input(image, pixel, block) - mean;
        sum += difference * difference;
    }
    let square = total(local, sum) * scale;
    if local.y == 0u && block < norm.first_blocks + norm.second_blocks {
        let place = 2u * (image * (norm.first_blocks + norm.second_blocks) + block);
        statistics[place] = mean;
        statistics[place + 1u] = square;
    }
}

@group(0) @binding(4) var<storage, read> gain: array<f32>;
@group(0) @binding(5) var<storage, read> offset: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<real4>;

// Pixels that a workgroup of `normalize` writes.
const RUN: u32 = 64u;

var<workgroup> slopes: array<f32, 4u * BLOCKS>;
var<workgroup> shifts: array<f32, 4u * BLOCKS>;

@compute @workgroup_size(BLOCKS, ROWS)
fn normalize(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let blocks = norm.first_blocks + norm.second_blocks;
    let image = workgroup.z;
    let channel = workgroup.x * 4u * BLOCKS + index;
    if index < 4u * BLOCKS && channel < 4u * blocks {
        let of_group = norm.of_group;
        let begin = channel / of_group * of_group;
        var mean = 0.0;
        for (var c = begin; c < begin + of_group; c++) {
            mean += statistics[2u * (image * blocks + c / 4u)][c % 4u];
        }
        mean /= f32(of_group);
        var variance = 0.0;
        for (var c = begin; c < begin + of_group; c++) {
            let place = 2u * (image * blocks + c / 4u);
            let difference = statistics[place][c % 4u] - mean;
            variance += statistics[place + 1u][c % 4u] + difference * difference;
        }
        variance /= f32(of_group);
        let slope = gain[norm.gain_start + image * norm.pitch + channel] * inverseSqrt(variance + norm.epsilon);
        slopes[index] = slope;
        shifts[index] = offset[norm.offset_start + image * norm.pitch + channel] - mean * slope;
    }
    workgroupBarrier();
    let c = 4u * local.x;
    let slope = vec4<f32>(slopes[c], slopes[c + 1u], slopes[c + 2u], slopes[c + 3u]);
    let shift = vec4<f32>(shifts[c], shifts[c + 1u], shifts[c + 2u], shifts[c + 3u]);
    let block = workgroup.x * BLOCKS + local.x;
    if block >= blocks {
        return;
    }
    let end = min(norm.pixels, (workgroup.y + 1u) * RUN);
    for (var pixel = workgroup.y * RUN + local.y; pixel < end; pixel += ROWS) {
        var z = input(image, pixel, block) * slope + shift;
        if norm.silu == 1u {
            z = z / (1.0 + exp(-z));
        }
        y[(image * norm.pixels + pixel) * blocks + block] = real4(z);
    }
}
