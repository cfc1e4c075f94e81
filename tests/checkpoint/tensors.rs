//! Weight files.

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::Error;
use undertext::checkpoint::{Checkpoint, Tensors};
use undertext::quant::Scheme;

use super::{refused, write, write_json};

/// Bytes of a safetensors file with one tensor.
pub(super) fn one_tensor(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

/// Bytes of a file with this header and these data, whether or not they fit.
fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn weight_files_that_are_not_there() {
    let dir = TempDir::new().unwrap();
    let open = || Tensors::open(dir.path());
    refused(open(), &["model.safetensors", "missing"]);
    write(dir.path(), "pytorch_model.bin", "PK");
    refused(open(), &["pytorch_model.bin", "safetensors"]);
    write(dir.path(), "model-00001-of-00002.safetensors", "");
    refused(open(), &["model.safetensors.index.json", "model-00001-of-00002.safetensors"]);

    let dir = TempDir::new().unwrap();
    write(dir.path(), "adapter_config.json", "{}");
    refused(Tensors::open(dir.path()), &["adapter_config.json", "LoRA"]);
    refused(Checkpoint::open(dir.path()), &["adapter_config.json", "LoRA"]);
}

#[test]
fn one_file_that_is_broken() {
    let dir = TempDir::new().unwrap();
    let refuse = |bytes: &[u8], parts: &[&str]| {
        write(dir.path(), "model.safetensors", bytes);
        refused(Tensors::open(dir.path()), &[&["model.safetensors"], parts].concat());
    };
    let good = one_tensor("w", Dtype::F32, &[2, 2], &f32_bytes(&[1.0, 2.0, 3.0, 4.0]));
    let (len, cut) = (good.len(), good.len() - 3);

    refuse(&good[..cut], &["truncated", &format!("{cut} bytes"), &format!("{len} by")]);
    refuse(&[&good[..], b"x"].concat(), &["trailing", &format!("{} bytes", len + 1)]);
    refuse(&good[..20], &["truncated", "20 bytes"]);
    refuse(&good[..5], &["truncated", "5 bytes"]);
    refuse(b"", &["truncated", "0 bytes"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    refuse(pointer.as_bytes(), &["git-LFS pointer", "git lfs pull"]);
    refuse(&[0xff; 40], &["header length", "not a safetensors file"]);
    refuse(&raw_safetensors("{\"w\": ", &[]), &["header"]);

    let entry = |name: &str, from: usize, to: usize| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{from},{to}]}}")
    };
    let twice = format!("{{{},{}}}", entry("w", 0, 4), entry("w", 4, 8));
    refuse(&raw_safetensors(&twice, &[0; 8]), &["header", "tensor w twice"]);
    let overlapping = format!("{{{},{}}}", entry("a", 0, 4), entry("b", 2, 6));
    refuse(&raw_safetensors(&overlapping, &[0; 6]), &["header"]);
    let wrong_size = format!("{{{}}}", entry("w", 0, 8));
    refuse(&raw_safetensors(&wrong_size, &[0; 8]), &["header"]);
    let unknown = "{\"w\":{\"dtype\":\"Q9\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    refuse(&raw_safetensors(unknown, &[0; 4]), &["header", "Q9"]);
    let huge = "{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}";
    refuse(&raw_safetensors(huge, &[0; 4]), &["header"]);
}

#[test]
fn one_file_that_is_whole() {
    let dir = TempDir::new().unwrap();
    let values = [0.5, -1.0, 3.25, 0.0, -0.0, 65504.0];
    let halves: Vec<u8> = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let brains: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let singles = f32_bytes(&values);
    for (dtype, scheme, bytes, last) in [
        (Dtype::F32, Scheme::F32, &singles, 65504.0),
        (Dtype::F16, Scheme::F16, &halves, 65504.0),
        (Dtype::BF16, Scheme::Bf16, &brains, 65536.0),
    ] {
        let file = one_tensor("w", dtype, &[3, 2], bytes);
        write(dir.path(), "model.safetensors", &file);
        let tensors = Tensors::open(dir.path()).unwrap();
        assert!(tensors.contains("w") && !tensors.contains("v"));
        assert_eq!(tensors.names(), ["w"]);
        assert_eq!(tensors.describe("w").unwrap(), (scheme, &[3, 2][..]));

        let header = tensors.bytes_read();
        assert_eq!(header + bytes.len() as u64, file.len() as u64);
        let whole = tensors.read("w", &[3, 2]).unwrap();
        assert_eq!((whole.dtype, &whole.shape[..], &whole.bytes), (scheme, &[3, 2][..], bytes));
        let widened = whole.to_f32();
        assert_eq!(widened[..5], values[..5]);
        assert!(widened[4].is_sign_negative());
        assert_eq!(widened[5], last);
        assert_eq!(tensors.bytes_read(), file.len() as u64);

        let row = tensors.read_rows("w", &[3, 2], 1..2).unwrap();
        assert_eq!((&row.shape[..], row.to_f32()), (&[1, 2][..], vec![3.25, 0.0]));
        assert_eq!(tensors.bytes_read(), (file.len() + bytes.len() / 3) as u64);
        let error = tensors.read_rows("w", &[3, 2], 2..4).unwrap_err();
        assert!(matches!(error, Error::Shape { got: 4, .. }), "{error}");
    }
}

#[test]
fn tensors_that_are_wrong() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "model.safetensors", one_tensor("w", Dtype::F32, &[2, 2], &[0; 16]));
    let tensors = Tensors::open(dir.path()).unwrap();
    refused(tensors.read("model.norm.weight", &[2]), &["tensor model.norm.weight is missing"]);
    refused(tensors.read("w", &[2, 3]), &["model.safetensors", "tensor w", "[2, 2]", "[2, 3]"]);
    refused(tensors.read("w", &[4]), &["[2, 2]", "[4]"]);
    refused(tensors.read_rows("w", &[3, 2], 0..1), &["[2, 2]", "[3, 2]"]);

    write(dir.path(), "model.safetensors", one_tensor("w", Dtype::F8_E4M3, &[2, 2], &[0; 4]));
    let tensors = Tensors::open(dir.path()).unwrap();
    refused(tensors.read("w", &[2, 2]), &["F8_E4M3", "tensor w", "F32, F16, BF16"]);
    refused(tensors.describe("w"), &["F8_E4M3", "tensor w"]);
}

#[test]
fn weights_that_are_not_finite_are_found_wherever_they_are() {
    // More than one scanned chunk (a MiB) in each dtype.
    let (rows, cols) = (1100, 512);
    let dir = TempDir::new().unwrap();
    let f16 = |value: f32| half::f16::from_f32(value).to_le_bytes().to_vec();
    let bf16 = |value: f32| half::bf16::from_f32(value).to_le_bytes().to_vec();
    let f32 = |value: f32| value.to_le_bytes().to_vec();
    type ToBytes<'a> = &'a dyn Fn(f32) -> Vec<u8>;
    let dtypes: [(Dtype, ToBytes<'_>); 3] = [(Dtype::F32, &f32), (Dtype::F16, &f16), (Dtype::BF16, &bf16)];
    for (dtype, to_bytes) in dtypes {
        for (value, text, index) in [
            (f32::NAN, "NaN", 0),
            (f32::INFINITY, "inf", rows * cols - 1),
            (f32::NEG_INFINITY, "-inf", 555_555),
        ] {
            let one = to_bytes(-65504.0);
            let mut bytes = one.repeat(rows * cols);
            bytes[index * one.len()..(index + 1) * one.len()].copy_from_slice(&to_bytes(value));
            write(dir.path(), "model.safetensors", one_tensor("w", dtype, &[rows, cols], &bytes));
            let tensors = Tensors::open(dir.path()).unwrap();
            let (index_text, row) = (format!("{text} at index {index},"), index / cols);
            refused(tensors.read("w", &[rows, cols]), &["model.safetensors", "tensor w", &index_text]);
            refused(tensors.read_rows("w", &[rows, cols], row..row + 1), &[&index_text]);
            let other = if row == 0 { 1..rows } else { 0..row };
            tensors.read_rows("w", &[rows, cols], other).unwrap();
        }
    }
}

#[test]
fn shards_and_their_index() {
    let dir = TempDir::new().unwrap();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let index =
        |map: Value| write_json(dir.path(), "model.safetensors.index.json", &json!({"weight_map": map}));
    let open = || Tensors::open(dir.path());
    write(dir.path(), first, one_tensor("a", Dtype::F32, &[1], &f32_bytes(&[1.5])));
    index(json!({"a": first, "b": second}));
    refused(open(), &[second, "missing"]);

    write(dir.path(), second, one_tensor("b", Dtype::F32, &[2], &f32_bytes(&[2.5, 3.5])));
    let tensors = open().unwrap();
    assert_eq!(tensors.read("a", &[1]).unwrap().to_f32(), [1.5]);
    assert_eq!(tensors.read("b", &[2]).unwrap().to_f32(), [2.5, 3.5]);
    refused(tensors.read("b", &[3]), &[second, "[2]", "[3]"]);

    index(json!({"a": first, "b": second, "c": second}));
    refused(open(), &[second, "no tensor c", "model.safetensors.index.json"]);
    for escape in ["../evil.safetensors", "/etc/passwd", "x/../../y", "..", "", "a\\b"] {
        index(json!({"a": escape}));
        refused(open(), &["model.safetensors.index.json", "weight_map of a", "inside the checkpoint"]);
    }
    index(json!({"a": 7}));
    refused(open(), &["weight_map of a", "found 7"]);
    write_json(dir.path(), "model.safetensors.index.json", &json!({"metadata": {}}));
    refused(open(), &["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn file_cut_after_it_was_opened() {
    let dir = TempDir::new().unwrap();
    let file = one_tensor("w", Dtype::F32, &[4], &[0; 16]);
    write(dir.path(), "model.safetensors", &file);
    let tensors = Tensors::open(dir.path()).unwrap();
    write(dir.path(), "model.safetensors", &file[..file.len() - 4]);
    refused(tensors.read("w", &[4]), &["model.safetensors", "being changed"]);
}
