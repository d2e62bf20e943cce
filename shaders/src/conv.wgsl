// y = conv(x) + bias + residual: 3x3 with zero padding around or at the end alone, or 1x1.
//
// An implicit matrix product: the rows of the left matrix are pixels of all images, shifted by the tap; the columns of
// the right matrix are output channels; the sum runs over taps and blocks of four input channels. x may be two maps,
// read as if their channels were concatenated, and may be upsampled by 2 while it is read.
//
// `tiled` stages both matrices in workgroup memory; an invocation keeps PIXELS x BLOCKS blocks in registers. `direct`
// uses no workgroup memory: it is for software adapters, where workgroup memory is no faster than other memory.

struct Conv {
    // Size of x in pixels, before upsampling.
    in_height: u32,
    in_width: u32,
    out_height: u32,
    out_width: u32,
    // Blocks of four channels of a pixel.
    first_blocks: u32,
    second_blocks: u32,
    out_blocks: u32,
    // Side of the kernel: 1 or 3.
    kernel: u32,
    // 1 or 2.
    stride: u32,
    // Rows of zeros above, and columns to the left: 1 or 0.
    border: u32,
    // 1: x is upsampled by 2. 0: it is not.
    upsample: u32,
    // Position of the bias, and distance from one image's bias to the next, in blocks.
    bias_start: u32,
    bias_pitch: u32,
    // 0: none. 1: a map like y. 2: a map of half its size.
    residual: u32,
    // Pixels of y in all images together.
    pixels: u32,
}

@group(0) @binding(0) var<uniform> conv: Conv;
@group(0) @binding(1) var<storage, read> first: array<real4>;
@group(0) @binding(2) var<storage, read> second: array<real4>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<real4>;
@group(0) @binding(5) var<storage, read_write> y: array<real4>;
// The prelude of the weight's format declares bindings 6 and 7, and two functions: `weight(row, block)` is a block of four
// output channels of a row, of which every tap has one for each input channel; `scaled` multiplies a sum by its block's scale.

const OUTSIDE: u32 = 0xffffffffu;

// The pixel of x that a tap reads for an output pixel, or OUTSIDE.
fn source(pixel: u32, tap: u32) -> u32 {
    if pixel >= conv.pixels {
        return OUTSIDE;
    }
    let image_pixels = conv.out_height * conv.out_width;
    let image = pixel / image_pixels;
    let place = pixel % image_pixels;
    // A negative row or column wraps to a large number, which is outside.
    let row = place / conv.out_width * conv.stride + tap / conv.kernel - conv.border;
    let column = place % conv.out_width * conv.stride + tap % conv.kernel - conv.border;
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
// Input blocks that are staged at a time.
const DEPTH: u32 = 4u;
const LOADS_X: u32 = TILE_PIXELS * DEPTH / INVOCATIONS;
const LOADS_WEIGHT: u32 = 4u * DEPTH * TILE_BLOCKS / INVOCATIONS;
// Invocations of a workgroup of `direct`; pixels and blocks of each; pixels of the workgroup.
const DIRECT_ROWS: u32 = 16u;
const DIRECT_PIXELS: u32 = 4u;
const DIRECT_BLOCKS: u32 = 2u;
const DIRECT_TILE_PIXELS: u32 = DIRECT_PIXELS * DIRECT_ROWS;

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
                    value = weight(tap * 4u * in_blocks + channel, block);
                }
                tile_weight[place] = value;
            }
            workgroupBarrier();
            // The products of one stage are summed in the type of feature maps, the stages in f32.
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

// Position of a pixel in a map with `blocks` blocks a pixel. 0 for OUTSIDE: a valid position, whose value is not used.
fn begin(pixel: u32, blocks: u32) -> u32 {
    return select(pixel, 0u, pixel == OUTSIDE) * blocks;
}

// Four pixels by eight output channels per invocation, with all loops over them unrolled by hand: software adapters do
// not unroll loops, and keep arrays indexed by a loop variable in memory.
@compute @workgroup_size(1, DIRECT_ROWS)
fn direct(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let pixel = invocation.y * DIRECT_PIXELS;
    let block = invocation.x * DIRECT_BLOCKS;
    if pixel >= conv.pixels {
        return;
    }
    // If the number of blocks is odd, the last block is computed twice.
    let other = min(block + 1u, conv.out_blocks - 1u);
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var b0 = vec4<f32>();
    var b1 = vec4<f32>();
    var b2 = vec4<f32>();
    var b3 = vec4<f32>();
    var row = 0u;
    for (var tap = 0u; tap < conv.kernel * conv.kernel; tap++) {
        let source0 = source(pixel, tap);
        let source1 = source(pixel + 1u, tap);
        let source2 = source(pixel + 2u, tap);
        let source3 = source(pixel + 3u, tap);
        let inside = vec4<f32>(vec4<u32>(source0, source1, source2, source3) != vec4<u32>(OUTSIDE));
        for (var part = 0u; part < 2u; part++) {
            let blocks = select(conv.first_blocks, conv.second_blocks, part == 1u);
            var place0 = begin(source0, blocks);
            var place1 = begin(source1, blocks);
            var place2 = begin(source2, blocks);
            var place3 = begin(source3, blocks);
            for (var d = 0u; d < blocks; d++) {
                var x0: real4;
                var x1: real4;
                var x2: real4;
                var x3: real4;
                if part == 0u {
                    x0 = first[place0];
                    x1 = first[place1];
                    x2 = first[place2];
                    x3 = first[place3];
                } else {
                    x0 = second[place0];
                    x1 = second[place1];
                    x2 = second[place2];
                    x3 = second[place3];
                }
                let v0 = vec4<f32>(x0) * inside.x;
                let v1 = vec4<f32>(x1) * inside.y;
                let v2 = vec4<f32>(x2) * inside.z;
                let v3 = vec4<f32>(x3) * inside.w;
                let a = mat4x4<f32>(column(row, block), column(row + 1u, block),
                    column(row + 2u, block), column(row + 3u, block));
                a0 += a * v0;
                a1 += a * v1;
                a2 += a * v2;
                a3 += a * v3;
                let b = mat4x4<f32>(column(row, other), column(row + 1u, other),
                    column(row + 2u, other), column(row + 3u, other));
                b0 += b * v0;
                b1 += b * v1;
                b2 += b * v2;
                b3 += b * v3;
                place0++;
                place1++;
                place2++;
                place3++;
                row += 4u;
            }
        }
    }
    store(pixel, block, a0);
    store(pixel, other, b0);
    if pixel + 1u < conv.pixels {
        store(pixel + 1u, block, a1);
        store(pixel + 1u, other, b1);
    }
    if pixel + 2u < conv.pixels {
        store(pixel + 2u, block, a2);
        store(pixel + 2u, other, b2);
    }
    if pixel + 3u < conv.pixels {
        store(pixel + 3u, block, a3);
        store(pixel + 3u, other, b3);
    }
}

fn column(row: u32, block: u32) -> vec4<f32> {
    return vec4<f32>(weight(row, block));
}
