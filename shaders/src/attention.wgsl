// y = softmax(scale q^T k + bias) v in every head.
//
// A workgroup handles 16 queries of one head and reads 16 keys at a time. It updates the softmax after each group of
// keys (online softmax: Milakov and Gimelshein, arXiv 1805.02867), so that scores stay in workgroup memory. Four
// invocations share a query: each computes the scores of four keys, and sums four of the blocks of four channels that
// the workgroup writes. Several workgroups write a head of more than 64 channels; each computes the scores again.

struct Attention {
    // Positions of queries, and of keys and values.
    queries: u32,
    keys: u32,
    heads: u32,
    // Blocks of four channels of a head.
    blocks: u32,
    // Blocks of a position in the maps of queries, keys and values, and the first block to read.
    q_pitch: u32,
    q_first: u32,
    k_pitch: u32,
    k_first: u32,
    v_pitch: u32,
    v_first: u32,
    // 1: a bias is added to the scores. 0: none.
    biased: u32,
    // Position of the first head's biases, and the distance to those of the next head.
    bias_start: u32,
    bias_pitch: u32,
    // Factor of the scores.
    scale: f32,
}

@group(0) @binding(0) var<uniform> attention: Attention;
// [image, position, block]
@group(0) @binding(1) var<storage, read> q: array<real4>;
@group(0) @binding(2) var<storage, read> k: array<real4>;
@group(0) @binding(3) var<storage, read> v: array<real4>;
// For each head, the bias of every distance from key to query.
@group(0) @binding(4) var<storage, read> bias: array<f32>;
// [image, position, head, block]
@group(0) @binding(5) var<storage, read_write> y: array<real4>;

const QUERIES: u32 = 16u;
const KEYS: u32 = 16u;
const LANES: u32 = 4u;
// Blocks that a workgroup of `attend` writes.
const WIDTH: u32 = 16u;
// Blocks of queries and keys that are staged at a time.
const DEPTH: u32 = 4u;
// Blocks that an invocation of `direct` writes.
const DIRECT_WIDTH: u32 = 4u;

var<workgroup> query_blocks: array<vec4<f32>, QUERIES * DEPTH>;
var<workgroup> key_blocks: array<vec4<f32>, KEYS * DEPTH>;
var<workgroup> scores: array<vec4<f32>, QUERIES * LANES>;
var<workgroup> value_blocks: array<vec4<f32>, KEYS * WIDTH>;

// Where the first block of a head's query, key or value is.
fn place_q(image: u32, position: u32, head: u32) -> u32 {
    return (image * attention.queries + position) * attention.q_pitch + attention.q_first + head * attention.blocks;
}

fn place_k(image: u32, position: u32, head: u32) -> u32 {
    return (image * attention.keys + position) * attention.k_pitch + attention.k_first + head * attention.blocks;
}

fn place_v(image: u32, position: u32, head: u32) -> u32 {
    return (image * attention.keys + position) * attention.v_pitch + attention.v_first + head * attention.blocks;
}

// The scores of four keys with their biases; those past the last key are the smallest number.
fn biased(products: vec4<f32>, head: u32, query: u32, key: vec4<u32>) -> vec4<f32> {
    var score = products * attention.scale;
    if attention.biased == 1u {
        let place = attention.bias_start + head * attention.bias_pitch + attention.queries - 1u
            - min(query, attention.queries - 1u) + min(key, vec4<u32>(attention.keys - 1u));
        score += vec4<f32>(bias[place.x], bias[place.y], bias[place.z], bias[place.w]);
    }
    return select(vec4<f32>(-3.0e38), score, key < vec4<u32>(attention.keys));
}

fn store(image: u32, position: u32, head: u32, block: u32, value: vec4<f32>) {
    if position < attention.queries && block < attention.blocks {
        let row = (image * attention.queries + position) * attention.heads + head;
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

    for (var first_key = 0u; first_key < attention.keys; first_key += KEYS) {
        // The scores of this invocation's four keys.
        var score = vec4<f32>();
        for (var depth = 0u; depth < attention.blocks; depth += DEPTH) {
            let position = index / DEPTH;
            let block = depth + index % DEPTH;
            query_blocks[index] = vec4<f32>();
            if first_query + position < attention.queries && block < attention.blocks {
                query_blocks[index] = vec4<f32>(q[place_q(image, first_query + position, head) + block]);
            }
            key_blocks[index] = vec4<f32>();
            if first_key + position < attention.keys && block < attention.blocks {
                key_blocks[index] = vec4<f32>(k[place_k(image, first_key + position, head) + block]);
            }
            workgroupBarrier();
            for (var d = 0u; d < DEPTH; d++) {
                let query = query_blocks[local.y * DEPTH + d];
                let key = 4u * local.x * DEPTH + d;
                score += vec4<f32>(dot(query, key_blocks[key]), dot(query, key_blocks[key + DEPTH]),
                    dot(query, key_blocks[key + 2u * DEPTH]), dot(query, key_blocks[key + 3u * DEPTH]));
            }
            workgroupBarrier();
        }
        let key = vec4<u32>(0u, 1u, 2u, 3u) + first_key + 4u * local.x;
        scores[local.y * LANES + local.x] = biased(score, head, first_query + local.y, key);
        for (var i = 0u; i < KEYS * WIDTH / (LANES * QUERIES); i++) {
            let place = index + i * LANES * QUERIES;
            let position = first_key + place / WIDTH;
            let block = first_block + place % WIDTH;
            value_blocks[place] = vec4<f32>();
            if position < attention.keys && block < attention.blocks {
                value_blocks[place] = vec4<f32>(v[place_v(image, position, head) + block]);
            }
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
                sums[j] += weight.x * value_blocks[value] + weight.y * value_blocks[value + WIDTH]
                    + weight.z * value_blocks[value + 2u * WIDTH] + weight.w * value_blocks[value + 3u * WIDTH];
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
    if query >= attention.queries {
        return;
    }
    let runs = (attention.blocks + DIRECT_WIDTH - 1u) / DIRECT_WIDTH;
    let head = invocation.y / runs;
    let block = invocation.y % runs * DIRECT_WIDTH;
    let image = invocation.z;
    let own = place_q(image, query, head);
    let first_key = place_k(image, 0u, head);
    let first_value = place_v(image, 0u, head);
    // Blocks past the last are read from the last one, and are not written.
    let last = attention.blocks - 1u;
    let places = min(vec4<u32>(block) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    var largest = -3.0e38;
    var sum = 0.0;
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    for (var first = 0u; first < attention.keys; first += 4u) {
        let position = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
        let there = min(position, vec4<u32>(attention.keys - 1u));
        let key = first_key + there * attention.k_pitch;
        var products0 = vec4<f32>();
        var products1 = vec4<f32>();
        var products2 = vec4<f32>();
        var products3 = vec4<f32>();
        for (var d = 0u; d < attention.blocks; d++) {
            let query_block = vec4<f32>(q[own + d]);
            products0 += query_block * vec4<f32>(k[key.x + d]);
            products1 += query_block * vec4<f32>(k[key.y + d]);
            products2 += query_block * vec4<f32>(k[key.z + d]);
            products3 += query_block * vec4<f32>(k[key.w + d]);
        }
        let ones = vec4<f32>(1.0);
        let products = vec4<f32>(dot(products0, ones), dot(products1, ones), dot(products2, ones), dot(products3, ones));
        let score = biased(products, head, query, position);
        let larger = max(largest, max(max(score.x, score.y), max(score.z, score.w)));
        let shrink = exp(largest - larger);
        let weight = exp(score - larger);
        largest = larger;
        sum = sum * shrink + dot(weight, ones);
        let value = first_value + there * attention.v_pitch;
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
    return mat4x4<f32>(vec4<f32>(v[places.x]), vec4<f32>(v[places.y]), vec4<f32>(v[places.z]), vec4<f32>(v[places.w]));
}
