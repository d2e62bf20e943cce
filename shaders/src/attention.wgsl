// y = softmax(q^T k / sqrt(head_channels)) v in every head.
//
// A workgroup handles 16 queries of one head and reads 16 keys at a time. It updates the softmax after each group of
// keys (online softmax: Milakov and Gimelshein, arXiv 1805.02867), so that scores stay in workgroup memory. Four
// invocations share a query: each computes the scores of four keys, and sums four of the blocks of four channels that
// the workgroup writes. Several workgroups write a head of more than 64 channels; each computes the scores again.

struct Attention {
    positions: u32,
    heads: u32,
    // Blocks of four channels of a head.
    blocks: u32,
    // 1 / sqrt(head_channels).
    scale: f32,
}

@group(0) @binding(0) var<uniform> attention: Attention;
// [image, position, 3, head, block]
@group(0) @binding(1) var<storage, read> qkv: array<real4>;
// [image, position, head, block]
@group(0) @binding(2) var<storage, read_write> y: array<real4>;

const QUERIES: u32 = 16u;
const KEYS: u32 = 16u;
const LANES: u32 = 4u;
// Blocks that a workgroup of `attend` writes.
const WIDTH: u32 = 16u;
// Blocks of queries and keys that are staged at a time.
const DEPTH: u32 = 4u;
// Blocks that an invocation of `direct` writes.
const DIRECT_WIDTH: u32 = 4u;

var<workgroup> queries: array<vec4<f32>, QUERIES * DEPTH>;
var<workgroup> keys: array<vec4<f32>, KEYS * DEPTH>;
var<workgroup> scores: array<vec4<f32>, QUERIES * LANES>;
var<workgroup> values: array<vec4<f32>, KEYS * WIDTH>;

// A block of a position's query (kind 0), key (1) or value (2). Zero past the last position or block.
fn load(image: u32, position: u32, kind: u32, head: u32, block: u32) -> vec4<f32> {
    if position >= attention.positions || block >= attention.blocks {
        return vec4<f32>();
    }
    let row = ((image * attention.positions + position) * 3u + kind) * attention.heads + head;
    return vec4<f32>(qkv[row * attention.blocks + block]);
}

fn store(image: u32, position: u32, head: u32, block: u32, value: vec4<f32>) {
    if position < attention.positions && block < attention.blocks {
        let row = (image * attention.positions + position) * attention.heads + head;
        y[row * attention.blocks + block] = real4(value);
    }
}

@compute @workgroup_size(LANES, QUERIES)
fn attend(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_query = workgroup.x * QUERIES;
    let runs = (attention.blocks + WIDTH - 1u) / WIDTH;
    let head = workgroup.y / runs;
    let first_block = workgroup.y % runs * WIDTH;
    let image = workgroup.z;
    var largest = -3.0e38;
    var sum = 0.0;
    var sums: array<vec4<f32>, 4>;

    for (var first_key = 0u; first_key < attention.positions; first_key += KEYS) {
        // The scores of this invocation's four keys.
        var score = vec4<f32>();
        for (var depth = 0u; depth < attention.blocks; depth += DEPTH) {
            queries[index] = load(image, first_query + index / DEPTH, 0u, head, depth + index % DEPTH);
            keys[index] = load(image, first_key + index / DEPTH, 1u, head, depth + index % DEPTH);
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d++) {
                let query = queries[local.y * DEPTH + d];
                let key = 4u * local.x * DEPTH + d;
                score += vec4<f32>(dot(query, keys[key]), dot(query, keys[key + DEPTH]),
                    dot(query, keys[key + 2u * DEPTH]), dot(query, keys[key + 3u * DEPTH]));
            }
            workgroupBarrier();
        }
        let last = attention.positions - first_key;
        let place = vec4<u32>(0u, 1u, 2u, 3u) + 4u * local.x;
        scores[local.y * LANES + local.x] =
            select(vec4<f32>(-3.0e38), score * attention.scale, place < vec4<u32>(last));
        for (var i = 0u; i < KEYS * WIDTH / (LANES * QUERIES); i++) {
            let place = index + i * LANES * QUERIES;
            values[place] = load(image, first_key + place / WIDTH, 2u, head, first_block + place % WIDTH);
        }
        workgroupBarrier();
        // All invocations of a query compute the same new maximum.
        var larger = largest;
        for (var i = 0u; i < LANES; i++) {
            let s = scores[local.y * LANES + i];
            larger = max(larger, max(max(s.x, s.y), max(s.z, s.w)));
        }
        let shrink = exp(largest - larger);
        largest = larger;
        sum *= shrink;
        for (var j = 0u; j < 4u; j++) {
            sums[j] *= shrink;
        }
        for (var i = 0u; i < LANES; i++) {
            let weight = exp(scores[local.y * LANES + i] - larger);
            sum += weight.x + weight.y + weight.z + weight.w;
            for (var j = 0u; j < 4u; j++) {
                let value = 4u * i * WIDTH + j * LANES + local.x;
                sums[j] += weight.x * values[value] + weight.y * values[value + WIDTH]
                    + weight.z * values[value + 2u * WIDTH] + weight.w * values[value + 3u * WIDTH];
            }
        }
        workgroupBarrier();
    }
    let query = first_query + local.y;
    for (var j = 0u; j < 4u; j++) {
        store(image, query, head, first_block + j * LANES + local.x, sums[j] / sum);
    }
}

// One query and four blocks per invocation, without barriers and arrays. For software adapters, where barriers are slow
// and arrays indexed by a loop variable stay in memory.
@compute @workgroup_size(QUERIES)
fn direct(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let query = invocation.x;
    if query >= attention.positions {
        return;
    }
    let runs = (attention.blocks + DIRECT_WIDTH - 1u) / DIRECT_WIDTH;
    let head = invocation.y / runs;
    let block = invocation.y % runs * DIRECT_WIDTH;
    let image = invocation.z;
    // Distances in qkv: from one position to the next, and from query to key and from key to value.
    let pitch = 3u * attention.heads * attention.blocks;
    let kind = attention.heads * attention.blocks;
    let start = image * attention.positions * pitch + head * attention.blocks;
    let own = start + query * pitch;
    // Blocks past the last are read from the last one, and are not written.
    let last = attention.blocks - 1u;
    let places = min(vec4<u32>(block) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    var largest = -3.0e38;
    var sum = 0.0;
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    for (var first = 0u; first < attention.positions; first += 4u) {
        let position = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
        let there = position < vec4<u32>(attention.positions);
        let key = start + select(vec4<u32>(), position, there) * pitch + kind;
        var products0 = vec4<f32>();
        var products1 = vec4<f32>();
        var products2 = vec4<f32>();
        var products3 = vec4<f32>();
        for (var d = 0u; d < attention.blocks; d++) {
            let q = vec4<f32>(qkv[own + d]);
            products0 += q * vec4<f32>(qkv[key.x + d]);
            products1 += q * vec4<f32>(qkv[key.y + d]);
            products2 += q * vec4<f32>(qkv[key.z + d]);
            products3 += q * vec4<f32>(qkv[key.w + d]);
        }
        let ones = vec4<f32>(1.0);
        let products = vec4<f32>(dot(products0, ones), dot(products1, ones), dot(products2, ones), dot(products3, ones));
        let score = select(vec4<f32>(-3.0e38), products * attention.scale, there);
        let larger = max(largest, max(max(score.x, score.y), max(score.z, score.w)));
        let shrink = exp(largest - larger);
        let weight = exp(score - larger);
        largest = larger;
        sum = sum * shrink + dot(weight, ones);
        let value = key + kind;
        sum0 = sum0 * shrink + values_of(value + places.x) * weight;
        sum1 = sum1 * shrink + values_of(value + places.y) * weight;
        sum2 = sum2 * shrink + values_of(value + places.z) * weight;
        sum3 = sum3 * shrink + values_of(value + places.w) * weight;
    }
    store(image, query, head, block, sum0 / sum);
    store(image, query, head, block + 1u, sum1 / sum);
    store(image, query, head, block + 2u, sum2 / sum);
    store(image, query, head, block + 3u, sum3 / sum);
}

fn values_of(places: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(vec4<f32>(qkv[places.x]), vec4<f32>(qkv[places.y]), vec4<f32>(qkv[places.z]), vec4<f32>(qkv[places.w]));
}
