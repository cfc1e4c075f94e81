// Reads a format of 4-bit codes an eight at a time: one word.
//
// Links a format that gives `Scale` and `decode`, and what gives `group_of`.

@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<Scale>;

fn load_oct(row: u32, oct: u32) -> Oct {
    return decode(weights[row * (params.k / 8u) + oct], scales[group_of(row, oct)]);
}
