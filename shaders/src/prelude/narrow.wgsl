// A tile of 32 pixels by 32 output channels, for small maps: they give too few large tiles to occupy a GPU.
const PIXELS: u32 = 4u;
const BLOCKS: u32 = 1u;
