// Each code's bin has its own width, over the block's absmax. The numbers come from quant::change::widths.

override WIDTH_0: f32 = 1.0;
override WIDTH_1: f32 = 1.0;
override WIDTH_2: f32 = 1.0;
override WIDTH_3: f32 = 1.0;
override WIDTH_4: f32 = 1.0;
override WIDTH_5: f32 = 1.0;
override WIDTH_6: f32 = 1.0;
override WIDTH_7: f32 = 1.0;
override WIDTH_8: f32 = 1.0;
override WIDTH_9: f32 = 1.0;
override WIDTH_10: f32 = 1.0;
override WIDTH_11: f32 = 1.0;
override WIDTH_12: f32 = 1.0;
override WIDTH_13: f32 = 1.0;
override WIDTH_14: f32 = 1.0;
override WIDTH_15: f32 = 1.0;

var<workgroup> widths: array<f32, 16>;

// For one lane; the others wait for it.
fn set_widths() {
    widths[0] = WIDTH_0;
    widths[1] = WIDTH_1;
    widths[2] = WIDTH_2;
    widths[3] = WIDTH_3;
    widths[4] = WIDTH_4;
    widths[5] = WIDTH_5;
    widths[6] = WIDTH_6;
    widths[7] = WIDTH_7;
    widths[8] = WIDTH_8;
    widths[9] = WIDTH_9;
    widths[10] = WIDTH_10;
    widths[11] = WIDTH_11;
    widths[12] = WIDTH_12;
    widths[13] = WIDTH_13;
    widths[14] = WIDTH_14;
    widths[15] = WIDTH_15;
}

fn widths_of(codes: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(widths[codes.x], widths[codes.y], widths[codes.z], widths[codes.w]);
}
