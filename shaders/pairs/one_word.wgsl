// 4-bit codes of both sides: an eight is a word.

@group(0) @binding(3) var<storage, read> codes_t: array<u32>;
@group(0) @binding(4) var<storage, read> codes_u: array<u32>;
