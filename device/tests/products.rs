//! Products of matrices on an emulated device, against sums in f64.

use half::{bf16, f16};
use proptest::prelude::*;
use spanforge_device::{Buffer, Device, DeviceError, Element, Product, open};

fn round(element: Element, x: f64) -> f64 {
    match element {
        Element::F16 => f16::from_f64(x).to_f64(),
        Element::Bf16 => bf16::from_f64(x).to_f64(),
        Element::F32 => f64::from(x as f32),
    }
}

fn bytes(element: Element, values: &[f64]) -> Vec<u8> {
    let of = |x: &f64| match element {
        Element::F16 => f16::from_f64(*x).to_le_bytes().to_vec(),
        Element::Bf16 => bf16::from_f64(*x).to_le_bytes().to_vec(),
        Element::F32 => (*x as f32).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(of).collect()
}

fn value(element: Element, bytes: &[u8]) -> f64 {
    match element {
        Element::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        Element::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        Element::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
    }
}

fn kept(device: &dyn Device, bytes: &[u8]) -> Buffer {
    let buffer = device.allocate("matrix", bytes.len()).unwrap();
    device.upload(buffer, 0, bytes).unwrap();
    buffer
}

/// Element types of the factors and of the result, and whether it is added to.
fn kinds() -> impl Strategy<Value = (Element, Element, bool)> {
    let factors = prop_oneof![Just(Element::F16), Just(Element::Bf16)];
    (factors, 0..3).prop_map(|(element, kind)| match kind {
        0 => (element, element, false),
        kind => (element, Element::F32, kind == 2),
    })
}

proptest! {
    #[test]
    fn a_product_is_that_of_sums_in_f64(
        rows in 1_usize..5,
        columns in 1_usize..9,
        inner in 1_usize..20,
        (element, out_element, accumulate) in kinds(),
        seed in 0_u32..1000,
    ) {
        let matrix = |count: usize, phase: f64, element| -> Vec<f64> {
            let at = |at: usize| ((at as f64 + phase) * 0.7 + f64::from(seed)).sin();
            (0..count).map(|i| round(element, at(i))).collect()
        };
        let x = matrix(rows * inner, 0.3, element);
        let w = matrix(columns * inner, 0.9, element);
        let before = matrix(rows * columns, 0.1, out_element);
        let device = open("emulated:h200").unwrap();
        let product = Product {
            x: kept(device.as_ref(), &bytes(element, &x)),
            w: kept(device.as_ref(), &bytes(element, &w)),
            out: kept(device.as_ref(), &bytes(out_element, &before)),
            rows, columns, inner, element, out_element, accumulate,
        };
        device.multiply(&product).unwrap();
        let mut out = vec![0; product.out.bytes];
        device.download(product.out, 0, &mut out).unwrap();
        for (at, found) in out.chunks_exact(out_element.bytes()).enumerate() {
            let (row, column) = (&x[at / columns * inner..], &w[at % columns * inner..]);
            let sum: f64 = (0..inner).map(|i| row[i] * column[i]).sum();
            let wanted = sum + if accumulate { before[at] } else { 0.0 };
            let unit = if out_element == Element::Bf16 { 4e-3 } else { 5e-4 };
            let unit = if out_element == Element::F32 { 1e-5 } else { unit };
            let found = value(out_element, found);
            prop_assert!((found - wanted).abs() <= unit * (1.0 + wanted.abs()), "{found} {wanted}");
        }
    }
}

#[test]
fn products_that_no_device_takes_are_refused() {
    let device = open("emulated:h200").unwrap();
    let good = Product {
        x: kept(device.as_ref(), &[0; 24]),
        w: kept(device.as_ref(), &[0; 16]),
        out: kept(device.as_ref(), &[0; 24]),
        rows: 3,
        columns: 2,
        inner: 4,
        element: Element::F16,
        out_element: Element::F32,
        accumulate: true,
    };
    device.multiply(&good).unwrap();
    let refused = |product: Product| device.multiply(&product).unwrap_err();
    for bad in [
        Product { rows: 4, ..good },
        Product { inner: 5, ..good },
        Product { columns: 1 << 20, ..good },
    ] {
        assert!(matches!(refused(bad), DeviceError::OutOfBuffer { .. }), "{bad:?}");
    }
    for (bad, says) in [
        (Product { rows: 0, ..good }, "a side of 0"),
        (Product { columns: usize::MAX, ..good }, "a side of"),
        (Product { element: Element::F32, ..good }, "factors in f32"),
        (Product { out_element: Element::F16, ..good }, "added to"),
        (Product { out_element: Element::Bf16, accumulate: false, ..good }, "the result is Bf16"),
    ] {
        let error = refused(bad).to_string();
        assert!(error.contains(says) && error.contains("cannot be multiplied"), "{error}");
    }
    let gone = Product { w: Buffer { address: 8, bytes: 16 }, ..good };
    assert!(matches!(refused(gone), DeviceError::UnknownBuffer { .. }));
}
