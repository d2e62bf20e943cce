// Copies consecutive positions of one map to another.

struct Copy {
    // Positions of one image in x and in y.
    x_positions: u32,
    y_positions: u32,
    // The first position to read and to write.
    read_first: u32,
    write_first: u32,
    // Number of positions.
    positions: u32,
    // Blocks of four channels of a position.
    blocks: u32,
    // Blocks that are copied in all images together.
    count: u32,
}

// Invocations of a workgroup.
const LINE: u32 = 64u;

@group(0) @binding(0) var<uniform> size: Copy;
@group(0) @binding(1) var<storage, read> x: array<real4>;
@group(0) @binding(2) var<storage, read_write> y: array<real4>;

@compute @workgroup_size(LINE)
fn copy(@builtin(global_invocation_id) invocation: vec3<u32>, @builtin(num_workgroups) workgroups: vec3<u32>) {
    let i = invocation.x + invocation.y * workgroups.x * LINE;
    if i >= size.count {
        return;
    }
    let block = i % size.blocks;
    let position = i / size.blocks % size.positions;
    let image = i / size.blocks / size.positions;
    let place = (image * size.x_positions + size.read_first + position) * size.blocks + block;
    y[(image * size.y_positions + size.write_first + position) * size.blocks + block] = x[place];
}
