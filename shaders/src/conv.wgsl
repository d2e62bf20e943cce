// y = conv(x) + bias + residual: 3x3 with zero padding, or 1x1.
//
// An implicit matrix product: left rows are pixels of all images, found through the tap, right columns are output
// channels, and the sum runs over taps and blocks of four input channels. x may be two maps, read as if their
// channels were concatenated, and may be upsampled by 2 while it is read.
//
// `tiled` stages both sides in workgroup memory; an invocation keeps PIXELS x BLOCKS blocks in registers. `direct`
// does without: for adapters that run on a CPU, whose workgroup memory is no faster than any other.

struct Conv {
    // Of x, before it is upsampled.
    in_height: u32,
    in_width: u32,
    out_height: u32,
    out_width: u32,
    // Blocks of four channels.
    first_blocks: u32,
    second_blocks: u32,
    out_blocks: u32,
    // 1 or 3.
    kernel: u32,
    // 1 or 2.
    stride: u32,
    // 1 to upsample x, 0 not to.
    upsample: u32,
    // Where the bias begins, and from one image's to the next, in blocks.
    bias_start: u32,
    bias_pitch: u32,
    // 0: none. 1: a map like y. 2: a map of half its size.
    residual: u32,
    // Of all images together.
    pixels: u32,
}

@group(0) @binding(0) var<uniform> conv: Conv;
@group(0) @binding(1) var<storage, read> first: array<real4>;
@group(0) @binding(2) var<storage, read> second: array<real4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<real4>;
@group(0) @binding(5) var<storage, read_write> y: array<real4>;
// Bindings 6 and 7, the weight, are declared by its kind; `weight(i)` is its i-th block of four output channels,
// in the order [tap, input channel, output block], and `scaled` takes the scale of a block into account.

const OUTSIDE: u32 = 0xffffffffu;

// The pixel of x that a tap reads for an output pixel.
fn source(pixel: u32, tap: u32) -> u32 {
    if pixel >= conv.pixels {
        return OUTSIDE;
    }
    let image_pixels = conv.out_height * conv.out_width;
    let image = pixel / image_pixels;
    let place = pixel % image_pixels;
    // Below zero wraps to far outside.
    let border = conv.kernel / 2u;
    let row = place / conv.out_width * conv.stride + tap / conv.kernel - border;
    let column = place % conv.out_width * conv.stride + tap % conv.kernel - border;
    if row >= conv.in_height << conv.upsample || column >= conv.in_width << conv.upsample {
        return OUTSIDE;
    }
    return (image * conv.in_height + (row >> conv.upsample)) * conv.in_width + (column >> conv.upsample);
}

// Block `block` of a pixel of x.
fn input(pixel: u32, block: u32) -> real4 {
    if block < conv.first_blocks {
        return first[pixel * conv.first_blocks + block];
    }
    return second[pixel * conv.second_blocks + block - conv.first_blocks];
}

fn store(pixel: u32, block: u32, sum: vec4<f32>) {
    let image_pixels = conv.out_height * conv.out_width;
    let image = pixel / image_pixels;
    var value = scaled(sum, block) + bias[conv.bias_start + image * conv.bias_pitch + block];
    if conv.residual == 1u {
        value += vec4<f32>(residual[pixel * conv.out_blocks + block]);
    } else if conv.residual == 2u {
        let place = pixel % image_pixels;
        let row = image * (conv.out_height / 2u) + place / conv.out_width / 2u;
        let column = place % conv.out_width / 2u;
        value += vec4<f32>(residual[(row * (conv.out_width / 2u) + column) * conv.out_blocks + block]);
    }
    y[pixel * conv.out_blocks + block] = real4(value);
}

const SIDE: u32 = 8u;
const INVOCATIONS: u32 = SIDE * SIDE;
const TILE_PIXELS: u32 = SIDE * PIXELS;
const TILE_BLOCKS: u32 = SIDE * BLOCKS;
// Input blocks staged at a time.
const DEPTH: u32 = 4u;
const LOADS_X: u32 = TILE_PIXELS * DEPTH / INVOCATIONS;
const LOADS_WEIGHT: u32 = 4u * DEPTH * TILE_BLOCKS / INVOCATIONS;

// [DEPTH, TILE_PIXELS]
var<workgroup> tile_x: array<real4, TILE_PIXELS * DEPTH>;
// [4 * DEPTH, TILE_BLOCKS]
var<workgroup> tile_weight: array<real4, 4u * DEPTH * TILE_BLOCKS>;

@compute @workgroup_size(SIDE, SIDE)
fn tiled(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_pixel = workgroup.x * TILE_PIXELS;
    let first_block = workgroup.y * TILE_BLOCKS;
    let in_blocks = conv.first_blocks + conv.second_blocks;
    var sums: array<vec4<f32>, PIXELS * BLOCKS>;

    for (var tap = 0u; tap < conv.kernel * conv.kernel; tap++) {
        var sources: array<u32, LOADS_X>;
        for (var i = 0u; i < LOADS_X; i++) {
            sources[i] = source(first_pixel + (index + i * INVOCATIONS) / DEPTH, tap);
        }
        for (var depth = 0u; depth < in_blocks; depth += DEPTH) {
            for (var i = 0u; i < LOADS_X; i++) {
                let place = index + i * INVOCATIONS;
                let block = depth + place % DEPTH;
                var value = real4();
                if sources[i] != OUTSIDE && block < in_blocks {
                    value = input(sources[i], block);
                }
                tile_x[place % DEPTH * TILE_PIXELS + place / DEPTH] = value;
            }
            for (var i = 0u; i < LOADS_WEIGHT; i++) {
                let place = index + i * INVOCATIONS;
                let channel = 4u * depth + place / TILE_BLOCKS;
                let block = first_block + place % TILE_BLOCKS;
                var value = real4();
                if channel < 4u * in_blocks && block < conv.out_blocks {
                    value = weight((tap * 4u * in_blocks + channel) * conv.out_blocks + block);
                }
                tile_weight[place] = value;
            }
            workgroupBarrier();
            // Products of one stage are summed in `real`, stages in f32.
            var stage: array<real4, PIXELS * BLOCKS>;
            for (var d = 0u; d < DEPTH; d++) {
                var columns: array<real4, 4u * BLOCKS>;
                for (var i = 0u; i < 4u; i++) {
                    for (var b = 0u; b < BLOCKS; b++) {
                        columns[i * BLOCKS + b] = tile_weight[(4u * d + i) * TILE_BLOCKS + b * SIDE + local.x];
                    }
                }
                for (var p = 0u; p < PIXELS; p++) {
                    let x = tile_x[d * TILE_PIXELS + p * SIDE + local.y];
                    for (var b = 0u; b < BLOCKS; b++) {
                        stage[p * BLOCKS + b] += x.x * columns[b] + x.y * columns[BLOCKS + b]
                            + x.z * columns[2u * BLOCKS + b] + x.w * columns[3u * BLOCKS + b];
                    }
                }
            }
            for (var i = 0u; i < PIXELS * BLOCKS; i++) {
                sums[i] += vec4<f32>(stage[i]);
            }
            workgroupBarrier();
        }
    }
    for (var p = 0u; p < PIXELS; p++) {
        for (var b = 0u; b < BLOCKS; b++) {
            let pixel = first_pixel + p * SIDE + local.y;
            let block = first_block + b * SIDE + local.x;
            if pixel < conv.pixels && block < conv.out_blocks {
                store(pixel, block, sums[p * BLOCKS + b]);
            }
        }
    }
}

@compute @workgroup_size(1, 32)
fn direct(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let first_pixel = invocation.y * PIXELS;
    let first_block = invocation.x * BLOCKS;
    if first_pixel >= conv.pixels {
        return;
    }
    let in_blocks = conv.first_blocks + conv.second_blocks;
    var sums: array<vec4<f32>, PIXELS * BLOCKS>;
    for (var tap = 0u; tap < conv.kernel * conv.kernel; tap++) {
        var sources: array<u32, PIXELS>;
        for (var p = 0u; p < PIXELS; p++) {
            sources[p] = source(first_pixel + p, tap);
        }
        for (var d = 0u; d < in_blocks; d++) {
            var columns: array<real4, 4u * BLOCKS>;
            let row = (tap * in_blocks + d) * 4u;
            for (var i = 0u; i < 4u; i++) {
                for (var b = 0u; b < BLOCKS; b++) {
                    columns[i * BLOCKS + b] = weight((row + i) * conv.out_blocks + first_block + b);
                }
            }
            for (var p = 0u; p < PIXELS; p++) {
                if sources[p] != OUTSIDE {
                    let x = input(sources[p], d);
                    for (var b = 0u; b < BLOCKS; b++) {
                        sums[p * BLOCKS + b] += vec4<f32>(x.x * columns[b] + x.y * columns[BLOCKS + b]
                            + x.z * columns[2u * BLOCKS + b] + x.w * columns[3u * BLOCKS + b]);
                    }
                }
            }
        }
    }
    for (var p = 0u; p < PIXELS; p++) {
        for (var b = 0u; b < BLOCKS; b++) {
            if first_pixel + p < conv.pixels && first_block + b < conv.out_blocks {
                store(first_pixel + p, first_block + b, sums[p * BLOCKS + b]);
            }
        }
    }
}
