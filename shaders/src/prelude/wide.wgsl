// A tile of 64 pixels by 64 output channels, for large maps.
const PIXELS: u32 = 8u;
const BLOCKS: u32 = 2u;
