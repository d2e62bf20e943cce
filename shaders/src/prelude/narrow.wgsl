// A tile for small maps, of which there are more: 32 pixels by 32 output channels.
const PIXELS: u32 = 4u;
const BLOCKS: u32 = 1u;
