// 8-bit codes of both sides: an eight is two words.

@group(0) @binding(3) var<storage, read> codes_t: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> codes_u: array<vec2<u32>>;
