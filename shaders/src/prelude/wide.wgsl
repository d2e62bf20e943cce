// A tile for large maps: 64 pixels by 64 output channels.
const PIXELS: u32 = 8u;
const BLOCKS: u32 = 2u;
