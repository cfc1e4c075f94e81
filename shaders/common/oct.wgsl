// Eight neighbouring weights of a row: what every format's `load_oct` gives.

struct Oct {
    lo: vec4<f32>,
    hi: vec4<f32>,
}
